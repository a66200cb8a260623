"""What an adapter is measured by, a module each: likelihood, ROUGE-L, choices, conduct, memorisation.

`carry_out` puts them in order.
"""

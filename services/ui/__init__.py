"""The dashboard: what a person sees. It speaks HTTP to the gateway and holds nothing of its own."""

"""One module a page, each with a `show(gateway, me)`. A page holds no rule: the gateway refuses by itself.

The folder is not named `pages`: Streamlit would serve each file in such a folder as a page to everybody.
"""

"""One module a page, each with a `show(gateway, me)`. A page holds no rule: the gateway refuses by itself."""

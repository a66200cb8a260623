"""Prints constraints.txt: the exact version of everything installed in this environment."""

from importlib.metadata import distributions

#: The project itself, and what every environment brings along.
_LEFT_OUT = {"medichat", "pip", "setuptools", "wheel"}


def main() -> None:
    """Print one pin a line, without local build tags such as `+cpu`."""
    pins = {dist.name.lower(): dist.version.split("+")[0] for dist in distributions()}
    print("# Exact versions of everything that is installed, direct or not. `make lock` writes it.")
    for name in sorted(pins.keys() - _LEFT_OUT):
        print(f"{name}=={pins[name]}")


if __name__ == "__main__":
    main()

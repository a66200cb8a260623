"""Runs every benchmark, one after another: `python -m benchmarks [--quick]`."""

import subprocess
import sys

NAMES = ("guard", "gateway", "audit", "serving", "guard_cost", "training")


def main() -> int:
    """Returns the number of benchmarks that failed."""
    failed = 0
    for name in NAMES:
        print(f"== {name}", flush=True)
        failed += (
            subprocess.run(
                [sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]], check=False
            ).returncode
            != 0
        )
    return failed


if __name__ == "__main__":
    sys.exit(main())

"""The training worker: checks datasets, trains adapters, measures them."""

import logging
import os

# The hub's client reports who loads what unless told not to; nothing leaves this machine.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# It warns whoever loads it that a faster kernel for 4 bits on a CPU is not installed; it computes without.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

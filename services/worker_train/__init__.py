"""The training worker: checks datasets, trains adapters, measures them."""

import os

# The hub's client reports who loads what unless told not to; nothing leaves this machine.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

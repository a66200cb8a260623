"""The training worker: checks datasets, trains adapters, measures them."""

"""The gateway: the only door to MediChat."""

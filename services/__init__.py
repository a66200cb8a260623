"""The processes of MediChat: each imports `shared` and itself, never another service."""

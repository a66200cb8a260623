"""Backups of the database, and optionally of the storage, that any database MediChat knows can take in."""

"""What several services use; it knows no service."""

"""What keeps a person's words from everyone who should not read them."""

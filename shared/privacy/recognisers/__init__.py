"""Recognisers of what identifies a person in clinical text, in the form that Presidio calls."""

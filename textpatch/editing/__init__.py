"""Editing puts another word into the same picture."""

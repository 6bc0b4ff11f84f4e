"""Editing: another word in the same picture."""

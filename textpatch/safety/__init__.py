"""Harmful words kept out of pictures, found in the quoted text and written over in one pass."""

"""Localisation: which sites carry the word."""

"""Localisation finds the sites that carry the word."""

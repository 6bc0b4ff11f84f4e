"""Shipped ports: foreign model classes, by name, and the tables that may fit them, the fullest first.

A new one is a file with a literal table of SiteSpecs and a line in `tables`; `textpatch.testing.check_port` tries it.
"""

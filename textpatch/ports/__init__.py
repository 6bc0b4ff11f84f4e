"""Ports, which are tables that say where foreign models have their sites.

A new port is a file with a literal table of SiteSpecs and a line in `shipped`.
`textpatch.testing.check_port` tries it on a model.
"""

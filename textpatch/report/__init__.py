"""The report of a localisation: its result, its page, its pictures."""

"""The report of a localisation, its result, its sentences, its page and its pictures."""

"""Maps of what the tokens of a word receive from the picture and give to it, site by site."""

"""Low-rank changes of a model's projections, taken from files, or made by a closed form."""

"""Low-rank changes of a model's projections, from files, by a closed form or by training."""

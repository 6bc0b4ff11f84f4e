"""The audit carries every swap of a run out again in float64."""

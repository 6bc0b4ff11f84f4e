"""The audit: every swap of a run carried out again in float64."""

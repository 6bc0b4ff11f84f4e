"""Run folders keep what a run makes, so that nothing is made twice."""

"""Run folders: what a run makes is kept there and is not made again."""

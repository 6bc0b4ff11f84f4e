"""Other people's pipelines as ours."""

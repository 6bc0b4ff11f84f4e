"""The world of the shipped models: signs, their words, their prompts, and who reads them."""

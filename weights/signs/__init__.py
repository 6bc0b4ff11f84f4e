"""World of the shipped models, with signs, their words, their prompts, and readers of them."""

"""Prompts: pairs of them, lists of published ones, and which tokens spell a word."""

"""Pairs of prompts, lists of published ones, and the tokens that spell a word."""

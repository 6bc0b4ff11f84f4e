"""The recipe that made the shipped models."""

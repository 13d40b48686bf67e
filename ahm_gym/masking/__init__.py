"""Turns one score for each patch into masks."""

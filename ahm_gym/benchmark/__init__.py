"""Mask policies compared under one budget, and the report of that comparison."""

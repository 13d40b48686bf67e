"""Compares mask policies under one budget and writes a report."""

"""Sweeps: many runs of one input, from one file."""

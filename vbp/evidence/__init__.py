"""Benchmarks and evaluations, with the rivals measured side by side."""

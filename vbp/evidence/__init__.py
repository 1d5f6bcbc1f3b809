"""Benchmarks: the commands that measure what the pages claim, beside other libraries."""

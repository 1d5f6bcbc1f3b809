"""The steps on a Ray cluster. No other folder imports Ray."""

"""Networks: from a name to a network that is ready to run, with its preprocessing and class names."""

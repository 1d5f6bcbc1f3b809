"""What is known of a network beside its tensors. Plain Python, for every room."""

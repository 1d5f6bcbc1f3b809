"""Generated scenes with true object masks, and the demo weights."""

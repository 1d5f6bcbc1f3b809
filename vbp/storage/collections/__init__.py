"""Collections: what goes in, as one row an image, whatever it lies in."""

"""Collections: the images of INPUT, one row for each, in whatever form INPUT is."""

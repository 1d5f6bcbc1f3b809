"""How good masks are: arrays and networks in, numbers out. Knows no files, no runs and no names of networks."""

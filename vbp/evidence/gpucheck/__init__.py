"""``vbp gpu-check``: one command of less than six minutes that checks and measures a machine with a GPU."""

"""What can be claimed of the masks, and the commands that measure it, rivals beside us."""

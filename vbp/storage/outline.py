"""The outline of an output: the names of its folders."""

OWN = "_run"
"""What a run needs for itself: its record, the lease, the manifest, the parts."""
INDEX = "index"
"""One row for every image."""
RUNS = "runs"
"""Of a sweep alone: the outputs of its runs."""

"""A sweep for a cluster: ``ray job submit --working-dir . -- python -m jobs.sweep SWEEP.yaml``.

The flags are those of ``vbp sweep``.
"""

from vbp.cli import sweep

if __name__ == "__main__":
    sweep(prog_name="python -m jobs.sweep")

"""The check of a GPU node for a cluster: ``ray job submit --working-dir . -- python -m jobs.gpu_check``."""

from vbp.cli import gpu_check

if __name__ == "__main__":
    gpu_check(prog_name="python -m jobs.gpu_check")

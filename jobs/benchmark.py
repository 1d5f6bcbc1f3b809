"""The benchmark for a cluster node: ``ray job submit --working-dir . -- python -m jobs.benchmark``."""

from vbp.cli import benchmark

if __name__ == "__main__":
    benchmark(prog_name="python -m jobs.benchmark")

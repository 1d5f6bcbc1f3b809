"""The evaluation for a cluster: ``ray job submit --working-dir . -- python -m jobs.evaluate INPUT OUTPUT --truth ...``.

The flags are those of ``vbp evaluate``.
"""

from vbp.cli import evaluate

if __name__ == "__main__":
    evaluate(prog_name="python -m jobs.evaluate")

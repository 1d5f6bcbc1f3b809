"""The main job for a cluster: ``ray job submit --working-dir . -- python -m jobs.explain INPUT OUTPUT``.

The flags are those of ``vbp explain``.
"""

from vbp.cli import explain

if __name__ == "__main__":
    explain(prog_name="python -m jobs.explain")

"""A network's card for a cluster: ``ray job submit --working-dir . -- python -m jobs.card INPUT OUTPUT --truth ...``.

The flags are those of ``vbp card``.
"""

from vbp.cli import card

if __name__ == "__main__":
    card(prog_name="python -m jobs.card")

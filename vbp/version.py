"""The version of vbp, and in a checkout its commit."""

import subprocess
from pathlib import Path

import vbp

ROOT = Path(__file__).parents[1]
"""Root of the checkout, if there is one."""


def described(root: Path = ROOT) -> str:
    """``0.1.0 (commit 3108c56a1b2c)``, with ``, changed`` if files differ from the commit; installed: ``0.1.0``."""
    commit = _git(root, "rev-parse", "--short=12", "HEAD") if (root / ".git").exists() else None
    if not commit:
        return vbp.__version__
    changed = ", changed" if _git(root, "status", "--porcelain", "--untracked-files=no") else ""
    return f"{vbp.__version__} (commit {commit}{changed})"


def _git(root: Path, *arguments: str) -> str | None:
    """The output of git; None if it is not installed or fails."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None

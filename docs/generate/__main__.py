"""Builds the site into ``site/`` and looks at what came out: ``python -m docs.generate``, or ``make docs``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SITE = ROOT / "site"
LOADED = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""")
"""What a page would fetch from elsewhere when it is opened; links that a reader may follow are not meant."""


def main() -> None:
    """Build, with warnings as errors; then refuse pages that would load anything from the network."""
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--clean", "--site-dir", str(SITE)]
    built = subprocess.run(command, cwd=ROOT, env=quiet)
    if built.returncode:
        sys.exit(built.returncode)
    loaded = {path: fetched for path in SITE.rglob("*.html") if (fetched := LOADED.findall(path.read_text()))}
    for path, places in loaded.items():
        sys.stderr.write(f"{path.relative_to(ROOT)} loads {', '.join(places)}\n")
    sys.exit(bool(loaded))


if __name__ == "__main__":
    main()

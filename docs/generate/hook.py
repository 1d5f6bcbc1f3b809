"""What mkdocs asks while it builds the site: pages that lie elsewhere in the repository, and tables made from the code.

In a page, these comments are replaced::

    <!-- options of explain -->                    the options of `vbp explain`, in groups
    <!-- python vbp.saliency.VisualBackProp -->    the documentation of this object, by the name that users import
    <!-- fields of vbp.pipeline.RunConfig -->      the fields of this dataclass
    <!-- program examples/one_image.py -->         this file
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from posixpath import dirname, normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.generate.options import fields, tables

ROOT = Path(__file__).parents[2]
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "DECISIONS.md": "decisions/index.md",
    "cluster/README.md": "cluster.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/epyc-2-cores.md": "benchmarks/epyc-2-cores.md",
    "benchmarks/gpu-expected.md": "benchmarks/gpu-expected.md",
    "benchmarks/scale.md": "benchmarks/scale.md",
    "benchmarks/listing.md": "benchmarks/listing.md",
}
"""Pages of the repository outside ``docs``, and where the site has them."""
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#\s]*)(#[^)\s]*)?\)")
DIRECTIVE = re.compile(r"^<!-- (options of|fields of|program|python) ([\w./-]+) -->$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere."""
    for source, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what is made from the code, and lead links of the repository to pages of the site."""
    path = page.file.src_uri
    source = next((source for source, target in ELSEWHERE.items() if target == path), f"docs/{path}")
    return rewritten(DIRECTIVE.sub(filled, markdown), source, path)


def filled(match: re.Match[str]) -> str:
    """What a comment stands for."""
    kind, name = match.groups()
    if kind == "program":
        return f"```python\n{(ROOT / name).read_text()}```"
    if kind == "options of":
        return "\n".join(tables(name))
    return "\n".join(fields(imported(name)) if kind == "fields of" else documented(name))


def documented(public: str) -> Iterator[str]:
    """Mkdocstrings' directive for an object, under the name by which it is imported."""
    found = imported(public)
    yield f"::: {found.__module__}.{found.__qualname__}"
    yield "    options:"
    yield f"      heading: {public}"


def imported(public: str) -> Any:
    """The object of a dotted name."""
    module, _, name = public.rpartition(".")
    return getattr(import_module(module), name)


def rewritten(markdown: str, source: str, page: str) -> str:
    """The text with links that hold on the site; a link to a file that is no page keeps its words alone.

    Args:
        markdown: of the page.
        source: its file, from the repository's root.
        page: its place on the site.
    """

    def to_page(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = normpath(f"{dirname(source)}/{target}").lstrip("/")
        on_site = ELSEWHERE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if on_site is None:
            return text
        return f"[{text}]({relpath(on_site, dirname(page) or '.')}{anchor})"

    return LINK.sub(to_page, markdown)

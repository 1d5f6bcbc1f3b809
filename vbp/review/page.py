"""HTML pages for people: each is one file without scripts, which loads nothing."""

from __future__ import annotations

from importlib import resources
from typing import Any

from vbp.plain import plain


def page(template: str, **values: Any) -> str:
    """The page that a template of this folder makes of `values`; text in them is escaped."""
    import jinja2

    folder = resources.files("vbp.review")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text("utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: plain(value) if type(value) is str else value,
    )
    environment.filters["count"] = lambda number: f"{number:,}".replace(",", "\N{THIN SPACE}")
    return environment.get_template(template).render(**values)

"""The HTML of a page: its parts, and the templates that show them."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from distill.pages.svg import inline_svg
from distill.pages.tables import Heat, Seconds, Spread, Table

if typing.TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

PAGE = "report.html"


@dataclass
class Part:
    """A part of a page: a title and, if given, a note, lines, figures, tables that have rows, and code."""

    title: str
    note: str = ""
    figures: list[tuple[Any, str]] = field(default_factory=list)  # SVG or image as Markup, and its caption
    tables: list[Table] = field(default_factory=list)
    sorts: bool = False  # whether the tables can be sorted
    lines: list[str] = field(default_factory=list)
    code: str = ""


@dataclass
class View:
    """A run or a study on a page: a sentence on what was run, its main results (``answer``), and the parts."""

    name: str
    sentence: str
    answer: list[str]
    parts: list[Part]


def render_page(title: str, views: Sequence[View], overview: Part | None = None) -> str:
    """A self-contained page that works without JavaScript. ``overview`` comes before several views."""
    return render(PAGE, title=title, views=views, overview=overview)


def render(template: str, **values: Any) -> str:
    """A template of the folder ``templates``, with everything escaped that is not Markup."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # names of classes, files and folders may hold anything
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["spread"] = lambda cell: isinstance(cell, Spread)
    environment.tests["seconds"] = lambda cell: isinstance(cell, Seconds)
    environment.tests["heat"] = lambda cell: isinstance(cell, Heat)
    environment.tests["links"] = lambda cell: isinstance(cell, list)
    return environment


def svg(figure: Figure, label: str, name: str, light: bool = False) -> tuple[Any, str]:
    """A figure of a ``Part``, with ``label`` as its caption; ``name`` makes its ids unique in the page.

    ``light``: it has colours besides those of the style, and keeps a white background in the dark theme.
    """
    from markupsafe import Markup

    return Markup(inline_svg(figure, label, name, light)), label


def image(content: bytes, label: str) -> tuple[Any, str]:
    """An SVG file as a figure of a ``Part``: drawn as it is, apart from the page's style."""
    import base64

    from markupsafe import Markup, escape

    source = f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}"
    return Markup(f'<img alt="{escape(label)}" src="{source}">'), label

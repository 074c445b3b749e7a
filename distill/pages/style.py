"""The style of all figures: palette, fonts, and files whose bytes depend only on the figure."""

from __future__ import annotations

import io
import typing
from collections.abc import Callable, Sequence
from contextlib import _GeneratorContextManager
from pathlib import Path
from typing import Any

from distill.environment import matplotlib_style
from distill.errors import one_line
from distill.files import Content, write_together
from distill.program import complain

if typing.TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's palette, which colour-blind readers can distinguish, and markers for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
LINES: tuple[Any, ...] = ("-", "--", ":")
STEPS = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39")  # of viridis, dark to light
MOST_ARMS = 2 * len(COLOURS)  # in a figure: as many as colours and dashes tell apart
FONT = 8  # points, everywhere
DPI = 150
STYLE: dict[Any, Any] = {
    "font.size": FONT,
    "axes.titlesize": FONT,
    "axes.labelsize": FONT,
    "figure.titlesize": FONT,
    "figure.labelsize": FONT,
    "figure.constrained_layout.use": True,
    "legend.fontsize": FONT,
    "legend.title_fontsize": FONT,
    "xtick.labelsize": FONT,
    "ytick.labelsize": FONT,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "distill",
    "svg.fonttype": "none",  # text is text
    "pdf.fonttype": 42,  # whole fonts are embedded, as TrueType
}
UNDATED = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


T = typing.TypeVar("T")


def styled() -> _GeneratorContextManager[None]:
    """Draw in this style, as a context or as a decorator."""
    return matplotlib_style(STYLE)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, ``width`` by ``height`` inches, that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], *notes: str) -> None:
    """Draw a legend above the panels, in as many columns as fit, below those of ``notes`` that are not empty."""
    title = "; ".join(filter(None, notes)) or None
    entry = FONT / 72 * (6 + 0.55 * max(map(len, labels), default=0))  # inches: the line and its gaps, the letters
    columns = max(1, int(figure.get_figwidth() / entry))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, title=title, alignment="left")


def describe(artist: Any, texts: Sequence[str]) -> None:
    """Give each marker of a line a text that the page shows under the pointer."""
    artist.texts_of_markers = list(texts)


def line_style(i: int) -> dict[str, Any]:
    """Colour, marker and line of the ``i``-th of several arms; dashed after the seventh."""
    i, again = i % len(COLOURS), i // len(COLOURS)
    return {"color": COLOURS[i], "marker": MARKERS[i], "linestyle": LINES[min(again, 1)]}


def thinned(arms: Sequence[T]) -> list[T]:
    """The arms that figures show: all, or ``MOST_ARMS`` at equal distances, the first and the last among them."""
    if len(arms) <= MOST_ARMS:
        return list(arms)
    return [arms[round(i * (len(arms) - 1) / (MOST_ARMS - 1))] for i in range(MOST_ARMS)]


def thinned_words(arms: Sequence[object]) -> str:
    """The number of arms in a figure, such as ``14 of 30 arms``, for its legend; empty if the figure shows all."""
    return f"{MOST_ARMS} of {len(arms)} arms" if len(arms) > MOST_ARMS else ""


def step_colour(k: int, steps: int) -> str:
    """The colour of the ``k``-th of several steps, from dark to light."""
    return STEPS[round(k * (len(STEPS) - 1) / max(1, steps - 1))]


@styled()
def rendered(figure: Figure, kind: str, dpi: int = DPI) -> bytes:
    """A figure as the bytes of a png, svg or pdf file, without dates: the same bytes for the same figure."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the layout is the same for all kinds of files, and takes half of the time
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=dpi, metadata=UNDATED[kind])
    return content.getvalue()


def save(figure: Figure, stem: Path) -> None:
    """Write a figure as ``stem``.png, .svg and .pdf. Raises OSError."""
    files: dict[Path, Content] = {stem.with_name(f"{stem.name}.{kind}"): rendered(figure, kind) for kind in UNDATED}
    write_together(files)


def draw(stem: Path, figure: Callable[..., Figure], *arguments: Any) -> None:
    """Save ``figure(*arguments)`` as ``save`` does. A failure is a note on standard error and ends no run."""
    try:
        save(figure(*arguments), stem)
    except Exception as error:
        complain(f"note: no figure {one_line(str(stem))} ({type(error).__name__}: {one_line(error)})")

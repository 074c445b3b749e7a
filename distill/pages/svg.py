"""A Matplotlib figure as SVG inside a page: text as text, colours as CSS variables, values under the pointer."""

from __future__ import annotations

import re
import typing
import xml.etree.ElementTree as ET
from typing import Any

from distill.pages.style import COLOURS, STEPS, rendered

if typing.TYPE_CHECKING:
    from matplotlib.figure import Figure

SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"
GREYS = ("#808080", "#999999", "#b0b0b0", "#cccccc")
VARIABLES = {
    **{colour.lower(): f"var(--s{i})" for i, colour in enumerate(STEPS)},
    **{colour.lower(): f"var(--c{i})" for i, colour in enumerate(COLOURS)},
    **dict.fromkeys(GREYS, "var(--line)"),
    **{"#000000": "var(--ink)", "#ffffff": "var(--paper)"},
}


def inline_svg(figure: Figure, label: str, name: str, light: bool = False) -> str:
    """A figure as an ``<svg>`` element that a screen reader calls ``label``; ``name`` makes its ids unique."""
    described: list[Any] = [artist for artist in figure.findobj() if hasattr(artist, "texts_of_markers")]
    for i, artist in enumerate(described):
        artist.set_gid(f"marked-{i}")
    root = ET.fromstring(rendered(figure, "svg"))
    for i, artist in enumerate(described):
        _add_titles(root, f"marked-{i}", artist.texts_of_markers)
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag == f"{SVG}metadata"]:
            parent.remove(child)
    used = set(re.findall(r"#([\w-]+)", " ".join(value for each in root.iter() for value in each.attrib.values())))
    for element in root.iter():
        _simplify(element, name, used)
    width = float(root.attrib.pop("width").removesuffix("pt"))
    root.attrib.pop("height")
    root.attrib |= {"role": "img", "aria-label": label, "style": f"width:{width / 10:.1f}rem"}
    if light:
        root.attrib["class"] = "light"
    text = ET.tostring(root, encoding="unicode", short_empty_elements=True)
    text = re.sub(r"\sxmlns(:\w+)?=\"[^\"]*\"", "", text)
    return re.sub(r">\s+<", "><", re.sub(r"(</?)(?:\w+:)", r"\1", text))


def _add_titles(root: ET.Element, gid: str, texts: list[str]) -> None:
    """Give the markers of a line their texts, unless some markers are outside the figure."""
    for group in root.iter(f"{SVG}g"):
        if group.get("id") == gid:
            markers = list(group.iter(f"{SVG}use"))
            if len(markers) == len(texts):
                for marker, text in zip(markers, texts, strict=True):
                    ET.SubElement(marker, f"{SVG}title").text = text


def _simplify(element: ET.Element, name: str, used: set[str]) -> None:
    """Shorten numbers, replace colours by variables, make ids unique and drop those that nothing refers to."""
    attributes = element.attrib
    if HREF in attributes:
        target = attributes.pop(HREF)
        attributes["href"] = f"#{name}-{target[1:]}" if target.startswith("#") else target  # or an embedded image
    if "id" in attributes:
        identifier = attributes.pop("id")
        if identifier in used:
            attributes["id"] = f"{name}-{identifier}"
    if "clip-path" in attributes:
        attributes["clip-path"] = attributes["clip-path"].replace("url(#", f"url(#{name}-")
    for key in ("d", "x", "y", "transform", "points"):
        if key in attributes:
            attributes[key] = " ".join(re.sub(r"(\d+\.\d)\d+", r"\1", attributes[key]).split())
    if "style" in attributes:
        style = re.sub(r"font-family:[^;]*;?|stroke-miterlimit:[^;]*;?", "", attributes["style"].replace("; ", ";"))
        style = re.sub(r"#[0-9a-f]{6}", lambda found: VARIABLES.get(found.group(), found.group()), style)
        attributes["style"] = style.replace(": ", ":").strip("; ")

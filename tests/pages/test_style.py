import time
import xml.etree.ElementTree as ET

import matplotlib
import pytest

from distill.pages.style import COLOURS, FONT, line_style, new_figure, save, styled


@styled()
def drawing():
    figure = new_figure(2, 2)
    figure.add_subplot(title="a title").plot([1, 2], [3, 4], **line_style(0), clip_on=True)
    return figure


@pytest.mark.page
def test_a_figure_is_saved_as_png_and_svg_that_are_the_same_every_time(tmp_path, monkeypatch):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    save(drawing(), tmp_path / "one" / "v1.5")  # a name with a dot is no suffix
    monkeypatch.setattr(time, "time", lambda: 2e9)
    save(drawing(), tmp_path / "two" / "v1.5")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["v1.5.pdf", "v1.5.png", "v1.5.svg"]
    for name in ("v1.5.png", "v1.5.svg", "v1.5.pdf"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert (tmp_path / "one" / "v1.5.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert ET.parse(tmp_path / "one" / "v1.5.svg").getroot().tag.endswith("svg")


def test_the_style_holds_while_drawing_and_not_after():
    before = matplotlib.rcParams["font.size"]
    assert drawing().axes[0].title.get_fontsize() == FONT
    assert matplotlib.rcParams["font.size"] == before != FONT


@pytest.mark.parametrize("i", [0, 6, 7, 13])
def test_fourteen_arms_can_be_told_apart(i):
    styles = [tuple(line_style(k).values()) for k in range(2 * len(COLOURS))]
    assert styles.count(styles[i]) == 1


@pytest.mark.page
def test_text_is_text_in_svg_and_fonts_are_embedded_in_pdf(tmp_path):
    save(drawing(), tmp_path / "x")
    texts = [element.text for element in ET.parse(tmp_path / "x.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert "a title" in texts
    assert b"/FontFile2" in (tmp_path / "x.pdf").read_bytes()

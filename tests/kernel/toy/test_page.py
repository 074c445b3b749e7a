"""report.html of the kernel program, of the toy and of real data."""

import math
import re

import pytest

from distill.kernel.toy.page import CAPTIONS, chain_table
from distill.kernel.toy.program import DEFAULT_CHAINS, main

pytestmark = pytest.mark.page


@pytest.fixture
def page(tmp_path, capsys, monkeypatch):
    """A function: the page of a command, and what was printed."""

    def show(*words):
        command = [*words, "--report", "--output", str(tmp_path)]
        monkeypatch.setattr("sys.argv", ["krr_toy.py", *command])
        assert main(command) == 0
        return (tmp_path / "report.html").read_text(encoding="utf-8"), capsys.readouterr().out

    return show


def test_the_page_of_the_toy(page):
    html, out = page()
    assert "rbf kernel, gamma = 80, lambda = 0.2, 11 points." in html
    assert "Least loss: 0.14915, alpha = 0, fit 3" in html
    assert re.findall(r'--v:1\.000">([\d.]+)<', html) == re.findall(r"([\d.]+)\*", out) == ["0.14915", "0.14948"]
    assert len(re.findall("<svg", html)) == 9
    assert re.search(r"SHA-256 of the training points: [0-9a-f]{64}<", html)
    assert "scikit-learn</th>" in html
    assert "with ground truth)</figcaption>" in html
    assert {"fit 1", "data", "greedy", "best"} <= set(re.findall("<title>([^:<]*): ", html))
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", html)
    assert "python krr_toy.py --report --output " in html
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert len(html) < 500_000


@pytest.mark.parametrize("drawn", [True, False])
def test_the_page_of_real_data(page, drawn):
    html, _ = page("--dataset", "digits", "--train-size", "60", "--test-size", "30", *(["--no-figures"] * (not drawn)))
    assert "digits: 60 training points with 64 inputs, 10 classes, 30 test points. rbf kernel" in html
    assert "Chosen by generalised cross-validation: fit " in html
    for name in ("lambda", "risk_map", "lambda_map", "spectrum") if drawn else ():
        assert f"<figcaption>{CAPTIONS[name]}" in html
    assert ("No figures were drawn." in html) != drawn


def test_a_chain_that_diverges_is_named():
    table = chain_table("Loss", DEFAULT_CHAINS, [1, math.inf], [[0.5, 0.25], [0.5, math.inf]], min)
    assert [str(cell) for cell in table.rows[1]] == ["∞", "0.25000", "diverges"]
    assert [cell.share for cell in table.rows[0][1:]] == [0, 1]

"""kernel/toy/program.py and options.py: the program from its options to its files."""

import csv
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import ROOT
from toys import rows, run

from distill.kernel.toy import data as toy_data

FIGURES = {"distill_no_GT", "distill_GT", "B_no_GT", "B_GT", "Rk_no_GT", "Rk_GT", "self_distill"}
FIGURES |= {"risk_map", "best_alpha"}


@pytest.mark.page
def test_default_table_is_the_golden_one(capsys, tmp_path):
    code, out, err = run(capsys, "--output", tmp_path)
    assert (code, err) == (0, "")
    assert rows(out) == [
        ["1", "0.16477", "0.16477"],
        ["2", "0.15076", "0.15424"],
        ["3", "0.14915*", "0.15089"],
        ["4", "0.15561", "0.14983"],
        ["5", "0.16735", "0.14954"],
        ["6", "0.18251", "0.14948*"],
        ["∞", "0.49505", "0.14959"],
    ]
    assert {path.stem for path in tmp_path.iterdir()} == FIGURES
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())


def test_all_figures_are_in_the_repository():
    names = {path.stem for path in (ROOT / "figures").glob("*.png")}
    assert names >= FIGURES


def test_csv_holds_the_losses_in_full(capsys, tmp_path):
    path = tmp_path / "new" / "loss.csv"
    run(capsys, "--no-figures", "--csv", path, "--alpha", 0.35, -0.5, "--alpha-schedule", 0.2, 0.4)
    with open(path, newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["alpha"] for row in table] == ["0.35"] * 7 + ["-0.5"] * 7 + ["schedule"] * 7
    assert [row["step"] for row in table[:7]] == ["1", "2", "3", "4", "5", "6", "inf"]
    data = toy_data.toy()
    folds, _ = toy_data.make_folds(data, "rbf", 80.0, 0)
    expected = [
        toy_data.chain_losses(folds, 0.2, alpha, [1, 2, 3, 4, 5, 6, math.inf]) for alpha in (0.35, -0.5, (0.2, 0.4))
    ]
    # Shortest digits lose nothing. The tolerance is for arrays at other addresses, which BLAS may sum in another order.
    np.testing.assert_allclose([float(row["loss"]) for row in table], np.ravel(expected), rtol=1e-13)
    assert all(repr(float(row["loss"])) == row["loss"] for row in table)
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]


def test_a_million_steps(capsys):
    _, out, _ = run(capsys, "--no-figures", "--distillation-steps", 10**6, "--alpha", 0, 0.35, -0.5)
    last, limit = rows(out)[-2:]
    assert last == ["1000001", "0.49505", "0.14959", "diverges"]
    assert limit[1:] == last[1:]
    assert "∞" in limit


def test_schedules_and_auto(capsys):
    _, out, _ = run(capsys, "--no-figures", "--alpha", "auto", "--alpha-schedule", 0.2, 0.4)
    auto, schedule = np.array([row[1:] for row in rows(out)]).T
    assert auto[1] == "0.14834*"  # the greedy best weight's golden risk
    assert "auto: alpha = -0.62184, 0.33036, 0.33476, 0.33577, 0.33604" in out
    # y1, then 0.2, then 0.4 for ever, by direct solves
    data = toy_data.toy()
    K, K_new = (toy_data.kernel_matrix("rbf", x, data.x, 80.0) for x in (data.x, data.x_truth))
    target = data.y
    losses = []
    for alpha in (0.2, 0.4, 0.4, 0.4, 0.4, 0.4):
        c = np.linalg.solve(K + 0.2 * np.eye(11), target)
        losses.append(f"{np.mean((K_new @ c - data.truth) ** 2):.5f}")
        target = alpha * data.y + (1 - alpha) * (K @ c)
    assert [cell.rstrip("*") for cell in schedule[:6]] == losses


def test_negative_alpha_in_any_notation(capsys):
    outs = [run(capsys, "--no-figures", "--alpha", text)[1] for text in ("-1e-3", "-0.001", "-.1e-2")]
    assert outs[0] == outs[1] == outs[2]
    assert "alpha = -0.001" in outs[0]


def test_figures_are_named_by_alpha(capsys, tmp_path, nothing_drawn):
    run(capsys, "--output", tmp_path, "--alpha", 0.5, 0, 0.5, "--dpi", 30, "--format", "svg")
    names = {path.name for path in tmp_path.iterdir()}
    assert {"B_alpha_0.5.svg", "Rk_alpha_0.0.svg", "distill_alpha_0.5.svg", "self_distill.svg"} <= names
    assert len(names) == 9


@pytest.mark.parametrize(
    "options",
    [
        ["--alpha", "nan"],
        ["--alpha", "inf"],
        ["--alpha", "-inf"],
        ["--alpha", "x"],
        ["--alpha"],
        ["--alpha-schedule", "auto"],
        ["--lam", "-1"],
        ["--lambda", "nan"],
        ["--gamma", "-2"],
        ["--distillation-steps", "-1"],
        ["--distillation-steps", "1.5"],
        ["--kernel", "sigmoid"],
        ["--n", "0"],
        ["--n", "1000000"],
        ["--noise", "-1"],
        ["--data", "missing.csv"],
        ["--data", "x.csv", "--n", "5"],
        ["--data", "."],
        ["--output", "/dev/null/figures"],
        ["--output", "taken"],
        ["--csv", "/dev/null/x.csv"],
        ["--csv", "."],
        ["--lam", "0", "--gamma", "0"],
        ["--kernel", "polynomial", "--gamma", "1e9", "--data", "big.csv"],
        ["--format", "bmp"],
        ["--dpi", "0"],
        ["--unknown"],
        ["--interactive"],
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_and_writes_nothing(capsys, tmp_path, monkeypatch, nothing_drawn, options):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("distill.kernel.linalg.available_memory", lambda: 2**33)
    Path("taken").write_text("a file where a folder is wanted")
    Path("big.csv").write_text("x,y\n1e90,1\n2e90,1\n")
    code, out, err = run(capsys, "--dpi", 30, *options)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "error: " in err
    assert "Traceback" not in err
    assert sorted(os.listdir()) == ["big.csv", "taken"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kernel", "polynomial", "--gamma", 1e100], "--gamma 1e+100: --kernel polynomial cubes it"),
        (["--kernel", "linear", "--gamma", 0], "--gamma is for the other kernels: leave it out"),
        (["--csv", ""], "argument --csv: must not be empty"),
    ],
)
def test_the_option_that_is_wrong_is_named(capsys, tmp_path, options, message):
    code, out, err = run(capsys, "--no-figures", "--output", tmp_path, *options)
    assert (code, out) == (2, "")
    assert message in err


def test_files_are_all_written_or_none(capsys, tmp_path, nothing_drawn):
    (tmp_path / "risk_map.png").mkdir()
    code, out, err = run(capsys, "--output", tmp_path, "--csv", tmp_path / "loss.csv", "--dpi", 30)
    assert (code, out) == (2, "")
    assert "risk_map.png: it is a folder" in err
    assert [path.name for path in tmp_path.iterdir()] == ["risk_map.png"]


@pytest.mark.parametrize(
    ("typed", "name"), [("krr_toy.py", "krr_toy.py"), ("/usr/bin/krr-toy", "krr-toy"), ("pytest", "krr_toy.py")]
)
def test_errors_begin_with_the_name_that_was_typed(capsys, monkeypatch, typed, name):
    monkeypatch.setattr(sys, "argv", [typed])
    for option in (["--dpi", "0"], ["--data", "missing.csv"]):
        code, _, err = run(capsys, *option)
        assert code == 2
        assert err.startswith(f"{name}: error: ")


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("from distill.kernel.toy import program; program.parse([])", {"torch", "numpy", "matplotlib"}),
        (
            "from distill import krr; from distill.kernel.toy import program; program.main(['--no-figures'])",
            {"torch", "sklearn", "matplotlib"},
        ),
        ("import distill.kernel.toy.figures, distill.kernel.toy.window", {"torch", "sklearn"}),
        ("import distill.estimator", {"torch", "matplotlib"}),
    ],
)
def test_imports_stay_light(code, absent):
    probe = f"import sys; {code}; print('found', {absent} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "found set()"

"""The kernel experiment: the program from options to files, losses by refits, figures read back."""

import csv
import itertools
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from kernels import diagonals_by_recursion, fitted_values
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tiny import ROOT

from distill import krr
from distill.kernel.toy import data as toy_data
from distill.kernel.toy import figures as toy_figures
from distill.kernel.toy import program as toy
from distill.kernel.toy.window import Window

SEED_FIGURES = {"distill_no_GT", "distill_GT", "B_no_GT", "B_GT", "Rk_no_GT", "Rk_GT", "self_distill"}


def run(capsys, *options):
    """Exit code, standard output and standard error of the program."""
    try:
        code = toy.main([str(option) for option in options])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def rows(table):
    """The table's cells by row."""
    lines = table.splitlines()
    start = 1 + next(i for i, line in enumerate(lines) if line.strip().startswith("fit "))
    return [line.split() for line in itertools.takewhile(str.strip, lines[start:])]


# ---- the program


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
    assert {path.stem for path in tmp_path.iterdir()} == SEED_FIGURES | {"risk_map", "best_alpha"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())


def test_the_committed_figures_are_all_there():
    names = {path.stem for path in (ROOT / "figures").glob("*.png")}
    assert names >= SEED_FIGURES | {"risk_map", "best_alpha"}


@pytest.mark.parametrize("file_format", ["png", "pdf", "svg"])
def test_the_same_figure_is_the_same_bytes(file_format):
    files = {toy_figures.render(toy_figures.chain_drawing(), file_format, 40) for _ in range(2)}
    assert len(files) == 1


def test_csv_holds_the_losses_in_full(capsys, tmp_path):
    path = tmp_path / "new" / "loss.csv"
    run(capsys, "--no-figures", "--csv", path, "--alpha", 0.35, -0.5, "--alpha-schedule", 0.2, 0.4)
    with open(path, newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["alpha"] for row in table] == ["0.35"] * 7 + ["-0.5"] * 7 + ["schedule"] * 7
    assert [row["step"] for row in table[:7]] == ["1", "2", "3", "4", "5", "6", "inf"]
    data = toy_data.toy()
    parts, _ = toy_data.folds(data, "rbf", 80.0, 0)
    expected = [toy_data.losses(parts, 0.2, alpha, [1, 2, 3, 4, 5, 6, math.inf]) for alpha in (0.35, -0.5, (0.2, 0.4))]
    assert [float(row["loss"]) for row in table] == list(np.ravel(expected))
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]


def test_a_million_steps_cost_no_more_than_five(capsys):
    start = time.perf_counter()
    _, out, _ = run(capsys, "--no-figures", "--distillation-steps", 10**6, "--alpha", 0, 0.35, -0.5)
    assert time.perf_counter() - start < 2
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
    target, losses = data.y, []
    for alpha in (0.2, 0.4, 0.4, 0.4, 0.4, 0.4):
        c = np.linalg.solve(K + 0.2 * np.eye(11), target)
        losses.append(f"{np.mean((K_new @ c - data.truth) ** 2):.5f}")
        target = alpha * data.y + (1 - alpha) * (K @ c)
    assert [cell.rstrip("*") for cell in schedule[:6]] == losses


def test_negative_alpha_in_any_notation(capsys):
    outs = [run(capsys, "--no-figures", "--alpha", text)[1] for text in ("-1e-3", "-0.001", "-.1e-2")]
    assert outs[0] == outs[1] == outs[2]
    assert "alpha = -0.001" in outs[0]


def test_figures_are_named_by_alpha(capsys, tmp_path):
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
        ["--csv", "/dev/null", "--no-figures"],
        ["--lam", "0", "--gamma", "0"],
        ["--kernel", "polynomial", "--gamma", "1e99", "--data", "big.csv"],
        ["--format", "bmp"],
        ["--dpi", "0"],
        ["--unknown"],
        ["--interactive"],
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_and_leaves_nothing(capsys, tmp_path, monkeypatch, options):
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


def test_nothing_is_half_written(capsys, tmp_path):
    (tmp_path / "risk_map.png").mkdir()
    code, out, err = run(capsys, "--output", tmp_path, "--csv", tmp_path / "loss.csv", "--dpi", 30)
    assert (code, out) == (2, "")
    assert "risk_map.png: it is there and is no regular file" in err
    assert [path.name for path in tmp_path.iterdir()] == ["risk_map.png"]


def test_help_is_fast():
    times = []
    for _ in range(3):  # the best of three, because the machine may be at work
        start = time.perf_counter()
        done = subprocess.run([sys.executable, ROOT / "krr_toy.py", "--help"], capture_output=True)
        times.append(time.perf_counter() - start)
        assert done.returncode == 0
        assert b"--alpha-schedule" in done.stdout
    assert min(times) < 0.5


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import distill.kernel.toy.program", {"torch", "numpy", "matplotlib"}),
        ("from distill import krr", {"torch", "sklearn", "matplotlib"}),
        ("from distill.kernel.toy.program import main; main(['--no-figures'])", {"torch", "sklearn", "matplotlib"}),
        ("import distill.kernel.toy.figures, distill.kernel.toy.window", {"torch", "sklearn"}),
        ("import distill.estimator", {"torch", "matplotlib"}),
    ],
)
def test_imports_stay_light(code, absent):
    probe = f"import sys; {code}; print('found', {absent} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "found set()"


# ---- data and losses


def write_csv(path, columns):
    names, values = zip(*columns.items(), strict=True)
    lines = [",".join(names), *(",".join(map(repr, row)) for row in zip(*values, strict=True))]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_leave_one_out_is_refits_without_each_point(capsys, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.uniform(size=12).tolist()
    y = rng.standard_normal(12).tolist()
    path = write_csv(tmp_path / "points.csv", {"y": y, "x": x})
    _, out, _ = run(capsys, "--data", path, "--alpha", 0.3, "--no-figures")
    assert "leave-one-out mean squared error over 12 points" in out
    x, y = np.array(x), np.array(y)
    errors = np.zeros((6, 12))
    for i in range(12):
        keep = np.arange(12) != i
        K = np.exp(-80 * (x[keep, None] - x[keep]) ** 2)
        target = y[keep]
        for step in range(6):
            c = np.linalg.solve(K + 0.2 * np.eye(11), target)
            errors[step, i] = np.exp(-80 * (x[i] - x[keep]) ** 2) @ c - y[i]
            target = 0.3 * y[keep] + 0.7 * (K @ c)
    expected = [f"{value:.5f}" for value in (errors**2).mean(axis=1)]
    assert [row[1].rstrip("*") for row in rows(out)[:6]] == expected


def test_many_points_are_held_out_and_said_so(capsys, tmp_path):
    rng = np.random.default_rng(1)
    x = rng.uniform(size=250)
    path = write_csv(tmp_path / "p.csv", {"x": x.tolist(), "y": (x + rng.normal(size=250)).tolist()})
    _, out, _ = run(capsys, "--data", path, "--no-figures", "--seed", 7)
    assert "held-out mean squared error on 50 of 250 points (seed 7)" in out
    assert out == run(capsys, "--data", path, "--no-figures", "--seed", 7)[1]
    assert rows(out) != rows(run(capsys, "--data", path, "--no-figures", "--seed", 8)[1])


def test_a_truth_column_is_what_the_loss_is_against(capsys, tmp_path):
    data = toy_data.toy()
    truth = toy_data.sinusoid(data.x)
    columns = {"x": data.x.tolist(), "y": data.y.tolist(), "truth": truth.tolist()}
    _, out, _ = run(capsys, "--data", write_csv(tmp_path / "t.csv", columns), "--no-figures", "--alpha", 1)
    assert "against the truth at 11 points" in out
    K = toy_data.kernel_matrix("rbf", data.x, data.x, 80.0)
    fit = K @ np.linalg.solve(K + 0.2 * np.eye(11), data.y)
    assert rows(out)[0][1] == f"{np.mean((fit - truth) ** 2):.5f}*"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "first line"),
        (b"a,b\n1,2\n", "first line"),
        (b"x,y\n", "no rows"),
        (b"x,y\n1,2\n1\n", "line 3"),
        (b"x,y\n1,2\n\n3,x\n", "line 4"),
        (b"x,y\n1,nan\n", "line 2"),
        (b"x,y,truth\n1,2,\n", "line 2"),
        (b"\xff\xfe\x00\x81", "UTF-8"),
        (b"x,y\n1,2\n", "one point"),
    ],
)
def test_bad_files_are_refused_with_the_line(capsys, tmp_path, content, message):
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    code, _, err = run(capsys, "--data", path, "--no-figures")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_fresh_draw_has_the_noise_and_the_seed_asked_for():
    one, same, other = (toy_data.draw(4000, 0.3, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.y, same.y)
    assert (one.y != other.y).all()
    assert np.std(one.y - toy_data.sinusoid(one.x)) == pytest.approx(0.3, rel=0.05)
    np.testing.assert_array_equal(toy_data.draw(5, 0, 3).y, toy_data.sinusoid(np.linspace(0, 1, 5)))


def test_kernels_are_scikit_learns():
    from sklearn.gaussian_process.kernels import Matern
    from sklearn.metrics.pairwise import laplacian_kernel, polynomial_kernel, rbf_kernel

    x, z = np.linspace(-1, 1, 5), np.linspace(0, 2, 4)
    X, Z = x[:, None], z[:, None]
    expected = {
        "rbf": rbf_kernel(X, Z, gamma=3),
        "laplacian": laplacian_kernel(X, Z, gamma=3),
        "matern12": Matern(length_scale=6**-0.5, nu=0.5)(X, Z),
        "matern32": Matern(length_scale=6**-0.5, nu=1.5)(X, Z),
        "matern52": Matern(length_scale=6**-0.5, nu=2.5)(X, Z),
        "polynomial": polynomial_kernel(X, Z, degree=3, gamma=3, coef0=1),
        "linear": X @ Z.T,
    }
    assert set(expected) == set(toy_data.KERNELS) == set(toy.KERNEL_NAMES)
    for name, kernel in expected.items():
        np.testing.assert_allclose(toy_data.kernel_matrix(name, x, z, 3.0), kernel, rtol=1e-12, err_msg=name)


# ---- figures, read back from their axes


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context(toy_figures.STYLE):
        yield


@pytest.fixture
def arrays():
    rng = np.random.default_rng(3)
    return rng.uniform(0.1, 1, (3, 8)), rng.uniform(0.1, 1, 8)


def test_distill_figure_draws_its_arrays(arrays):
    curves, limit = arrays
    grid, x, y = np.linspace(0, 1, 8), np.array([0.2, 0.6]), np.array([1.0, -1.0])
    axes = toy_figures.distill_figure(x, y, grid, curves, [1, 2, 9], limit, -limit).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    for name, values in {
        "fit 1": curves[0],
        "fit 9": curves[2],
        "limit": limit,
        "truth": -limit,
        "data": y,
    }.items():
        np.testing.assert_array_equal(lines[name].get_ydata(), values)
    assert lines["limit"].get_linestyle() == "--"
    assert len(lines) == 6
    without = toy_figures.distill_figure(x, y, grid, curves, [1, 2, 9], None)
    assert "limit" not in {line.get_label() for line in without.axes[0].lines}


def test_diagonal_figure_draws_nested_bars_and_a_hatched_limit(arrays):
    B, limit = arrays
    axes = toy_figures.diagonal_figure(B, [1, 2, 3], limit).axes[0]
    bars = {container.get_label(): container.patches for container in axes.containers}
    for name, values in zip(["fit 1", "fit 2", "fit 3", "limit"], [*B, limit], strict=True):
        np.testing.assert_array_equal([bar.get_height() for bar in bars[name]], values)
    widths = [bars[f"fit {i}"][0].get_width() for i in (1, 2, 3)]
    assert widths == sorted(widths, reverse=True)
    assert bars["limit"][0].get_hatch() == "////"
    assert bars["fit 1"][0].get_hatch() is None


def test_ratio_figure_has_a_limit_only_where_there_is_one(arrays):
    R, limit = arrays
    axes = toy_figures.ratio_figure(R, [1, 2, 3], limit).axes[0]
    for line, values in zip(axes.lines, [*R, limit], strict=True):
        np.testing.assert_array_equal(line.get_ydata(), values)
    assert [line.get_linestyle() for line in axes.lines] == ["-", "-", "-", "--"]
    assert len(toy_figures.ratio_figure(R, [1, 2, 3], None).axes[0].lines) == 3


def test_the_programs_figures_are_those_of_its_chains(monkeypatch):
    monkeypatch.setattr(toy_figures, "render", lambda figure, *_: figure)
    args = toy.parser().parse_args([])
    data = toy_data.toy()
    parts, name = toy_data.folds(data, "rbf", 80.0, 0)
    chains, steps = toy.columns(args, parts), [1, 2, 3, 4, 5, 6, math.inf]
    drawn = toy_figures.all_figures(data, parts, name, chains, steps, args)
    spectrum = parts[0].spectrum
    B = krr.diagonals(spectrum.d, 0.2, 0.35, steps)
    bars = drawn["B_GT"].axes[0].containers
    np.testing.assert_array_equal([[bar.get_height() for bar in bar_set] for bar_set in bars], B)
    # no false limit of the ratios for alpha = 0, whose limit is 0
    assert "limit" not in {line.get_label() for line in drawn["Rk_no_GT"].axes[0].lines}
    assert "limit" in {line.get_label() for line in drawn["Rk_GT"].axes[0].lines}
    fits = drawn["distill_no_GT"].axes[0]
    at_points = next(line.get_ydata()[::20] for line in fits.lines if line.get_label() == "fit 6")
    direct = fitted_values(spectrum, data.y, diagonals_by_recursion(spectrum.d, 0.2, 0.0, 6))[5]
    np.testing.assert_allclose(at_points, direct, atol=1e-12)  # every twentieth point of the grid is a data point
    risk = np.ma.concatenate([mesh.get_array() for mesh in drawn["risk_map"].axes[0].collections], axis=1)
    alphas = np.linspace(-1, 1, 41)
    np.testing.assert_allclose(risk[27], toy_data.losses(parts, 0.2, alphas[27], steps), rtol=1e-9)
    assert np.ma.getmaskarray(risk)[0].tolist() == [False] * 6 + [True]  # alpha = -1 has no limit
    valley, greedy = (
        drawn["best_alpha"].axes[0].collections[0].get_array(),
        drawn["best_alpha"].axes[0].lines[1],
    )
    np.testing.assert_allclose(greedy.get_ydata()[:2], [-0.62184, 0.33036], atol=5e-6)
    lowest = toy_figures.GRID[np.argmin(valley, axis=0)]
    assert (np.abs(lowest - greedy.get_ydata()) <= 0.0251).all()
    brute = toy_data.losses(parts, 0.2, (greedy.get_ydata()[0], toy_figures.GRID[40]), [3])
    assert valley[40, 1] == pytest.approx(brute[0], rel=1e-9)


def test_risk_map_marks_the_best_cell_and_the_limit():
    risk = np.array([[3.0, 2.0, np.inf], [3.0, 1.0, 4.0], [3.0, 2.5, 2.6]])
    axes = toy_figures.risk_map_figure(np.array([-0.1, 0.0, 0.1]), [1, 2, math.inf], risk, "loss").axes[0]
    star = next(line for line in axes.lines if line.get_marker() == "*")
    assert "1.00000 at fit 2" in star.get_label()
    assert star.get_ydata()[0] == 0.0
    assert star.get_xdata()[0] == axes.get_xticks()[1]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "∞"]
    hatched = [patch for patch in axes.patches if patch.get_hatch()]
    assert [(patch.get_x(), round(patch.get_y(), 3)) for patch in hatched] == [(2.5, -0.15)]


def test_every_figure_has_one_font_size():
    figure = toy_figures.risk_map_figure(np.array([0.0, 0.1]), [1, math.inf], np.array([[1.0, 2], [3, 4]]), "loss")
    texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text()]
    assert {text.get_fontsize() for text in texts} == {toy_figures.FONT}


def test_interactive_window_redraws_as_its_sliders_move():
    figure = Figure(layout="none")
    FigureCanvasAgg(figure)
    data = toy_data.toy()
    window = Window(figure, data, toy.parser().parse_args(["--alpha", "0.35"]))
    assert window.axes.get_title() == "loss 0.14948"
    window.sliders["alpha"].set_val(0.0)
    window.sliders["step"].set_val(3)
    assert window.axes.get_title() == "loss 0.14915"
    window.sliders["log10 lambda"].set_val(1.0)
    window.sliders["log10 gamma"].set_val(1.0)
    K, K_new = (toy_data.kernel_matrix("rbf", x, data.x, 10.0) for x in (data.x, window.grid))
    c = np.linalg.solve(K + 10 * np.eye(11), data.y)
    np.testing.assert_allclose(window.first.get_ydata(), K_new @ c, atol=1e-12)
    window.sliders["log10 lambda"].set_val(-1.0)
    window.sliders["alpha"].set_val(-1.0)
    assert "diverges" in window.axes.get_title()
    assert np.isnan(window.limit.get_ydata()).all()

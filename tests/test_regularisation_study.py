"""studies/regularisation.py: which runs are points of which axis, and its numbers by a second route."""

import itertools

import numpy as np
import pytest
from tiny import DIGITS, ROOT

from distill import krr
from distill.cli import main
from distill.configfile import from_dict, read_toml
from distill.data.load import load_source
from distill.data.splits import make_dataset
from distill.errors import UserError
from studies import regularisation

pytestmark = pytest.mark.slow

WORDS = [*DIGITS, "--alpha", "0", "1", "2", "auto", "--alpha-range", "-3", "3", "--val-size", "20", "--seed", "1", "2"]
WORDS += ["--distillation-steps", "2", "--reg", "l2"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    studies = {"coef": ["--reg-coef", "0.01", "0"], "decay": ["--reg-coef", "0", "--weight-decay", "1", "2"]}
    studies["epochs"] = ["--reg-coef", "0", "--max-epochs", "1", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.reporting.study.report", lambda *_: "")  # figures and pages, which take seconds
        for name, axis in studies.items():
            assert main([*WORDS, *axis, "--output", str(folder / name)]) == 0
    return [folder / name for name in studies]


@pytest.fixture
def points(paths):
    return regularisation.load(paths)


def test_each_axis_begins_with_the_weakest_regularisation(points):
    assert {axis: list(runs) for axis, runs in points.items()} == {
        "reg_coef": [0, 0.01],
        "weight_decay": [0, 1, 2],
        "max_epochs": [2, 1],
    }
    weakest = {next(iter(runs.values())).path.name for runs in points.values()}
    assert len(weakest) == 1  # one run is the first point of all three


def test_the_estimate_and_the_best_of_the_grid(points):
    run = points["reg_coef"][0.01]
    found = [record["auto"] for record in run.records if record["arm"] == "auto" and record["step"] == 2]
    mean, half, error = regularisation.estimated(run, 2)
    low, high = sorted(each["alpha_star"] for each in found)
    assert mean == pytest.approx((low + high) / 2)
    assert half == pytest.approx(12.7062 * (high - low) / 2, rel=1e-5)  # Student's t, one degree of freedom
    assert error == pytest.approx(np.mean([each["standard_error"] for each in found]))
    scores = {arm: sum(run.by_key[seed, arm, 1].val_brier for seed in (1, 2)) for arm in "012"}
    best = regularisation.best_of_grid(run, 1, "val_brier")
    assert scores[best] == min(scores.values())
    table = regularisation.tables({"reg_coef": {0.01: run}})
    assert f"| reg coef 0.01 | {regularisation.teacher_brier(run)[0]:.3f} |" in table
    assert table.count("| reg coef 0.01 ") == 2  # one for each step


def test_the_kernel_twin_by_direct_solves(points, monkeypatch):
    monkeypatch.setattr(regularisation, "RIDGES", np.array([1e-3, 0.1]))
    run = points["reg_coef"][0.0]
    alphas, scores = regularisation.kernel_twin(run)
    data = make_dataset(load_source(run.config.data), run.config.data, 2)
    X, X_val, X_test = (split.images.reshape(len(split), -1) / 255 for split in (data.train, data.val, data.test))
    y, t, t_test = (np.eye(10)[split.labels] for split in (data.train, data.val, data.test))
    kernel = krr.rbf(1 / (2 * np.median([((a - b) ** 2).sum() for a, b in itertools.combinations(X, 2)])))
    K = kernel(X, X)
    lam = 0.1 * np.linalg.eigvalsh(K)[-1]
    first = np.linalg.solve(K + lam * np.eye(len(K)), y)
    probe = np.linalg.solve(K + lam * np.eye(len(K)), K @ first)
    f, g = kernel(X_val, X) @ first, kernel(X_val, X) @ probe
    assert alphas[1, 1] == pytest.approx(((t - g) * (f - g)).sum() / ((f - g) ** 2).sum(), rel=1e-6)
    assert scores[1, 1] == pytest.approx(((kernel(X_test, X) @ first - t_test) ** 2).sum(axis=1).mean(), rel=1e-6)


def test_the_figure_has_a_column_for_each_axis_and_the_twin(points, monkeypatch):
    monkeypatch.setattr(regularisation, "RIDGES", np.array([1e-3, 0.1]))
    panels = regularisation.figure(points).axes
    assert [len(axes.get_xticks()) for axes in panels[4:7]] == [2, 3, 2]
    means = panels[0].containers[0].lines[0].get_ydata()
    np.testing.assert_allclose(means, [regularisation.estimated(run, 1)[0] for run in points["reg_coef"].values()])


def test_an_unfinished_study_is_one_line(paths, points, tmp_path):
    (tmp_path / "config.toml").write_bytes((paths[0] / "config.toml").read_bytes())
    with pytest.raises(UserError):
        regularisation.load([tmp_path])


@pytest.mark.parametrize("name", ["digits", "cifar"])
def test_the_configurations_are_what_the_study_says(name):
    config = from_dict(read_toml(ROOT / f"studies/{name}_regularised.toml"))
    assert (config.train.loss, config.train.reg, config.train.reg_coef) == ("mse", "l2", 0)
    assert (config.chain.alpha_range, len(config.chain.seed), config.chain.distillation_steps) == ((-4, 4), 10, 2)

"""studies/: every configuration loads, and the numbers of studies/analyse.py by a second route."""

import numpy as np
import pytest
from tiny import ROOT, VALUES, leave_result

from distill.configfile import from_dict, read_toml
from distill.errors import UserError
from distill.reporting.comparison import gains_figure
from distill.reporting.statistics import over_seeds
from distill.store.rundir import RunDir
from studies import theory
from studies.analyse import cost, format_change, main, read, tables


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*_[cn]*.toml")), ids=lambda path: path.stem)
def test_every_study_is_the_grid_that_its_readme_says(path):
    config = from_dict(read_toml(path))
    assert config.chain.alpha == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, "auto")
    assert config.chain.distillation_steps == 5
    assert len(config.chain.seed) >= 3
    assert f"--config studies/{path.name} --output runs/{path.stem}" in path.read_text()


def test_a_difference_is_bold_where_its_interval_leaves_zero_out():
    assert format_change(over_seeds([0.1, 0.11, 0.12])) == "**+0.110 ± 0.025**"
    assert format_change(over_seeds([-0.1, 0.11, 0.12])) == "+0.043 ± 0.309"
    assert format_change(over_seeds([0.1])) == "+0.100 ± nan"


@pytest.fixture
def study(tmp_path):
    """Two seeds, alpha 0.2 and auto, two steps; accuracy rises by 0.1 a step at 0.2 and by 0.05 under auto."""
    rundir = RunDir(tmp_path)
    (tmp_path / "config.toml").write_text(
        '[data]\nval_size = 9\n[chain]\nalpha = [0.2, "auto"]\nseed = [1, 2]\ndistillation_steps = 2\n'
    )
    for seed in (1, 2):
        leave_result(rundir, seed=seed, test_acc=0.3 * seed, test_brier=0.4)
        for step in (1, 2):
            base = {"seed": seed, "step": step, "alpha": 0.2, "seconds": 10.0}
            acc = 0.3 * seed + 0.1 * step
            leave_result(rundir, **base, arm="0.2", test_acc=acc, test_brier=0.4 - 0.1 * step, val_brier=0.2)
            base |= {"arm": "auto", "alpha": 0.125, "epochs": int(step == 2), "test_brier": 0.3}
            leave_result(rundir, **base, test_acc=0.3 * seed + 0.05 * step)
            leave_result(rundir, **base | {"arm": "auto probe", "epochs": 2})
    return read(tmp_path)


def test_a_probe_that_was_taken_costs_one_training(study):
    assert cost(study, ["0.2"]) == (4, 40.0)
    assert cost(study, ["auto"]) == (6, 60.0)  # two probes a seed, and the student of step 2


def test_the_tables_say_where_auto_lands(study):
    text = tables(study)
    assert "| alpha = 0.2 | **+0.100 ± 0.000** | **+0.200 ± 0.000** |" in text
    assert "by the held-out Brier score: rank 2 of 2" in text  # 0.5 against 0.2
    assert "Brier score **+0.100 ± 0.000** against the grid's choice by that score (alpha = 0.2)" in text
    assert "accuracy **-0.100 ± 0.000** against its choice by held-out accuracy (alpha = 0.2)" in text
    assert "6 trainings and 60 s against the grid's 4 and 40 s (150%)" in text


def test_the_figure_is_of_the_changes(study):
    upper, lower = gains_figure([study]).axes
    line, _, _ = upper.containers[0]
    np.testing.assert_allclose(line.get_ydata(orig=False), [0.1, 0.2])
    line, _, _ = lower.containers[1]
    np.testing.assert_allclose(line.get_ydata(orig=False), [-0.1, -0.1])
    assert VALUES["arm"] is None


def test_the_figure_is_of_the_kind_that_its_name_says(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["analyse", str(study.path), "--figure", str(tmp_path / "x.svg")])
    main()
    assert "<svg" in (tmp_path / "x.svg").read_text()
    monkeypatch.setattr("sys.argv", ["analyse", str(study.path), "--figure", str(tmp_path / "x.gif")])
    with pytest.raises(SystemExit):
        main()
    assert "the name must end in .png, .svg or .pdf" in capsys.readouterr().err


def test_an_unfinished_run_is_one_line(study):
    (study.path / "seed_2/alpha_auto/step_2/result.json").unlink()
    with pytest.raises(UserError, match="is not finished: seed 2 lacks 1 model"):
        read(study.path)


def test_the_figures_of_the_theory(tmp_path, monkeypatch):
    monkeypatch.setattr(theory, "SPIKES", (30.0,))
    monkeypatch.setattr(theory, "MOST_FITS", 2)
    theory.main(["--output", str(tmp_path / "figures")])
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"fresh_labels.png", "spikes.png", "predictive_variance.png"}


def test_a_folder_for_the_figures_that_cannot_be_made_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as end:
        theory.main(["--output", str(tmp_path / "file")])
    assert end.value.code == 2
    assert "--output: " in capsys.readouterr().err


def test_students_for_each_spike_reach_the_floor_of_the_covariance_but_not_of_a_sample():
    excess = theory.excess_risks(1, None)
    assert excess[0] > 1e-3 > 1e-12 > excess[1]
    sample = theory.excess_risks(1, 3000)
    assert 1e-5 < sample[1] < sample[0] < 1e-3

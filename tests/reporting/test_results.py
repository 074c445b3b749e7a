"""The results of a run as an object: tables, paired gains, the best arm, folders."""

import math
import shutil

import numpy as np
import pytest
import scipy.stats
from tiny import VALUES, Grid, config, leave_result, source

import distill
from distill.config import ChainConfig, Config
from distill.configfile import from_dict
from distill.errors import UserError
from distill.reporting.page import chosen
from distill.reporting.results import RunResults
from distill.reporting.run_tables import all_formatted, answer, formatted, gains_table
from distill.store.rundir import RunDir

GRID = Grid()
CHAIN = ChainConfig(alpha=(0.0, 0.6), distillation_steps=1)


def records(held_out: dict[tuple[str | None, int], list[float]]) -> list[dict]:
    """Records of a teacher and a student for two arms, with these accuracies on held-out images, one per seed."""
    return [
        VALUES | {"seed": seed, "arm": arm, "step": step, "val_acc": value, "test_acc": value / 2}
        for (arm, step), values in held_out.items()
        for seed, value in enumerate(values, start=1)
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two seeds with held-out images."""
    run = tmp_path_factory.mktemp("loaded") / "run"
    done = distill.run(config(run, seed=[1, 2], val_size=9), source=source())
    assert done == distill.load_run(run)
    return run


def test_paired_gains_are_those_of_a_paired_test():
    gains = GRID.run().paired()
    assert [(gain.arm, gain.step) for gain in gains] == [("0", 1), ("0", 2), ("0.6", 1), ("0.6", 2)]
    expected = [scipy.stats.ttest_rel(GRID.accuracy[:, j, k], GRID.accuracy[:, 0, 0]) for j in (0, 1) for k in (1, 2)]
    np.testing.assert_allclose([gain.difference.p for gain in gains], [test.pvalue for test in expected], rtol=1e-9)
    least = min(gains, key=lambda gain: gain.difference.p)
    assert least.p_holm == pytest.approx(min(1, 4 * least.difference.p))
    against = GRID.run().paired(against="0", step=2)
    assert [(gain.arm, gain.step) for gain in against] == [("0.6", 2)]
    assert GRID.run().paired(against=0, step=2) == against
    with pytest.raises(UserError, match=r"no arm 0.5; it has 0 0.6"):
        GRID.run().paired(against=0.5)
    assert against[0].difference.mean == pytest.approx((GRID.accuracy[:, 1, 2] - GRID.accuracy[:, 0, 2]).mean())


def test_only_seeds_that_have_both_models_count():
    part = [record for record in GRID.records() if (record["seed"], record["arm"]) != (3, "0.6")]
    gain = RunResults(Config(chain=GRID.chain), part).difference("test_acc", ("0.6", 1), (None, 0))
    assert gain.method == "t, 2 seeds"
    assert gain.mean == pytest.approx((GRID.accuracy[:2, 1, 1] - GRID.accuracy[:2, 1, 0]).mean())


@pytest.mark.parametrize(
    ("held_out", "best"),
    [
        ({(None, 0): [0.5, 0.6], ("0", 1): [0.7, 0.7], ("0.6", 1): [0.6, 0.9]}, ("0.6", 1)),
        ({(None, 0): [0.5, 0.6], ("0", 1): [0.4, 0.5], ("0.6", 1): [0.3, 0.2]}, (None, 0)),
        ({(None, 0): [0.5, 0.1], ("0", 1): [0.6, 0.2], ("0.6", 1): [0.9]}, ("0", 1)),  # unfinished arms do not compete
        ({(None, 0): [0.5]}, (None, 0)),
    ],
)
def test_held_out_images_choose(held_out, best):
    run = RunResults(Config(chain=CHAIN), records(held_out))
    assert run.best().key == best
    assert run.best().val_acc == pytest.approx(np.mean(held_out[best]))
    assert answer(run)[0].startswith("Best by held-out images: " if len(held_out) > 1 else "No student is finished yet")


def test_without_a_readable_teacher_nothing_is_chosen():
    part = [record for record in GRID.records() if record["arm"] is not None]
    run = RunResults(from_dict({"data": {"val_size": 10}, "chain": {"alpha": [0, 0.6]}}), part)
    with pytest.raises(UserError, match="no teacher's record can be read"):
        run.best()
    assert answer(run)[0].startswith("No arm and step can be chosen: no teacher's record")
    assert chosen(run)[0] is None


def test_the_best_student_is_looked_at_if_the_teacher_is_better():
    run = RunResults(
        Config(chain=CHAIN), records({(None, 0): [0.5, 0.6], ("0", 1): [0.4, 0.5], ("0.6", 1): [0.3, 0.2]})
    )
    assert chosen(run) == (("0", 1), "the held-out images choose the teacher; this is their best student")
    teachers = RunResults(Config(chain=CHAIN), records({(None, 0): [0.5]}))
    assert chosen(teachers) == (None, "No student is finished yet")


def test_test_images_never_choose():
    run = RunResults(Config(chain=GRID.chain), [record | {"val_acc": None} for record in GRID.records()])
    with pytest.raises(UserError, match="no images were held out"):
        run.best()
    first, second = answer(run)
    assert first == "No images were held out (--val-size), so no arm and step can be chosen"
    assert second.startswith("Largest gain over the teacher of 2 arms at step 2: alpha = ")
    assert "corrected for 2 arms by Holm's method" in second


def test_a_gain_within_its_interval_is_no_gain_beyond_noise():
    sure = RunResults(
        Config(chain=CHAIN), records({(None, 0): [0.5, 0.6], ("0", 1): [0.7, 0.8], ("0.6", 1): [0.5, 0.5]})
    )
    assert answer(sure)[1] == "Gain over the teacher: +0.1000, 95 % interval +0.1000 to +0.1000 (t, 2 seeds)"
    noisy = RunResults(
        Config(chain=CHAIN), records({(None, 0): [0.5, 0.6], ("0", 1): [0.7, 0.6], ("0.6", 1): [0.5, 0.5]})
    )
    assert answer(noisy)[1].endswith("(t, 2 seeds); no gain beyond noise")


def test_a_table_of_two_of_step_arm_and_seed():
    table = GRID.run().table("test_acc", index="arm", columns="step")
    assert table.header == ["arm", "step 0", "step 1", "step 2"]
    means = [[cell.mean for cell in row[1:]] for row in table.rows]
    np.testing.assert_allclose(means, GRID.accuracy.mean(0))
    for wrong in ({"index": "epoch"}, {"index": "arm"}, {"index": "seed", "columns": "step"}, {"values": "accuracy"}):
        with pytest.raises(UserError):
            GRID.run().table(**wrong)
    with pytest.raises(UserError, match="arm is not a metric"):
        GRID.run().table("arm")


def test_formats():
    run = GRID.run()
    latex, markdown, text = (formatted(run, kind) for kind in ("latex", "markdown", "csv"))
    for line in (r"\toprule", r"\midrule", r"\bottomrule", r"step & alpha 0 & alpha 0.6 \\"):
        assert line in latex
    assert "% interval" not in latex.replace(r"\%", "")  # a comment would swallow the rest of its line
    assert "| step | alpha 0 | alpha 0.6 |" in markdown
    header, *rows = text.split("\n\n")[0].splitlines()
    assert header == "step,alpha 0,alpha 0 sd,alpha 0 n,alpha 0.6,alpha 0.6 sd,alpha 0.6 n"
    assert [float(row.split(",")[1]) for row in rows] == GRID.accuracy.mean(0)[0].tolist()
    assert "p corrected for 4 comparisons by Holm's method" in gains_table(run.paired()).title


def test_the_tables_of_several_runs_name_them():
    run = GRID.run()
    assert all_formatted([run], "csv") == formatted(run, "csv")
    first, *_, last = all_formatted([run, run], "csv").split("\n\n")
    assert first == f"# {run.path}"
    assert last == formatted(run, "csv").split("\n\n")[-1]
    with pytest.raises(UserError, match="no model is finished yet"):
        all_formatted([run, RunResults(run.config, [])], "csv")


def test_a_loaded_run_has_folders_and_models(trained):
    run = distill.load_run(trained)
    assert len(run.results) == 6
    assert run.folder(2, 0.3, 1) == trained / "seed_2/alpha_0.3/step_1"
    assert run.model(1, None, 0).classes == ("ant", "bee", "cat")
    assert run.predictions(1, "0.3", 2).predicted.shape == (20,)
    with pytest.raises(UserError, match=r"no model seed 1, alpha 0.3, step 7; it has seed 1 2, alpha 0.3, and steps 0"):
        run.model(1, 0.3, 7)
    with pytest.raises(UserError, match="holds no run"):
        distill.load_run(trained / "seed_1")


def test_a_single_seed_is_bootstrapped_over_test_images(trained):
    run = distill.load_run(trained)
    one = RunResults(run.config, [record for record in run.records if record["seed"] == 1])
    gain = one.difference("test_acc", ("0.3", 1), (None, 0))
    assert gain.method == "bootstrap, 20 images; one seed: no interval over seeds"
    assert gain.mean == pytest.approx(one[1].test_acc - one[0].test_acc)
    assert gain.low <= gain.mean <= gain.high
    assert not one.difference("test_nll", ("0.3", 1), (None, 0)).has_interval


def test_a_damaged_record_is_named_and_the_others_are_there(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    file = run / "seed_2/alpha_0.3/step_2/result.json"
    file.write_text("{")
    found = distill.load_run(run)
    assert len(found) == 5
    assert len(found.problems) == 1
    assert str(file) in found.problems[0]


def test_arms_that_begin_alike_share_models(tmp_path):
    rundir = RunDir(tmp_path)
    (tmp_path / "config.toml").write_text(
        "[chain]\nalpha_schedule = [[0.2, 0.4], [0.2, 0.6]]\ndistillation_steps = 2\n"
    )
    leave_result(rundir, test_acc=0.5)
    leave_result(rundir, arm="0.2", alpha=0.2, step=1, test_acc=0.75)
    run = RunResults.load(tmp_path)
    assert run.folder(1, "0.2-0.6", 1) == run.folder(1, 0.2, 1) == tmp_path / "seed_1/alpha_0.2/step_1"
    assert [gain.name for gain in run.paired()] == ["alpha = 0.2, step 1"]
    assert math.isnan(run.paired()[0].p_holm)


def test_a_data_frame_has_a_row_per_model():
    pandas = pytest.importorskip("pandas")
    frame = RunResults(GRID.run().config, [record | {"memorised": None} for record in GRID.records()]).frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["memorised"].dtype == float
    assert frame["test_acc"].tolist() == [result.test_acc for result in GRID.run()]


def test_without_pandas_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas"):
        GRID.run().frame()

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT, config, leave_result

from distill.errors import ConfigError
from distill.store.rundir import RunDir, to_csv

DATA = "0" * 64  # a fingerprint


def begin(run: Path, **options) -> None:
    """A run in which a teacher has been trained for an epoch."""
    RunDir(run).begin(config(run, **options), DATA)
    (run / "seed_1" / "step_0").mkdir(parents=True)
    (run / "seed_1" / "step_0" / "training_state.pt").touch()


# ------------------------------------------------------------------------------------------------------- single files


def test_csv_keeps_every_bit_of_a_float_and_leaves_none_empty():
    header, row = to_csv(["a", "b", "c"], [{"a": 0.1 + 0.2, "b": None, "c": 5e-324, "unlisted": 1}]).splitlines()
    a, b, c = row.split(",")
    assert (header, float(a), b, float(c)) == ("a,b,c", 0.1 + 0.2, "", 5e-324)


def test_options_may_change_until_something_is_trained(tmp_path):
    rundir = RunDir(tmp_path)
    rundir.begin(config(tmp_path, lr=1e38), "a")
    rundir.begin(config(tmp_path, lr=0.01), "b")
    rundir.model(1, None, 0).mkdir(parents=True)
    (rundir.model(1, None, 0) / "training_state.pt").touch()
    with pytest.raises(ConfigError, match=r"--lr 0.02 instead of 0.01"):
        rundir.begin(config(tmp_path, lr=0.02), "b")


# ------------------------------------------------------------------------------------------------------ the directory


def test_the_folder_of_a_model_names_seed_arm_and_step():
    assert RunDir(Path("run")).model(1, None, 0) == Path("run/seed_1/step_0")
    assert RunDir(Path("run")).model(2, "0.6", 3) == Path("run/seed_2/alpha_0.6/step_3")


def test_results_csv_has_a_row_per_finished_model_in_order(tmp_path):
    rundir = RunDir(tmp_path)
    expected = [
        *[(1, None, 0), (1, "0", 1), (1, "1e-05", 1), (1, "1e-05", 9), (1, "1e-05", 10), (1, "0.6-0.2", 2)],
        *[(1, "0.6-auto", 2), (1, "auto", 1), (1, "auto probe", 1), (1, "auto", 2), (2, None, 0)],
    ]
    options = {"alpha": [0, 1e-5, "auto"], "alpha_schedule": [[0.6, 0.2], [0.6, "auto"]], "seed": [1, 2]}
    begin(tmp_path, **options, val_size=5, distillation_steps=10)
    for i in (3, 10, 7, 0, 8, 5, 2, 9, 1, 6, 4):
        leave_result(rundir, **dict(zip(("seed", "arm", "step"), expected[i], strict=True)))
    (rundir.model(2, "0.6", 1)).mkdir(parents=True)  # begun, not finished
    rundir.write_results()
    assert [(r.seed, r.arm, r.step) for r in rundir.results()] == expected
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert lines[0].startswith(  # a new metric is the last column
        "seed,alpha,step,train_loss,train_acc,val_loss,val_acc,test_loss,test_acc,test_nll,test_brier,test_ece,"
        "agreement,epochs,seconds,arm,val_brier,test_entropy,teacher_kl,train_distance,clean_acc,memorised,recovered"
    )
    assert lines[1].startswith("1,,0,0.5")


def test_a_directory_of_another_run_is_refused_with_every_option_that_differs(tmp_path):
    begin(tmp_path)
    with pytest.raises(ConfigError, match=r"--batch-size 4 instead of 8, --lr 0\.02 instead of 0\.01") as error:
        RunDir(tmp_path).begin(config(tmp_path, lr=0.02, batch_size=4, seed=7), DATA)
    assert "seed" not in str(error.value)


def test_a_directory_of_other_images_is_refused(tmp_path):
    begin(tmp_path)
    with pytest.raises(ConfigError, match="other images"):
        RunDir(tmp_path).begin(config(tmp_path), "other data")


def test_device_jobs_and_threads_may_change(tmp_path):
    begin(tmp_path)
    RunDir(tmp_path).begin(config(tmp_path, jobs=2, threads=2, device="auto", data_dir="elsewhere"), DATA)


def test_a_directory_with_other_files_is_refused_and_not_changed(tmp_path):
    (tmp_path / "thesis.tex").write_text("six years")
    with pytest.raises(ConfigError, match="not empty"):
        RunDir(tmp_path).open()
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_config_toml_does_not_contain_the_output(tmp_path):
    RunDir(tmp_path).begin(config(tmp_path), DATA)
    assert "output" not in (tmp_path / "config.toml").read_text()


def test_a_directory_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write to"):
        RunDir(tmp_path / "file" / "run").open()


WRITER = """import sys
from pathlib import Path
from distill.store.rundir import RunDir
rundir = RunDir(Path(sys.argv[1]))
record = rundir.records()[0]
for seed in range(int(sys.argv[2]), int(sys.argv[2]) + 20):
    rundir.make_folder(rundir.model(seed, None, 0))
    rundir.write_result(rundir.model(seed, None, 0), record | {"seed": seed})
rundir.write_results()"""


def test_models_that_finish_in_several_processes_at_once_are_all_in_results_csv(tmp_path):
    RunDir(tmp_path).begin(config(tmp_path, seed=[1, *range(10, 30), *range(50, 70)]), DATA)
    leave_result(RunDir(tmp_path))
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, str(first)], cwd=ROOT) for first in (10, 50)]
    assert [writer.wait() for writer in writers] == [0, 0]
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert [int(line.split(",")[0]) for line in lines[1:]] == [1, *range(10, 30), *range(50, 70)]


@pytest.mark.parametrize("linked", ["seed_1", "seed_1/alpha_0.5", "seed_1/alpha_0.5/step_1"])
def test_a_folder_that_is_a_link_is_refused_and_nothing_is_made_outside(tmp_path, linked):
    run = tmp_path / "run"
    run.mkdir()
    begin(run)
    (tmp_path / "outside").mkdir()
    link = run / linked
    if link.exists():
        link.rename(tmp_path / "moved")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "outside")
    with pytest.raises(ConfigError, match="is a symbolic link, which may lead out of the run"):
        RunDir(run).make_folder(run / "seed_1" / "alpha_0.5" / "step_1")
    assert list((tmp_path / "outside").iterdir()) == []

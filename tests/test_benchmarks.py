"""The training benchmark's variants: each of them trains, and the obvious program has the same loss as ours."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from benchmarks import accuracy, kernel, obvious, training, training_gpu, variants
from benchmarks.variants import INGREDIENTS, OBVIOUS, Process, Workload
from distill.config import ModelConfig
from distill.running import run as sweep
from distill.running import trial
from distill.training import optim
from distill.training.fit import Trainer
from distill.training.predict import predict, soft_targets

CPU = torch.device("cpu")


def test_the_baseline_program_has_our_loss():
    assert training.check_same_losses(CPU) < 1e-6


@pytest.mark.parametrize("variant", INGREDIENTS[1:4], ids=lambda variant: variant.name)
def test_a_variant_has_its_ingredient_and_no_other(variant, monkeypatch):
    folded, predicted = [], []
    step, predict_chunk = optim.update, predict
    monkeypatch.setattr(optim, "update", lambda *arguments: (folded.append(1), step(*arguments))[1])
    monkeypatch.setattr(variants, "predict", lambda *a: (predicted.append(len(a[1])), predict_chunk(*a))[1])
    variants.make_burst(Workload(8, 4, True, 3, "cpu"), variant)()
    assert len(folded) == (3 if variant.folded else 0)
    assert predicted == ([12] if variant.teacher_once else [])


def test_bf16_alone_is_autocast_of_both_networks_and_losses_in_float32(monkeypatch):
    inside, losses = [], []
    convolve, loss = torch.nn.Conv2d.forward, obvious.Obvious.loss
    monkeypatch.setattr(torch.nn.Conv2d, "forward", lambda *a: (out := convolve(*a), inside.append(out.dtype))[0])
    monkeypatch.setattr(obvious.Obvious, "loss", lambda *a: (losses.extend(t.dtype for t in a[1::2]), loss(*a))[1])
    variants.make_burst(Workload(8, 4, True, 1, "cpu"), INGREDIENTS[-1])()
    assert set(inside) == {torch.bfloat16}
    assert losses == [torch.float32, torch.float32]  # the student's logits, and the teacher's


def test_a_process_answers_with_the_seconds_of_a_burst():
    process = Process(Workload(8, 4, True, 2, "cpu"), OBVIOUS)
    assert process.seconds() > 0
    process.end()
    assert process.process.returncode == 0


def test_rows_of_other_depths_stay_in_the_file(tmp_path):
    file, here = tmp_path / "results" / "training.json", {"device": "a", "cores": 2, "torch": "2.11"}
    training.write(file, here | {"date": "Monday"}, [{"resnet": 50, "ratio": 1.0}])
    training.write(file, here, [{"resnet": 18, "ratio": 2.0}])
    training.write(file, here | {"date": "Tuesday"}, [{"resnet": 50, "ratio": 3.0}])
    assert json.loads(file.read_text())["results"] == [
        {"resnet": 18, "ratio": 2.0},
        {"resnet": 50, "ratio": 3.0},
    ]
    training.write(
        file, here | {"torch": "2.12"}, [{"resnet": 18, "ratio": 4.0}]
    )  # what else was measured is another's
    assert json.loads(file.read_text())["results"] == [{"resnet": 18, "ratio": 4.0}]


def test_a_table_has_a_line_a_variant_and_a_column_a_network():
    rows = [("a", 18, 16, 1.0), ("b", 18, 16, 2.0), ("a", 50, 16, 3.0)]
    rows = [dict(zip(("variant", "resnet", "batch", "ratio"), row, strict=True)) for row in rows]
    assert training.table(rows, "{ratio:.1f}").splitlines() == [
        "| variant | ResNet-18, 16 | ResNet-50, 16 |",
        "|---|---|---|",
        "| a | 1.0 | 3.0 |",
        "| b | 2.0 |  |",
    ]


def test_the_tables_of_the_readme_are_those_of_the_results():
    folder = Path(training.__file__).parent
    results = json.loads((folder / "results" / "training-cpu-2cores.json").read_text())["results"]
    told = (folder / "README.md").read_text()
    for block in training.tables(results).split("\n\n")[1::2]:
        assert block in told


def test_the_kernel_tables_of_the_readme_are_those_of_the_results():
    folder = Path(kernel.__file__).parent
    results = json.loads((folder / "results" / "kernel-2cores.json").read_text())["results"]
    told = (folder / "README.md").read_text()
    for block in kernel.tables(results).split("\n\n"):
        assert block in told


def test_precisions_are_compared_model_by_model(tmp_path, monkeypatch):
    asked, program = [], sweep.run

    def run(config):
        asked.append((config.train.precision, config.output))
        return program(config, tiny.source())

    monkeypatch.setattr(sweep, "run", run)
    config = tiny.config(tmp_path, alpha=0.3, seed=(1, 2))
    found = accuracy.accuracies(config, "bf16")
    assert asked == [("bf16", Path(f"{tmp_path}-bf16"))]
    assert {model: len(values) for model, values in found.items()} == {(None, 0): 2, ("0.3", 1): 2, ("0.3", 2): 2}


def test_differences_between_precisions_by_hand():
    exact, other = {(None, 0): np.array([0.5, 0.7])}, {(None, 0): np.array([0.6, 0.7])}
    row = accuracy.table({"fp32": exact, "bf16": other}).splitlines()[1].split()
    # differences 0.1 and 0: mean 0.05, standard error 0.05, Student's t with one degree of freedom 12.7062
    assert row == ["teacher", "0", "0.6000", "±", "0.1414", "0.6500", "±", "0.0707", "+0.0500", "±", "0.6353"]


def test_a_bad_option_is_one_line(capsys):
    assert accuracy.main(["--alhpa", "1"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "benchmarks.accuracy: error: unknown option --alhpa (did you mean --alpha?)"
    ]


@pytest.mark.parametrize(
    ("module", "words", "message"),
    [
        ("training", ["--device", "cuda:99"], "argument --device: --device cuda:99: "),
        ("training", ["--device", "foo"], "argument --device: device must be auto, cpu"),
        ("training", ["--resnet", "19"], "argument --resnet: invalid choice: 19"),
        ("training", ["--quick", "--rounds", "0"], "argument --rounds: must be a whole number from 1, not 0"),
        ("training_gpu", ["--device", "cpu"], "argument --device: cpu: this benchmark is for CUDA devices"),
        ("training_gpu", ["--device", "foo"], "argument --device: device must be auto, cpu"),
        ("jobs", ["--jobs", "0"], "argument --jobs: must be a whole number from 1, not 0"),
        ("jobs", ["--batch", "-5"], "argument --batch: "),
        ("jobs", ["--resnet", "19"], "argument --resnet: invalid choice: 19"),
        ("precision", ["--bogus"], "unrecognized arguments: --bogus"),
        ("kernel", ["--rounds", "x"], "argument --rounds: must be a whole number from 1, not x"),
        ("kernel", ["--grow", "100", "foo"], "--grow wants a number of points and chain or map, not 100 foo"),
        ("kernel", ["--grow", "0", "map"], "--grow wants a number of points and chain or map, not 0 map"),
    ],
)
def test_bad_options_are_one_line(module, words, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [module, *words])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{module}").main()
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert line.startswith(f"benchmarks.{module}: error: {message}")


@pytest.mark.parametrize("module", ["training", "training_gpu", "jobs", "precision", "kernel", "accuracy"])
def test_help_is_the_modules_own(module, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [module, "--help"])
    benchmark = importlib.import_module(f"benchmarks.{module}")
    with pytest.raises(SystemExit) as ended:
        sys.exit(benchmark.main())
    assert not ended.value.code
    assert benchmark.__doc__.splitlines()[0] in capsys.readouterr().out


def test_one_seed_has_no_spread():
    one = {(None, 0): np.array([0.5])}
    assert accuracy.table({"fp32": one, "bf16": one}).splitlines()[1].split() == [
        "teacher",
        "0",
        "0.5000",
        "0.5000",
        "+0.0000",
    ]


@pytest.mark.parametrize("words", [["--precision", "bf16"], ["--estimate"], ["--resume=runs/a"]])
def test_options_without_a_meaning_are_refused(words, capsys):
    assert accuracy.main(words) == 2
    assert f"{words[0].partition('=')[0]} has no meaning here" in capsys.readouterr().err


# ------------------------------------------------------------------------- what measures a GPU, on a CPU with stand-ins


@pytest.fixture
def small_gpu(stand_in, monkeypatch):
    """training_gpu.py with tiny networks and bursts."""
    monkeypatch.setattr(training_gpu, "ModelConfig", lambda **_: ModelConfig(resnet=8, width=2))
    for name, value in {"IMAGES": 512, "BURST": 8, "JOBS": (1, 2)}.items():
        monkeypatch.setattr(training_gpu, name, value)
    monkeypatch.setattr(trial, "BURST_SECONDS", 0.01)
    monkeypatch.setattr(training_gpu, "set_up", lambda train, device, threads: None)  # it refuses tf32 on a CPU
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    for name in ("allow_tf32", "benchmark"):  # as they are, and so again after the test
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
    return stand_in


def test_a_gpu_is_measured_against_the_baseline_program(small_gpu, monkeypatch):
    monkeypatch.setattr(training_gpu, "BATCHES", (4,))
    rows = training_gpu.against_the_obvious([8], 1, CPU)
    assert len(rows) == 2 * (2 + 6)  # two steps; the obvious program twice and six variants
    assert {row["ratio"] for row in rows if row["variant"] == "obvious program"} == {1.0}
    assert all(row["images_per_second"] > 0 and row["notes"] == [] for row in rows)
    assert sum(made.replays > 0 for made in small_gpu.made) == 2 * 5  # one of the six has no graphs


@pytest.mark.slow
def test_the_baseline_program_on_a_gpu_has_plain_convolutions(small_gpu, monkeypatch):
    """Ours have products in them, which cost an eager program more than they save."""
    seen, as_it_comes = {}, []
    train, epoch = obvious.Obvious.train, Trainer.epoch

    def kinds(model):
        return {type(module).__name__ for module in model.modules() if isinstance(module, torch.nn.Conv2d)}

    def obvious_train(self, batches):
        as_it_comes.append((torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark))
        seen.setdefault("obvious", []).extend(kinds(self.network) | kinds(self.teacher or self.network))
        return train(self, batches)

    def engine_epoch(self, *arguments):
        seen.setdefault("engine", []).append(kinds(self.model))
        return epoch(self, *arguments)

    monkeypatch.setattr(obvious.Obvious, "train", obvious_train)
    monkeypatch.setattr(Trainer, "epoch", engine_epoch)
    monkeypatch.setattr(training_gpu, "ModelConfig", lambda **_: ModelConfig(resnet=18))
    monkeypatch.setattr(training_gpu, "BURST", 1)
    monkeypatch.setattr(training_gpu, "BATCHES", (4,))
    training_gpu.against_the_obvious([18], 1, CPU)
    assert set(seen["obvious"]) == {"Conv2d"}
    ours, plain = {"ProductConv2d"}, {"Conv2d"}
    assert seen["engine"] == 2 * 2 * [ours, plain, *[ours] * 4]  # rows; a warm-up and a round; variants
    assert as_it_comes[1::2] == 2 * 2 * [(True, False)]


@pytest.mark.slow
def test_a_gpus_updates_are_measured_against_their_graph(small_gpu, monkeypatch):
    def clock(burst, device):
        return training_gpu.seconds(burst, device)

    monkeypatch.setattr(training_gpu, "device_seconds", clock)  # else by CUDA's own events
    rows = training_gpu.kernel_time([8], 1, CPU)
    assert [(row["batch"], row["step"]) for row in rows] == [(b, s) for b in (16, 128) for s in ("teacher", "student")]
    assert all(row["engine_over_both"] == row["engine_ms"] / (row["graph_ms"] + row["teacher_ms"]) for row in rows)
    bursts = 1 + 1 + 1  # before, in the warm-up, and in the round; the replays are as many less the first
    updates = [training_gpu.updates_of(row["batch"]) for row in rows]
    assert updates == [8, 8, 4, 4]
    assert [made.replays for made in small_gpu.made] == [(2 * bursts - 1) * n for n in updates]


def test_chains_side_by_side_on_a_gpu_are_measured_in_threads(small_gpu):
    one, two = training_gpu.side_by_side(8, 1, CPU)
    assert (one["jobs"], two["jobs"], one["ratio"]) == (1, 2, 1.0)
    assert two["ratio"] == pytest.approx(two["images_per_second"] / one["images_per_second"])
    assert len(small_gpu.made) == 1 + (1 + 2)  # the first finds how long bursts are
    assert one["notes"] == []


@pytest.mark.slow
def test_a_modern_setting_is_measured_against_a_batch_in_memory(small_gpu):
    rows = training_gpu.modern(1, CPU)
    names = ["static batch, graph", "static batch, eager", "engine"]
    assert [(row["step"], row["variant"]) for row in rows] == [(s, n) for s in ("teacher", "student") for n in names]
    assert [made.replays for made in small_gpu.made] == [2, 2] * 2  # of one update: a warm-up and a round


def test_the_ceiling_has_the_teachers_pass(small_gpu, monkeypatch):
    asked = []
    monkeypatch.setattr(training_gpu, "soft_targets", lambda *a: (asked.append(len(a[1])), soft_targets(*a))[1])
    train = training_gpu.TrainConfig(batch_size=16)
    job = training_gpu.EngineRun(ModelConfig(resnet=8, width=2), train, True, CPU)
    for captured in (False, True):
        burst = job.static(4, captured)
        asked.clear()
        burst()
        assert asked == [64]


def test_a_gpus_measurements_are_kept_part_by_part(tmp_path, monkeypatch):
    def fails(*_):
        raise torch.OutOfMemoryError

    parts = ("against_the_obvious", "kernel_time", "side_by_side", "modern")
    for name, part in zip(parts, (lambda *_: [1], lambda *_: [2], fails, fails), strict=True):
        monkeypatch.setattr(training_gpu, name, part)
    monkeypatch.setattr(training_gpu, "cuda", lambda text: CPU)
    monkeypatch.setattr(training_gpu, "set_up", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["training_gpu", "--output", str(tmp_path / "new" / "gpu.json")])
    with pytest.raises(torch.OutOfMemoryError):
        training_gpu.main()
    kept = json.loads((tmp_path / "new" / "gpu.json").read_text())
    assert (kept["against_the_obvious"], kept["kernel_time"]) == ([1], [2])
    assert kept["machine"]["torch"] == torch.__version__

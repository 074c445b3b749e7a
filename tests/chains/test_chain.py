import json
import math
import shutil
from dataclasses import fields

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import config, contents, killed_at, rows, source
from torch import nn

import distill
from distill import metrics
from distill.chains import estimated_alpha, student
from distill.chains.checkpoints import read_tensors
from distill.data.source import from_arrays
from distill.data.splits import make_dataset
from distill.errors import UserError
from distill.files import sha256
from distill.randomness import generator, torch_seed
from distill.running.experiment import count_models, prepare
from distill.store.rundir import RunDir
from distill.training import engine
from distill.training.listener import Listener
from distill.training.models import CifarResNet

TEACHER, STUDENT = "seed_1/step_0", "seed_1/alpha_0.3/step_1"


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: a teacher and three students."""
    run = tmp_path_factory.mktemp("finished")
    distill.run(config(run, distillation_steps=3), source=source())
    return run


# ---------------------------------------------------------------------------------------------------- what a chain is


def by_hand(data, seed, steps, epochs, batch, lr, momentum, alpha, reg_coef):
    """Teacher and students with nothing of the program but its draws: two-term loss, plain autograd, plain SGD."""
    mean, std = (torch.from_numpy(m)[:, None, None] for m in (data.mean, data.std))
    n, _, size, _ = data.train.images.shape
    pad, teacher = size // 8, None
    for step in range(steps + 1):
        torch.manual_seed(torch_seed(seed, "init", step))
        student = CifarResNet(8, 2, 1, 3).train()
        velocity = [torch.zeros_like(p) for p in student.parameters()]
        for epoch in range(epochs):
            rng = generator(seed, "epoch", step, epoch)
            order, (top, left) = rng.permutation(n), rng.integers(0, 2 * pad + 1, (2, n))
            flips = rng.random(n) < 0.5
            images = []
            for i, t, x, flip in zip(order, top, left, flips, strict=True):
                image = np.pad(data.train.images[i], ((0, 0), (pad, pad), (pad, pad)))[:, t : t + size, x : x + size]
                images.append(image[:, :, ::-1] if flip else image)
            images = (torch.from_numpy(np.stack(images)).float() / 255 - mean) / std
            labels = torch.from_numpy(data.train.labels[order])
            for i in range(0, n - 1, batch):  # 41 images: the last one would be a batch of its own
                x, truth = images[i : i + batch][:batch], F.one_hot(labels[i : i + batch], 3)
                p = student(x).softmax(1)
                loss = ((p - truth) ** 2).mean()
                if teacher is not None:
                    with torch.no_grad():
                        soft = teacher(x).softmax(1)
                    loss = alpha * loss + (1 - alpha) * ((p - soft) ** 2).mean()
                loss = loss + reg_coef * sum(p.norm() for p in student.parameters())
                gradients = torch.autograd.grad(loss, list(student.parameters()))
                with torch.no_grad():
                    for p, v, g in zip(student.parameters(), velocity, gradients, strict=True):
                        v.mul_(momentum).add_(g)
                        p.sub_(lr * v)
        teacher = student.eval()
    return teacher


def test_a_chain_is_what_a_loop_written_by_hand_makes_of_the_same_draws(tmp_path):
    options = {"optimizer": "sgd", "momentum": 0.5, "lr": 0.05, "alpha": 0.3, "reg_coef": 1e-3, "max_epochs": 2}
    c = config(tmp_path, **options)
    distill.run(c, source=source())
    data = make_dataset(source(), c.data, 1)
    last = by_hand(data, 1, 2, 2, 8, 0.05, 0.5, 0.3, 1e-3)
    ours = distill.load_model(tmp_path / "seed_1/alpha_0.3/step_2")
    for name, value in last.state_dict().items():
        torch.testing.assert_close(ours.network.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    images = torch.from_numpy(data.test.images)
    normalised = (images.float() / 255 - ours.mean) / ours.std
    torch.testing.assert_close(ours(images), last(normalised), rtol=1e-3, atol=1e-3)


def test_at_alpha_one_students_do_not_depend_on_their_teacher(tmp_path):
    distill.run(config(tmp_path / "a", alpha=1), source=source())
    nonsense = tmp_path / "nonsense.pt"
    torch.save(
        {
            k: torch.rand_like(v) if v.is_floating_point() else v
            for k, v in CifarResNet(8, 2, 1, 3).state_dict().items()
        },
        nonsense,
    )
    distill.run(config(tmp_path / "b", alpha=1, teacher_ckpt=str(nonsense)), source=source())
    for step in (1, 2):
        a, b = (tmp_path / run / "seed_1/alpha_1" / f"step_{step}/model.pt" for run in "ab")
        assert a.read_bytes() == b.read_bytes()


def test_below_alpha_one_students_do_depend_on_their_teacher(tmp_path):
    distill.run(config(tmp_path, alpha=[0.999, 1]), source=source())
    a, b = (tmp_path / f"seed_1/{arm}/step_1/model.pt" for arm in ("alpha_0.999", "alpha_1"))
    assert a.read_bytes() != b.read_bytes()


def test_the_teacher_is_shared_by_all_alphas_and_depends_on_none(tmp_path, finished):
    results = distill.run(config(tmp_path, alpha=[0.3, 0.9]), source=source())
    assert [r.alpha for r in results] == [None, 0.3, 0.3, 0.9, 0.9]
    for model in (TEACHER, STUDENT):  # the same bits alone and in a grid
        assert (tmp_path / model / "model.pt").read_bytes() == (finished / model / "model.pt").read_bytes()


def test_every_student_has_initial_weights_of_its_own(tmp_path):
    seen = []

    def network():
        seen.append(CifarResNet(8, 2, 1, 3))
        return seen[-1]

    c = config(tmp_path)
    lab = prepare(c, source(), network)
    chains = lab.chains(1, RunDir(tmp_path), Listener())
    first, again, second = (chains.session.new_model(step).network.conv1.weight for step in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_a_chain_continues_from_a_given_step_as_it_went_on_originally(tmp_path, finished):
    teacher = finished / STUDENT / "model.pt"
    c = config(tmp_path, teacher_ckpt=str(teacher), teacher_step=1, distillation_steps=2)
    results = distill.run(c, source=source())
    assert [r.step for r in results] == [1, 2, 3]
    assert (results[0].epochs, results[0].train_loss, results[0].alpha) == (0, None, None)
    for step in (2, 3):
        model = f"seed_1/alpha_0.3/step_{step}/model.pt"
        assert (tmp_path / model).read_bytes() == (finished / model).read_bytes()


def test_students_of_a_given_teacher_keep_their_own_normalisation(tmp_path, finished):
    data = source()
    darker = from_arrays(data.train_images // 2, data.train_labels, data.test_images // 2, data.test_labels)
    distill.run(config(tmp_path, teacher_ckpt=str(finished / TEACHER / "model.pt")), source=darker)
    teacher, student = (weights(tmp_path / model)["mean"].item() for model in (TEACHER, STUDENT))
    assert teacher == weights(finished / TEACHER)["mean"].item()
    np.testing.assert_allclose(student, (data.train_images // 2 / 255).mean(), rtol=1e-6)


def test_a_given_teacher_is_on_record_by_its_hash(tmp_path, finished):
    teacher = finished / TEACHER / "model.pt"
    distill.run(config(tmp_path, teacher_ckpt=str(teacher)), source=source())
    parent = json.loads((tmp_path / TEACHER / "result.json").read_text())["parent"]
    assert parent == {"path": str(teacher), "sha256": sha256(teacher)}


def test_every_student_names_its_teacher_by_hash(finished):
    for step, parent in ((1, TEACHER), (2, STUDENT), (3, "seed_1/alpha_0.3/step_2")):
        record = json.loads((finished / f"seed_1/alpha_0.3/step_{step}/result.json").read_text())
        assert record["parent"] == {"path": parent, "sha256": sha256(finished / parent / "model.pt")}
    assert json.loads((finished / TEACHER / "result.json").read_text())["parent"] is None


def test_agreement_is_with_the_teacher_on_the_test_images(finished):
    images = torch.from_numpy(source().test_images)
    teacher, student = (distill.load_model(finished / model)(images).argmax(1) for model in (TEACHER, STUDENT))
    assert rows(finished / "results.csv")[1]["agreement"] == str((teacher == student).double().mean().item())


def test_metrics_csv_has_a_row_per_epoch_whose_loss_is_the_sum_of_its_parts(finished):
    for row in (table := rows(finished / STUDENT / "metrics.csv")):
        parts = (float(row[f"train_{part}"]) for part in ("truth_loss", "teacher_loss", "reg"))
        truth, teacher, reg = parts
        assert math.isclose(float(row["train_loss"]), 0.3 * truth + 0.7 * teacher + reg, rel_tol=1e-9)
    assert [row["epoch"] for row in table] == ["1", "2"]


def test_the_teacher_has_no_teachers_loss(finished):
    assert {row["train_teacher_loss"] for row in rows(finished / TEACHER / "metrics.csv")} == {""}


def test_no_training_state_is_left(finished):
    assert not list(finished.rglob("*.pt.tmp")) + list(finished.rglob(student.STATE))


# --------------------------------------------------------------------------------------------------------- which epoch

BEST = {"teacher_select": "best", "val_size": 9, "max_epochs": 6, "lr": 0.1, "distillation_steps": 1}


@pytest.fixture(scope="module")
def selected(tmp_path_factory):
    run = tmp_path_factory.mktemp("selected")
    distill.run(config(run, **BEST), source=source())
    return run


def test_best_is_the_first_of_the_epochs_most_accurate_on_the_held_out_images(selected):
    early = 0
    for model in (TEACHER, STUDENT):
        record = json.loads((selected / model / "result.json").read_text())
        accuracies = [float(row["val_acc"]) for row in rows(selected / model / "metrics.csv")]
        assert record["selected_epoch"] == 1 + accuracies.index(max(accuracies))
        assert record["val_acc"] == max(accuracies)
        early += record["selected_epoch"] < BEST["max_epochs"]
    assert early, "this setting must select an epoch before the last, or it tests nothing"


def test_best_keeps_the_weights_of_that_epoch(selected, tmp_path):
    epoch = json.loads((selected / TEACHER / "result.json").read_text())["selected_epoch"]
    assert epoch < BEST["max_epochs"]
    distill.run(config(tmp_path, **BEST | {"teacher_select": "last", "max_epochs": epoch}), source=source())
    assert (tmp_path / TEACHER / "model.pt").read_bytes() == (selected / TEACHER / "model.pt").read_bytes()


def test_selection_never_looks_at_the_test_images(selected, tmp_path):
    data = source()
    other = from_arrays(
        data.train_images, data.train_labels, 255 - data.test_images, np.roll(data.test_labels, 1), data.classes
    )
    distill.run(config(tmp_path, **BEST), source=other)
    for model in (TEACHER, STUDENT):
        assert (tmp_path / model / "model.pt").read_bytes() == (selected / model / "model.pt").read_bytes()


def test_best_survives_an_interruption(selected, tmp_path):
    with killed_at(student.STATE, 4):
        distill.run(config(tmp_path, **BEST), source=source())
    distill.run(config(tmp_path, **BEST), source=source())
    assert contents(tmp_path) == contents(selected)


@pytest.mark.parametrize("batch_size", [8, 16])  # two batches of 16 are more than there are test images
def test_a_development_run_is_two_batches_of_everything(tmp_path, monkeypatch, batch_size):
    batches = []
    monkeypatch.setattr(Listener, "advance", lambda self, images: batches.append(images))
    c = config(tmp_path, fast_dev_run=True, max_epochs=9, batch_size=batch_size, distillation_steps=1)
    results = distill.run(c, source=source())
    assert batches == [batch_size] * 4
    assert [r.epochs for r in results] == [1, 1]


# ------------------------------------------------------------------------------------------------------- label noise


def test_corrupted_labels_are_on_record(tmp_path):
    data = source()
    distill.run(config(tmp_path, label_noise=0.25, train_size=36, distillation_steps=0), source=data)
    record = np.load(tmp_path / "seed_1" / "labels.npz")
    assert record["index"].shape == (36,)
    assert record["corrupted"].sum() == 9
    np.testing.assert_array_equal(record["true"], data.train_labels[record["index"]])
    np.testing.assert_array_equal(record["given"] != record["true"], record["corrupted"])


def test_the_record_is_of_the_labels_that_were_trained_on(tmp_path, monkeypatch):
    seen = {}
    make_image_store = engine.make_image_store
    monkeypatch.setattr(
        engine, "make_image_store", lambda split, device: seen.setdefault(len(split), make_image_store(split, device))
    )
    distill.run(config(tmp_path, label_noise=0.25, distillation_steps=0), source=source())
    np.testing.assert_array_equal(np.load(tmp_path / "seed_1" / "labels.npz")["given"], seen[41].labels.numpy())


def test_clean_labels_need_no_record(finished):
    assert not (finished / "seed_1" / "labels.npz").exists()


# --------------------------------------------------------------------------------------------------- damaged files


def begun(run):
    """A run that ended within the first student, its teacher finished."""
    with killed_at(student.STATE, 3):
        distill.run(config(run), source=source())
    assert (run / TEACHER / "result.json").exists()
    assert (run / STUDENT / student.STATE).exists()


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change(file):
    content, middle = file.read_bytes(), file.stat().st_size // 2
    file.write_bytes(content[:middle] + bytes(b ^ 1 for b in content[middle : middle + 200]) + content[middle + 200 :])


def empty(file):
    file.write_bytes(b"")


def of_another_kind(file):
    torch.save({"weight": torch.zeros(2)}, file)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *((f"{TEACHER}/model.pt", damage) for damage in (cut, change, empty, of_another_kind)),
        *((f"{TEACHER}/result.json", damage) for damage in (cut, empty)),
        *((f"{STUDENT}/training_state.pt", damage) for damage in (cut, change, empty, of_another_kind)),
        ("config.toml", cut),
    ],
)
def test_a_damaged_file_is_refused_in_one_line_that_names_it(tmp_path, file, damage):
    begun(tmp_path)
    damage(tmp_path / file)
    before = {f: f.read_bytes() for f in tmp_path.rglob("*.pt")}
    with pytest.raises(UserError) as error:
        distill.run(config(tmp_path), source=source())
    assert str(tmp_path / file) in str(error.value)
    assert "\n" not in str(error.value)
    assert {f: f.read_bytes() for f in tmp_path.rglob("*.pt")} == before


def test_a_teacher_that_was_lost_is_missed(tmp_path):
    begun(tmp_path)
    (tmp_path / TEACHER / "model.pt").unlink()
    with pytest.raises(UserError, match=r"step_0/model\.pt"):
        distill.run(config(tmp_path), source=source())


@pytest.mark.parametrize("damage", [cut, change, empty])
def test_load_model_refuses_a_damaged_file(tmp_path, damage):
    distill.run(config(tmp_path, distillation_steps=0), source=source())
    damage(tmp_path / TEACHER / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt"):
        distill.load_model(tmp_path / TEACHER)


def test_reading_a_checkpoint_runs_nothing_in_it(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").touch, ()

    torch.save({"weight": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(UserError, match=r"trap\.pt"):
        read_tensors(tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


# --------------------------------------------------------------------------------------------------- from Python


def test_a_loaded_model_gives_the_logits_that_were_scored(finished):
    for result in rows(finished / "results.csv"):
        arm = "" if result["alpha"] == "" else "alpha_0.3/"
        model = distill.load_model(finished / f"seed_1/{arm}step_{result['step']}" / "model.pt")
        logits = model(torch.from_numpy(source().test_images))
        labels = torch.from_numpy(source().test_labels)
        for name, metric in {"acc": metrics.accuracy, "nll": metrics.nll, "brier": metrics.brier}.items():
            assert str(metric(logits, labels)) == result[f"test_{name}"]


def test_a_loaded_model_knows_its_classes_and_its_normalisation(finished):
    model = distill.load_model(finished / TEACHER)
    pixels = source().train_images / 255
    assert model.classes == ("ant", "bee", "cat")
    assert not model.training
    np.testing.assert_allclose(model.mean.squeeze(), pixels.mean(), rtol=1e-6)
    np.testing.assert_allclose(model.std.squeeze(), pixels.std(), rtol=1e-6)


def test_a_loaded_model_takes_whole_numbers_and_fractions(finished):
    model, images = distill.load_model(finished / TEACHER), torch.from_numpy(source().test_images)
    assert torch.equal(model(images), model(images.float() / 255))


class Own(nn.Module):
    """A network that draws random numbers while it is trained."""

    def __init__(self):
        super().__init__()
        self.hidden, self.drop, self.out = nn.Linear(64, 8), nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.drop(self.hidden(x.flatten(1)).relu()))


def test_a_network_and_arrays_of_ones_own(tmp_path):
    results = distill.run(config(tmp_path), source=source(), network=Own)
    assert [(r.seed, r.alpha, r.step) for r in results] == [(1, None, 0), (1, 0.3, 1), (1, 0.3, 2)]
    assert [str(r.test_nll) for r in results] == [row["test_nll"] for row in rows(tmp_path / "results.csv")]
    model = distill.load_model(tmp_path / STUDENT, network=Own)
    logits = model(torch.from_numpy(source().test_images))
    assert metrics.nll(logits, torch.from_numpy(source().test_labels)) == results[1].test_nll


def test_a_network_of_ones_own_must_be_given_to_load_it(tmp_path):
    distill.run(config(tmp_path, distillation_steps=0), source=source(), network=Own)
    with pytest.raises(UserError, match="network"):
        distill.load_model(tmp_path / TEACHER)


def test_dropout_goes_on_exactly(tmp_path):
    distill.run(config(tmp_path / "whole"), source=source(), network=Own)
    with killed_at(student.STATE, 3):
        distill.run(config(tmp_path / "parts"), source=source(), network=Own)
    torch.rand(5)  # whatever else the process drew
    distill.run(config(tmp_path / "parts"), source=source(), network=Own)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_run_of_other_images_is_not_gone_on_with(tmp_path, finished):
    with pytest.raises(UserError, match="other images"):
        distill.run(config(finished, distillation_steps=3), source=source(seed=1))


@pytest.mark.parametrize(("updates", "where"), [(8, "step 0, epoch 2"), (13, "alpha 0.3, step 1, epoch 1")])
def test_a_loss_that_is_not_finite_names_step_epoch_and_update(tmp_path, monkeypatch, updates, where):
    seen, update = [], engine.Fit.update

    def bad_at_last(self, *args):
        logits, reg = update(self, *args)
        seen.append(None)
        return (logits * math.nan if len(seen) >= updates else logits), reg

    monkeypatch.setattr(engine.Fit, "update", bad_at_last)
    with pytest.raises(UserError, match=rf"seed 1, {where}: the loss is not finite at update 3\b"):  # of 5 an epoch
        distill.run(config(tmp_path), source=source())


def test_a_learning_rate_that_is_too_large_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"not finite.*smaller --lr"):
        distill.run(config(tmp_path, lr=1e38, optimizer="sgd"), source=source())
    assert not list(tmp_path.rglob("model.pt"))


# ------------------------------------------------------------------------------------------------- lineage and leakage


def test_a_given_teacher_that_was_replaced_is_refused(tmp_path, finished):
    given = tmp_path / "teacher.pt"
    given.write_bytes((finished / TEACHER / "model.pt").read_bytes())
    c = config(tmp_path / "run", teacher_ckpt=str(given), distillation_steps=1)
    distill.run(c, source=source())
    given.write_bytes((finished / STUDENT / "model.pt").read_bytes())
    with pytest.raises(UserError, match=r"teacher\.pt is not the file that this run began with"):
        distill.run(c, source=source())


def test_a_student_of_another_teacher_is_refused(tmp_path):
    distill.run(config(tmp_path), source=source())
    record = tmp_path / STUDENT / "result.json"
    content = json.loads(record.read_text())
    content["parent"]["sha256"] = "0" * 64
    record.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"step_1 was trained with a different teacher"):
        distill.run(config(tmp_path), source=source())


@pytest.mark.parametrize(
    ("options", "legal"), [({}, True), ({"seed": 2}, False), ({"seed": [1, 2]}, False), ({"val_size": 9}, False)]
)
def test_a_teacher_that_saw_what_is_held_out_is_refused(tmp_path, options, legal):
    digits = {"dataset": "digits", "train_size": 40, "test_size": 40, "max_epochs": 1, "distillation_steps": 1}
    distill.run(config(tmp_path / "first", **digits))
    again = config(tmp_path / "second", **digits | options, teacher_ckpt=str(tmp_path / "first" / TEACHER / "model.pt"))
    if legal:
        assert len(distill.run(again)) == 2
        return
    with pytest.raises(UserError, match="was trained on images that this run holds out: give its --seed 1"):
        distill.run(again)
    assert not (tmp_path / "second").exists()


def test_another_number_of_threads_is_told_of(tmp_path):
    class Notes(Listener):
        def __init__(self):
            self.notes = []

        def note(self, text):
            self.notes.append(text)

    distill.run(config(tmp_path), source=source(), listener=(first := Notes()))
    with torch.random.fork_rng():
        distill.run(config(tmp_path, threads=2), source=source(), listener=(second := Notes()))
    torch.set_num_threads(1)
    assert first.notes == []
    assert second.notes == ["threads was 1, is 2: not the bits of an uninterrupted run"]


def test_the_callers_draws_are_left_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    distill.run(config(tmp_path, distillation_steps=0), source=source())
    assert torch.equal(torch.rand(3), expected)


def test_weights_that_the_last_update_made_infinite_are_noticed(tmp_path, monkeypatch):
    update, seen = engine.Fit.update, []

    def bad_at_last(self, *args):
        out = update(self, *args)
        seen.append(None)
        if len(seen) == 5:
            with torch.no_grad():
                self.parameters[0].fill_(math.inf)
        return out

    monkeypatch.setattr(engine.Fit, "update", bad_at_last)
    with pytest.raises(UserError, match=r"step 0, epoch 1: the loss is not finite at update 5"):
        distill.run(config(tmp_path), source=source())
    assert not list(tmp_path.rglob("*.pt"))


# -------------------------------------------------------------------------------------------- schedules and estimates


def test_chains_that_begin_alike_share_their_models(tmp_path):
    c = config(tmp_path, alpha=[0.3], alpha_schedule=[[0.3, 0.9], [0.3, 0.3, 0.5]], distillation_steps=3)
    trained = []

    class Show(Listener):
        def start_model(self, name, images, done):
            trained.append(name)

    results = distill.run(c, source=source(), listener=Show())
    assert trained == [
        "seed 1, step 0",
        *(f"seed 1, alpha 0.3, step {step}" for step in (1, 2, 3)),
        *(f"seed 1, alpha 0.3-0.9, step {step}" for step in (2, 3)),
        "seed 1, alpha 0.3-0.3-0.5, step 3",
    ]
    assert len(trained) == len(results) == count_models(c)
    assert [r.alpha for r in results if r.arm == "0.3-0.9"] == [0.9, 0.9]
    record = json.loads((tmp_path / "seed_1/alpha_0.3-0.9/step_2/result.json").read_text())
    assert record["parent"]["path"] == "seed_1/alpha_0.3/step_1"


def test_a_schedule_of_one_weight_is_that_alpha(tmp_path, finished):
    distill.run(config(tmp_path, alpha_schedule=[0.3], alpha=[], distillation_steps=3), source=source())
    model = "seed_1/alpha_0.3/step_3/model.pt"
    assert (tmp_path / model).read_bytes() == (finished / model).read_bytes()


def choices(monkeypatch, *outcomes):
    """Estimates that come out as (alpha_star, takes_probe), one after the other."""
    given = iter(outcomes)

    def choose(first, probe, labels, rng):
        star, takes = next(given)
        return estimated_alpha.Choice(star, 0.1, 0.0 if takes else star, takes, 0.5, 0.4)

    monkeypatch.setattr(estimated_alpha, "choose", choose)


AUTO = {"alpha": "auto", "val_size": 6}


def test_an_estimated_step_is_trained_with_the_weight_that_was_found(tmp_path, monkeypatch):
    choices(monkeypatch, (0.3, False), (0.8, False))
    results = distill.run(config(tmp_path / "auto", **AUTO), source=source())
    assert [(r.arm, r.alpha) for r in results] == [
        (None, None),
        *[("auto", 0.3), ("auto probe", 0.0)],
        *[("auto", 0.8), ("auto probe", 0.0)],
    ]
    distill.run(config(tmp_path / "fixed", alpha=0, alpha_schedule=[0.3, 0.8], val_size=6), source=source())
    for mine, other in (
        ("auto/step_1", "0.3/step_1"),
        ("auto/step_2", "0.3-0.8/step_2"),
        ("auto/step_1/probe", "0/step_1"),
    ):
        a, b = (tmp_path / run / f"seed_1/alpha_{m}/model.pt" for run, m in (("auto", mine), ("fixed", other)))
        assert a.read_bytes() == b.read_bytes()
    auto = json.loads((tmp_path / "auto/seed_1/alpha_auto/step_1/result.json").read_text())
    assert auto["auto"] == {
        **{"alpha_star": 0.3, "standard_error": 0.1, "alpha": 0.3, "takes_probe": False},
        **{"probe_val_brier": 0.5, "predicted_val_brier": 0.4, "val_brier": results[1].val_brier},
    }
    assert not list(tmp_path.rglob("choice.json"))


def test_the_estimate_is_from_held_out_predictions_of_teacher_and_probe(tmp_path):
    distill.run(config(tmp_path, **AUTO, distillation_steps=1), source=source())
    data = make_dataset(source(), config(tmp_path, **AUTO).data, 1)
    f, g = (
        distill.load_model(tmp_path / "seed_1" / m)(torch.from_numpy(data.val.images)).softmax(1).detach().numpy()
        for m in ("step_0", "alpha_auto/step_1/probe")
    )
    auto = json.loads((tmp_path / "seed_1/alpha_auto/step_1/result.json").read_text())["auto"]
    t, e = np.eye(3)[data.val.labels], f - g
    assert auto["alpha_star"] == pytest.approx(((t - g) * e).sum() / (e * e).sum(), rel=1e-3)


def test_a_probe_that_is_good_enough_is_the_student(tmp_path, monkeypatch):
    choices(monkeypatch, (0.05, True), (0.7, False))
    trained = []

    class Show(Listener):
        def start_model(self, name, images, done):
            trained.append(name)

    c = config(tmp_path, **AUTO)
    results = distill.run(c, source=source(), listener=Show())
    assert trained == [
        "seed 1, step 0",
        "seed 1, alpha auto probe, step 1",
        "seed 1, alpha auto probe, step 2",
        "seed 1, alpha auto, step 2",
    ]
    assert count_models(c) == 5  # at most
    student, probe = results[1:3]
    assert (student.alpha, student.epochs, student.seconds) == (0.0, 0, 0.0)
    assert student.test_nll == probe.test_nll
    folder = tmp_path / "seed_1/alpha_auto/step_1"
    assert (folder / "model.pt").read_bytes() == (folder / "probe/model.pt").read_bytes()
    assert json.loads((folder / "result.json").read_text())["auto"]["takes_probe"]
    parent = json.loads((tmp_path / "seed_1/alpha_auto/step_2/result.json").read_text())["parent"]
    assert parent["path"] == "seed_1/alpha_auto/step_1"


def test_agreement_to_rounding_is_told(tmp_path, monkeypatch):
    said = []
    listener = Listener()
    listener.note = said.append
    monkeypatch.setattr(estimated_alpha, "choose", lambda *a: estimated_alpha.Choice(None, None, 0.0, True, 0.5, 0.5))
    distill.run(config(tmp_path, **AUTO, distillation_steps=1), source=source(), listener=listener)
    assert said == [
        "seed 1, alpha auto, step 1: teacher and probe agree to rounding, so alpha has no effect; the probe is taken"
    ]


@pytest.mark.parametrize("outcomes", [((0.3, False), (0.0, True)), ((0.0, True), (0.8, False))])
@pytest.mark.parametrize(
    ("file", "occurrence"),
    [
        (student.STATE, 3),
        ("choice.json", 1),
        (student.STATE, 5),
        ("model.pt", 3),
        ("result.json", 3),
        ("choice.json", 2),
        ("result.json", 5),
    ],
)
def test_an_estimated_chain_killed_anywhere_ends_with_the_same_bits(tmp_path, monkeypatch, outcomes, file, occurrence):
    def by_step(first, probe, labels, rng):  # the outcome of a step whenever it is asked for
        star, takes = outcomes[rng.bit_generator.seed_seq.spawn_key[1] - 1]
        return estimated_alpha.Choice(star, 0.1, star, takes, 0.5, 0.4)

    monkeypatch.setattr(estimated_alpha, "choose", by_step)
    distill.run(config(tmp_path / "whole", **AUTO), source=source())
    with killed_at(file, occurrence):
        distill.run(config(tmp_path / "parts", **AUTO), source=source())
    if file == "choice.json":  # it was written down: nothing is estimated again for this step

        def only_later_steps(first, probe, labels, rng):
            assert rng.bit_generator.seed_seq.spawn_key[1] != occurrence
            return by_step(first, probe, labels, rng)

        monkeypatch.setattr(estimated_alpha, "choose", only_later_steps)
    distill.run(config(tmp_path / "parts", **AUTO), source=source())
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_another_probe_is_another_estimate(tmp_path, monkeypatch):
    choices(monkeypatch, (0.3, False), (0.8, False))
    with killed_at(student.STATE, 6):  # in the student's training
        distill.run(config(tmp_path, **AUTO, distillation_steps=1), source=source())
    folder = tmp_path / "seed_1/alpha_auto/step_1"
    assert (folder / "choice.json").exists()
    shutil.rmtree(folder / "probe")
    distill.run(config(tmp_path, **AUTO, distillation_steps=1), source=source())
    assert json.loads((folder / "result.json").read_text())["alpha"] == 0.8


def test_what_was_looked_ahead_at_may_be_run_in_the_same_directory(tmp_path):
    look = config(tmp_path / "a", alpha="preview", val_size=6)
    assert [r.step for r in distill.run(look, source=source())] == [0]
    go = {"alpha": 0.3, "val_size": 6, "distillation_steps": 1}
    with pytest.raises(UserError, match="--distillation-steps 1 instead of 2"):
        distill.run(config(tmp_path / "a", **go), source=source())
    results = distill.run(config(tmp_path / "a", **go | {"distillation_steps": 2}), source=source())
    assert [(r.arm, r.step) for r in results] == [(None, 0), ("0.3", 1), ("0.3", 2)]
    with pytest.raises(UserError, match=r"--alpha 0\.5 instead of 0\.3"):
        distill.run(config(tmp_path / "a", **go | {"alpha": 0.5, "distillation_steps": 2}), source=source())


WORDS = json.dumps(dict.fromkeys((field.name for field in fields(estimated_alpha.Choice)), "x"))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"alpha": 0.5, "strange": 1}', WORDS])
def test_a_damaged_estimate_is_refused_by_name(tmp_path, content):
    (tmp_path / "choice.json").write_text(content)
    with pytest.raises(UserError, match=r"choice\.json is damaged .*delete it"):
        estimated_alpha._read_choice(tmp_path / "choice.json")

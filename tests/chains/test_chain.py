"""The chain: the paper's loop, shared models, lineage and leakage."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import config, rows, source

import distill
from distill.chains import model_training
from distill.data.source import from_arrays
from distill.data.splits import make_dataset
from distill.errors import UserError
from distill.files import sha256
from distill.randomness import generator, torch_seed
from distill.records import write_json
from distill.running.experiment import count_models, prepare
from distill.store.rundir import RunDir
from distill.training.fit import Trainer
from distill.training.listener import Listener
from distill.training.models import CifarResNet

TEACHER = "seed_1/step_0"
STUDENT = "seed_1/alpha_0.3/step_1"


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)


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


def test_a_chain_equals_a_loop_written_by_hand(tmp_path):
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


def test_every_student_has_different_initial_weights(tmp_path):
    seen = []

    def network():
        seen.append(CifarResNet(8, 2, 1, 3))
        return seen[-1]

    c = config(tmp_path)
    lab = prepare(c, source(), network)
    chains = lab.chain(1, RunDir(tmp_path), Listener())
    first, again, second = (chains.session.new_model(step).network.conv1.weight for step in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_a_given_teacher_continues_the_original_chain_exactly(tmp_path, finished):
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


def test_a_given_teachers_hash_is_recorded(tmp_path, finished):
    teacher = finished / TEACHER / "model.pt"
    distill.run(config(tmp_path, teacher_ckpt=str(teacher)), source=source())
    parent = json.loads((tmp_path / TEACHER / "result.json").read_text())["parent"]
    assert parent == {"path": str(teacher), "sha256": sha256(teacher)}


def test_every_student_records_its_teachers_hash(finished):
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


def test_the_teacher_has_no_teacher_loss(finished):
    assert {row["train_teacher_loss"] for row in rows(finished / TEACHER / "metrics.csv")} == {""}


def test_no_training_state_is_left(finished):
    assert not list(finished.rglob("*.pt.tmp")) + list(finished.rglob(model_training.STATE))


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
    del content["sha256"]
    write_json(record, content)  # with the hash of what it now says
    with pytest.raises(UserError, match=r"step_1 was trained with a different teacher"):
        distill.run(config(tmp_path), source=source())


@pytest.mark.parametrize(
    ("options", "legal"), [({}, True), ({"seed": 2}, False), ({"seed": [1, 2]}, False), ({"val_size": 9}, False)]
)
def test_a_given_teacher_trained_on_held_out_images_is_refused(tmp_path, options, legal):
    digits = {"dataset": "digits", "train_size": 40, "test_size": 40, "max_epochs": 1, "distillation_steps": 1}
    distill.run(config(tmp_path / "first", **digits))
    again = config(tmp_path / "second", **digits | options, teacher_ckpt=str(tmp_path / "first" / TEACHER / "model.pt"))
    if legal:
        assert len(distill.run(again)) == 2
        return
    with pytest.raises(UserError, match="was trained on images that this run holds out: give its --seed 1"):
        distill.run(again)
    assert not (tmp_path / "second").exists()


def test_resume_reports_a_changed_number_of_threads(tmp_path):
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
    assert second.notes == ["threads changed from 1 to 2: the last bits may differ from those of an uninterrupted run"]


def test_a_run_does_not_change_the_callers_random_state(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    distill.run(config(tmp_path, distillation_steps=0), source=source())
    assert torch.equal(torch.rand(3), expected)


def test_infinite_weights_after_the_last_update_are_reported(tmp_path, monkeypatch):
    update, seen = Trainer.update, []

    def bad_at_last(self, *args):
        out = update(self, *args)
        seen.append(None)
        if len(seen) == 5:
            with torch.no_grad():
                self.parameters[0].fill_(math.inf)
        return out

    monkeypatch.setattr(Trainer, "update", bad_at_last)
    with pytest.raises(UserError, match=r"step 0, epoch 1: a parameter is not finite after update 5"):
        distill.run(config(tmp_path), source=source())
    assert not list(tmp_path.rglob("*.pt"))


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
        *(f"seed 1, alpha 0.3 then 0.9, step {step}" for step in (2, 3)),
        "seed 1, alpha 0.3 then 0.3 then 0.5, step 3",
    ]
    assert len(trained) == len(results) == count_models(c)
    assert [r.alpha for r in results if r.arm == "0.3-0.9"] == [0.9, 0.9]
    record = json.loads((tmp_path / "seed_1/alpha_0.3-0.9/step_2/result.json").read_text())
    assert record["parent"]["path"] == "seed_1/alpha_0.3/step_1"


def test_a_schedule_of_one_alpha_equals_that_alpha(tmp_path, finished):
    distill.run(config(tmp_path, alpha_schedule=[0.3], alpha=[], distillation_steps=3), source=source())
    model = "seed_1/alpha_0.3/step_3/model.pt"
    assert (tmp_path / model).read_bytes() == (finished / model).read_bytes()


def test_a_previewed_run_continues_with_other_alphas(tmp_path):
    look = config(tmp_path / "a", alpha="preview", val_size=6)
    assert [r.step for r in distill.run(look, source=source())] == [0]
    go = {"alpha": 0.3, "val_size": 6, "distillation_steps": 1}
    results = distill.run(config(tmp_path / "a", **go), source=source())
    assert [(r.arm, r.step) for r in results] == [(None, 0), ("0.3", 1), ("0.3", 2)]
    results = distill.run(config(tmp_path / "a", **go | {"alpha": 0.5}), source=source())  # adds an arm
    assert [r.arm for r in results] == [None, "0.3", "0.3", "0.5", "0.5"]

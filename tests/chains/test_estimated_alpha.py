"""alpha.py against brute force, a spectral chain whose answer is known, and its limits."""

import json
import shutil
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from tiny import config, contents, killed_at, source

import distill
from distill.chains import estimated_alpha, model_training
from distill.chains.estimated_alpha import choose
from distill.data.splits import make_dataset
from distill.errors import UserError
from distill.randomness import generator
from distill.running.experiment import count_models
from distill.training.listener import Listener


def rng():
    return generator(1, "bootstrap")


def predictions(seed: int, n: int = 60, classes: int = 4, towards: float = 0.0):
    """f, g (n, classes) and labels (n,); ``towards`` moves the truth's probability in f up."""
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, classes, n)
    f, g = draws.standard_normal((2, n, classes))
    f[np.arange(n), labels] += towards
    return softmax(f, axis=1), softmax(g, axis=1), labels


def brier(p, labels):
    return np.mean([sum((p[i, c] - (c == y)) ** 2 for c in range(p.shape[1])) for i, y in enumerate(labels)])


@given(st.integers(0, 10**6), st.floats(-3, 3))
def test_no_alpha_on_a_grid_is_better(seed, towards):
    f, g, labels = predictions(seed, towards=towards)
    choice = choose(f, g, labels, rng())
    errors = [brier(a * f + (1 - a) * g, labels) for a in np.linspace(0, 1, 21)]
    assert choice.probe_val_brier == pytest.approx(errors[0], rel=1e-12)
    assert choice.predicted_val_brier == pytest.approx(brier(choice.alpha * f + (1 - choice.alpha) * g, labels))
    if not choice.takes_probe:
        assert choice.predicted_val_brier <= min(errors) + 1e-12
    star = choice.alpha_star
    at_best = brier(star * f + (1 - star) * g, labels)
    assert all(at_best <= brier(a * f + (1 - a) * g, labels) + 1e-12 for a in (star - 0.01, star + 0.01))


@given(st.integers(0, 10**6), st.floats(-3, 3))
def test_a_wider_range_clips_less_and_the_unit_interval_as_before(seed, towards):
    f, g, labels = predictions(seed, towards=towards)
    narrow, wide = choose(f, g, labels, rng()), choose(f, g, labels, rng(), (-0.5, 2.0))
    assert (wide.alpha_star, wide.standard_error) == (narrow.alpha_star, narrow.standard_error)
    star, error = narrow.alpha_star, narrow.standard_error
    assert narrow.takes_probe == (star <= error)
    assert narrow.alpha == (0 if narrow.takes_probe else min(star, 1.0))
    assert wide.takes_probe == (abs(star) <= error)
    assert wide.alpha == (0 if wide.takes_probe else max(-0.5, min(star, 2.0)))


def test_the_alpha_of_a_known_mixture_is_recovered():
    """Labels drawn from 0.3 f + 0.7 g: with many of them alpha* is 0.3, within its error."""
    draws = np.random.default_rng(0)
    f, g = softmax(3 * draws.standard_normal((2, 20_000, 3)), axis=2)
    labels = (draws.random(20_000)[:, None] > (0.3 * f + 0.7 * g).cumsum(1)).sum(1)
    choice = choose(f, g, labels, rng())
    assert abs(choice.alpha_star - 0.3) < 3 * choice.standard_error < 0.06
    assert choice.alpha == choice.alpha_star


def test_the_standard_error_is_the_spread_over_new_samples():
    def sample(seed):
        draws = np.random.default_rng(seed)
        f, g = softmax(2 * draws.standard_normal((2, 300, 3)), axis=2)
        labels = (draws.random(300)[:, None] > (0.5 * f + 0.5 * g).cumsum(1)).sum(1)
        return choose(f, g, labels, rng())

    choices = [sample(seed) for seed in range(60)]
    spread = np.std([choice.alpha_star for choice in choices])
    assert np.mean([choice.standard_error for choice in choices]) == pytest.approx(spread, rel=0.3)


def test_an_alpha_above_one_is_recorded_and_clipped_for_training():
    _, g, labels = predictions(0)
    truth = np.eye(4)[labels]
    beyond = choose(g + (truth - g) / 2, g, labels, rng())  # the truth lies at alpha = 2
    assert (beyond.alpha_star, beyond.alpha, beyond.takes_probe) == (pytest.approx(2), 1.0, False)
    below = choose(g - (truth - g) / 4, g, labels, rng())  # ... at -4
    assert (below.alpha_star, below.alpha, below.takes_probe) == (pytest.approx(-4), 0.0, True)
    assert below.predicted_val_brier == below.probe_val_brier == pytest.approx(brier(g, labels))


def test_the_probe_is_taken_if_alpha_is_within_its_error_of_zero():
    taken = [choose(*predictions(seed, n=20), rng()) for seed in range(40)]
    assert any(0 < choice.alpha_star <= choice.standard_error for choice in taken)
    assert any(choice.alpha_star > choice.standard_error for choice in taken)
    assert all(choice.takes_probe == (choice.alpha_star <= choice.standard_error) for choice in taken)


def test_the_probe_is_taken_if_both_models_agree_to_rounding():
    f, _, labels = predictions(0)
    nearly = np.float64(np.float32(f))
    choice = choose(f, nearly, labels, rng())
    assert (choice.alpha_star, choice.standard_error, choice.alpha, choice.takes_probe) == (None, None, 0.0, True)
    assert choose(f, f + 1e-4 * (f.argmax(1)[:, None] == np.arange(4)), labels, rng()).alpha_star is not None


def test_the_same_draws_give_the_same_error():
    f, g, labels = predictions(3)
    assert choose(f, g, labels, rng()) == choose(f, g, labels, rng())
    assert choose(f, g, labels, rng()) != choose(f, g, labels, generator(2, "bootstrap"))


# -------- whole runs


TEACHER = "seed_1/step_0"
STUDENT = "seed_1/alpha_0.3/step_1"


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)


def choices(monkeypatch, *outcomes):
    """Estimates that come out as (alpha_star, takes_probe), one after the other."""
    given = iter(outcomes)

    def choose(first, probe, labels, rng, within):
        star, takes = next(given)
        return estimated_alpha.Choice(star, 0.1, 0.0 if takes else star, takes, 0.5, 0.4)

    monkeypatch.setattr(estimated_alpha, "choose", choose)


AUTO = {"alpha": "auto", "val_size": 6}


def test_an_estimated_student_is_trained_with_its_alpha(tmp_path, monkeypatch):
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


def test_a_probe_that_is_taken_becomes_the_student(tmp_path, monkeypatch):
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


def test_a_note_says_that_alpha_has_no_effect(tmp_path, monkeypatch):
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
        (model_training.STATE, 3),
        ("choice.json", 1),
        (model_training.STATE, 5),
        ("model.pt", 3),
        ("result.json", 3),
        ("choice.json", 2),
        ("result.json", 5),
    ],
)
def test_an_estimated_chain_killed_anywhere_ends_with_the_same_bits(tmp_path, monkeypatch, outcomes, file, occurrence):
    def by_step(first, probe, labels, rng, within):  # the outcome of a step, in any order of steps
        star, takes = outcomes[rng.bit_generator.seed_seq.spawn_key[1] - 1]
        return estimated_alpha.Choice(star, 0.1, star, takes, 0.5, 0.4)

    monkeypatch.setattr(estimated_alpha, "choose", by_step)
    distill.run(config(tmp_path / "whole", **AUTO), source=source())
    with killed_at(file, occurrence):
        distill.run(config(tmp_path / "parts", **AUTO), source=source())
    if file == "choice.json":  # it was written down: nothing is estimated again for this step

        def only_later_steps(first, probe, labels, rng, within):
            assert rng.bit_generator.seed_seq.spawn_key[1] != occurrence
            return by_step(first, probe, labels, rng, within)

        monkeypatch.setattr(estimated_alpha, "choose", only_later_steps)
    distill.run(config(tmp_path / "parts", **AUTO), source=source())
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_after_deleting_the_probe_alpha_is_estimated_again(tmp_path, monkeypatch):
    choices(monkeypatch, (0.3, False), (0.8, False))
    with killed_at(model_training.STATE, 6):  # in the student's training
        distill.run(config(tmp_path, **AUTO, distillation_steps=1), source=source())
    folder = tmp_path / "seed_1/alpha_auto/step_1"
    assert (folder / "choice.json").exists()
    shutil.rmtree(folder / "probe")
    distill.run(config(tmp_path, **AUTO, distillation_steps=1), source=source())
    assert json.loads((folder / "result.json").read_text())["alpha"] == 0.8


WORDS = json.dumps(dict.fromkeys((field.name for field in fields(estimated_alpha.Choice)), "x"))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"alpha": 0.5, "strange": 1}', WORDS])
def test_a_damaged_estimate_is_refused_by_name(tmp_path, content):
    (tmp_path / "choice.json").write_text(content)
    with pytest.raises(UserError, match=r"choice\.json is damaged .*delete it"):
        estimated_alpha._read_choice(tmp_path / "choice.json", "0" * 64)

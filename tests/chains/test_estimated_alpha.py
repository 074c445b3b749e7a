"""alpha.py against brute force, a spectral chain whose answer is known, and its limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from distill.chains.estimated_alpha import choose
from distill.randomness import generator


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
def test_no_weight_on_a_grid_is_better(seed, towards):
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


def test_a_mixture_of_the_two_is_found_again():
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


def test_a_weight_outside_the_unit_interval_is_clipped_but_kept():
    _, g, labels = predictions(0)
    truth = np.eye(4)[labels]
    beyond = choose(g + (truth - g) / 2, g, labels, rng())  # the truth lies at alpha = 2
    assert (beyond.alpha_star, beyond.alpha, beyond.takes_probe) == (pytest.approx(2), 1.0, False)
    below = choose(g - (truth - g) / 4, g, labels, rng())  # ... at -4
    assert (below.alpha_star, below.alpha, below.takes_probe) == (pytest.approx(-4), 0.0, True)
    assert below.predicted_val_brier == below.probe_val_brier == pytest.approx(brier(g, labels))


def test_the_probe_is_taken_where_the_weight_is_within_its_error_of_zero():
    taken = [choose(*predictions(seed, n=20), rng()) for seed in range(40)]
    assert any(0 < choice.alpha_star <= choice.standard_error for choice in taken)
    assert any(choice.alpha_star > choice.standard_error for choice in taken)
    assert all(choice.takes_probe == (choice.alpha_star <= choice.standard_error) for choice in taken)


def test_where_both_agree_to_rounding_alpha_does_not_matter():
    f, _, labels = predictions(0)
    nearly = np.float64(np.float32(f))
    choice = choose(f, nearly, labels, rng())
    assert (choice.alpha_star, choice.standard_error, choice.alpha, choice.takes_probe) == (None, None, 0.0, True)
    assert choose(f, f + 1e-4 * (f.argmax(1)[:, None] == np.arange(4)), labels, rng()).alpha_star is not None


def test_the_same_draws_give_the_same_error():
    f, g, labels = predictions(3)
    assert choose(f, g, labels, rng()) == choose(f, g, labels, rng())
    assert choose(f, g, labels, rng()) != choose(f, g, labels, generator(2, "bootstrap"))

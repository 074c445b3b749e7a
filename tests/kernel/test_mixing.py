"""kernel/mixing.py: the best alphas against grids, chains and the normal equations in extended precision."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernels import rbf

from distill import krr
from distill.kernel.mixing import bounded_greedy_alphas
from distill.kernel.toy.data import sinusoid


def test_golden_best_alphas(data, spectrum, K_new):
    residuals = data.truth - krr.predict(K_new, krr.power_coefficients(spectrum, data.y, 0.2, 6))
    alphas, risks = krr.greedy_alphas(residuals)
    np.testing.assert_allclose(alphas, [-0.62184, 0.33036, 0.33476, 0.33577, 0.33604], atol=5e-6)
    np.testing.assert_allclose(risks[:2], [0.16477, 0.148340], atol=5e-6)
    joint = [krr.joint_weights(residuals[:k])[1] for k in (2, 3, 4)]
    np.testing.assert_allclose(joint, [0.148340, 0.147647, 0.143363], atol=5e-7)


def test_best_alpha_if_it_has_no_effect():
    f = np.array([1.0, 2.0])
    assert math.isnan(krr.best_alpha(f, f * (1 + 1e-16), [0.0, 1.0]))
    assert math.isnan(krr.best_alpha([0.0], [0.0], [1.0]))
    assert krr.best_alpha(f, f * (1 + 1e-9), f) == pytest.approx(1.0)
    R = np.ones((3, 4))
    np.testing.assert_array_equal(krr.greedy_alphas(R)[0], [1, 1])
    np.testing.assert_allclose(krr.joint_weights(R)[0], [1, 0, 0])


def test_greedy_alphas_are_those_of_chains_on_a_grid(data, K_new, spectrum):
    residuals = data.truth - krr.predict(K_new, krr.power_coefficients(spectrum, data.y, 0.2, 4))
    alphas, risks = krr.greedy_alphas(residuals)
    for i in range(3):
        grid = alphas[i] + np.linspace(-0.5, 0.5, 41)
        losses = []
        for alpha in grid:
            c = krr.dual_coefficients(spectrum, data.y, 0.2, [*alphas[:i], alpha], i + 2)
            losses.append(np.mean((krr.predict(K_new, c)[0] - data.truth) ** 2))
        assert np.argmin(losses) == 20
        assert losses[20] == pytest.approx(risks[i + 1], rel=1e-10)


def test_greedy_alphas_in_the_range_need_no_clipping():
    residuals = np.random.default_rng(0).normal(size=(4, 50)) + np.arange(4)[:, None]
    clipped, free, _ = bounded_greedy_alphas(residuals, 0, 1)
    unclipped, _ = krr.greedy_alphas(residuals)
    assert ((unclipped > 0) & (unclipped < 1)).all()
    np.testing.assert_allclose(clipped, unclipped, rtol=1e-10)
    np.testing.assert_allclose(free, unclipped, rtol=1e-10)


def test_clipped_alpha_without_effect_is_one():
    np.testing.assert_allclose(bounded_greedy_alphas(np.ones((3, 5)), 0, 1)[0], 1)


def test_joint_weights_by_the_normal_equations_in_extended_precision():
    R = np.random.default_rng(5).standard_normal((4, 30))
    with mpmath.workdps(50):
        M = mpmath.matrix(R.tolist())
        c = mpmath.lu_solve(M * M.T, mpmath.ones(4, 1))
        expected = [float(v / sum(c)) for v in c]
    weights, risk = krr.joint_weights(R)
    np.testing.assert_allclose(weights, expected, rtol=1e-12)
    assert risk == pytest.approx(np.mean((weights @ R) ** 2))


def test_joint_weights_are_a_chain_with_that_risk(data, K_new, spectrum):
    residuals = data.truth - krr.predict(K_new, krr.power_coefficients(spectrum, data.y, 0.2, 3))
    weights, risk = krr.joint_weights(residuals)
    c = krr.dual_coefficients(spectrum, data.y, 0.2, krr.weights_to_alphas(weights), 3)
    assert np.mean((krr.predict(K_new, c)[0] - data.truth) ** 2) == pytest.approx(risk, rel=1e-9)


def test_alphas_without_held_out_data_come_near_the_best():
    rng = np.random.default_rng(0)
    x = rng.uniform(size=1000)
    new = np.linspace(0, 1, 101)
    y = sinusoid(x) + 0.5 * rng.standard_normal(1000)
    spectrum = krr.decompose(rbf(x, x))
    K_new = rbf(new, x)
    by_gcv, _ = krr.greedy_alphas(krr.gcv_residuals(spectrum, y, 20.0, 2))
    powers = krr.predict(K_new, krr.power_coefficients(spectrum, y, 20.0, 2))
    _, (teacher, best) = krr.greedy_alphas(sinusoid(new) - powers)
    risk = np.mean((krr.alphas_to_weights(by_gcv) @ powers - sinusoid(new)) ** 2)
    assert risk < teacher / 2
    assert risk < 1.1 * best


@given(st.lists(st.floats(-3, 0.9) | st.floats(1.1, 3), min_size=1, max_size=6))
def test_stick_breaking_is_inverted_by_weights_to_alphas(alphas):
    weights = krr.alphas_to_weights(alphas)
    assert len(weights) == len(alphas) + 1
    assert weights.sum() == pytest.approx(1, abs=1e-12 * np.abs(weights).max())
    # a stick broken to nearly nothing keeps few digits, in proportion
    shortest = np.abs(np.cumprod(1 - np.array(alphas[::-1]))).min() / np.abs(weights).max()
    np.testing.assert_allclose(krr.weights_to_alphas(weights), alphas, rtol=1e-12, atol=1e-13 / shortest)
    np.testing.assert_allclose(
        krr.alphas_to_weights(krr.weights_to_alphas(weights)),
        weights,
        atol=1e-12 * np.abs(weights).max() / shortest,
    )


def test_stick_breaking_of_a_used_up_stick():
    np.testing.assert_array_equal(krr.alphas_to_weights([0.3, 1.0]), [1, 0, 0])
    np.testing.assert_array_equal(krr.weights_to_alphas([1.0, 0.0, 0.0]), [1, 1])
    with pytest.raises(ValueError, match="sum to 1"):
        krr.weights_to_alphas([0.5, 0.6])
    with pytest.raises(ValueError, match="no alphas give"):
        krr.weights_to_alphas([1.0, 1.0, -1.0])


@given(st.integers(0, 10**6), st.integers(2, 5))
def test_best_alphas_beat_every_grid_value(seed, k):
    R = np.random.default_rng(seed).standard_normal((k, 8)) + 1
    alphas, risks = krr.greedy_alphas(R)
    for i in range(k - 1):
        for alpha in np.linspace(-3, 3, 61):
            weights = krr.alphas_to_weights([*alphas[:i], alpha])
            assert risks[i + 1] <= np.mean((weights @ R[: i + 2]) ** 2) * (1 + 1e-9)
    _, joint = krr.joint_weights(R)
    assert joint <= risks.min() * (1 + 1e-9)

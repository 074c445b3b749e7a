"""kernel/riskmap.py: maps by every solver against single chains."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import GOLDEN, random_kernel, ridges

from distill import krr
from distill.kernel import linalg, riskmap


@pytest.mark.parametrize("solver", ["eigh", "cholesky"])
def test_error_of_many_targets_is_the_mean_of_each(K, K_new, solver):
    rng = np.random.default_rng(0)
    Y = rng.standard_normal((11, 3))
    T = rng.standard_normal((101, 3))
    risk = krr.risk_map(K, Y, K_new, T, [0.3], [0.1, 1], [2, math.inf], solver=solver)
    each = [krr.risk_map(K, Y[:, j], K_new, T[:, j], [0.3], [0.1, 1], [2, math.inf]) for j in range(3)]
    np.testing.assert_allclose(risk, np.mean(each, axis=0), rtol=1e-12)


@pytest.mark.parametrize("points", [2, 101], ids=["fewer points than columns", "more"])
def test_many_targets_by_tridiagonal_solves(K, K_new, points):
    rng = np.random.default_rng(0)
    Y = rng.standard_normal((11, 3))
    T = rng.standard_normal((101, 3))[:points]
    new = K_new[:points]
    by_tridiagonal = krr.risk_map(K, Y, new, T, [0.3], [0.1, 1], [2, math.inf], solver="tridiagonal")
    by_eigh = krr.risk_map(K, Y, new, T, [0.3], [0.1, 1], [2, math.inf], solver="eigh")
    np.testing.assert_allclose(by_tridiagonal, by_eigh, rtol=1e-12)


@settings(max_examples=30)
@given(st.integers(0, 10**6), ridges, st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=3))
def test_map_by_every_solver_is_that_of_single_chains(seed, lam, alphas):
    rng = np.random.default_rng(seed)
    K = random_kernel(seed, 9)
    y = rng.standard_normal(9)
    K_new = rng.standard_normal((5, 9))
    target = rng.standard_normal(5)
    steps = [1, 3, 7]
    expected = np.empty((len(alphas), 3))
    for i, alpha in enumerate(alphas):
        c = krr.chain(K, y, lam, alpha, steps, solver="eigh").coefficients
        expected[i] = ((krr.predict(K_new, c) - target) ** 2).mean(axis=1)
    for solver in ("eigh", "cholesky", "tridiagonal"):
        computed = krr.risk_map(K, y, K_new, target, alphas, lam, steps, solver=solver)[:, 0]
        np.testing.assert_allclose(computed, expected, rtol=1e-7)


def test_map_with_late_steps_limits_and_divergence(K, K_new, data, spectrum):
    alphas = [-1.0, 0.0, 0.35, 2.5]
    lams = [0.05, 0.2]
    steps = [1, 4, 10**6, math.inf]
    risk = krr.risk_map(spectrum, data.y, K_new, data.truth, alphas, lams, steps)
    assert risk.shape == (4, 2, 4)
    for i, alpha in enumerate(alphas):
        for j, lam in enumerate(lams):
            for s, step in enumerate(steps):
                if alpha in (-1.0, 2.5) and step > 4:
                    assert risk[i, j, s] == math.inf
                    continue
                c = krr.dual_coefficients(spectrum, data.y, lam, alpha, step)
                expected = np.mean((krr.predict(K_new, c)[0] - data.truth) ** 2)
                assert risk[i, j, s] == pytest.approx(expected, rel=1e-10)
    for solver in ("cholesky", "tridiagonal"):
        limits = krr.risk_map(K, data.y, K_new, data.truth, [0, 0.35], [0.2], [2, math.inf], solver=solver)
        np.testing.assert_allclose(limits[:, 0, 1], [GOLDEN[0.0][-1], GOLDEN[0.35][-1]], atol=5e-6)


def test_auto_takes_the_cheapest_solver_for_a_map(monkeypatch):
    assert krr.choose_map_solver(2000, 10, 100, 100) == "tridiagonal"
    assert krr.choose_map_solver(2000, 2, 10, 10) == "cholesky"
    assert krr.choose_map_solver(10_000, 10, 100, 100) == "cholesky"
    assert krr.choose_map_solver(11, 10, 100, 100) == "eigh"  # eigenvectors of 11 points cost nothing
    rng = np.random.default_rng(0)
    K = random_kernel(0, 300)
    y = rng.standard_normal(300)
    K_new = rng.standard_normal((5, 300))
    target = np.ones(5)
    expected = krr.risk_map(K, y, K_new, target, [0.3], [0.1, 1, 2], [1, 2], solver="eigh")
    with monkeypatch.context() as patch:
        patch.setattr(riskmap, "decompose", lambda *_, **__: pytest.fail("eigh was taken"))
        np.testing.assert_allclose(krr.risk_map(K, y, K_new, target, [0.3], [0.1, 1, 2], [1, 2]), expected, rtol=1e-9)


def test_auto_falls_back_to_the_spectrum_if_lam_is_below_rounding(monkeypatch):
    rng = np.random.default_rng(0)
    K = random_kernel(0, 300, rank=5)
    problem = (K, rng.standard_normal(300), rng.standard_normal((5, 300)), np.ones(5))
    axes = ([0.3], [1e-18, 1e-3, 0.1], [1, 2])
    expected = krr.risk_map(*problem, *axes, solver="eigh")
    decompositions = []

    def decompose(K, **options):
        decompositions.append(K)
        return linalg.decompose(K, **options)

    monkeypatch.setattr(riskmap, "decompose", decompose)
    risk = krr.risk_map(*problem, *axes)
    assert len(decompositions) == 1
    assert np.isfinite(risk).all()
    # At lam = 1e-18 the risk is made of K's rounding, whose bits may depend on where the arrays are in memory.
    np.testing.assert_allclose(risk[:, 1:], expected[:, 1:], rtol=1e-9)
    with pytest.raises(linalg.SingularKernelError, match="eigh"):
        krr.risk_map(*problem, *axes, solver="tridiagonal")


@pytest.mark.parametrize("lams", [[1e-18], [1.0, 1e-18]])
@pytest.mark.parametrize("steps", [[1], [1, 2], [2, math.inf]])
def test_auto_falls_back_whatever_solver_it_chose(lams, steps):
    rng = np.random.default_rng(0)
    K = random_kernel(0, 300, rank=5)
    y = rng.standard_normal(300)
    new = rng.standard_normal((5, 300))
    assert np.isfinite(krr.risk_map(K, y, new, np.ones(5), [0.3], lams, steps)).all()
    with pytest.raises(linalg.SingularKernelError, match="eigh"):
        krr.risk_map(K, y, new, np.ones(5), [0.3], lams, steps, solver="cholesky")


def test_at_lam_0_every_alpha_has_the_risk_of_the_interpolant(K, K_new, data):
    risk = krr.risk_map(K, data.y, K_new, data.truth, [-10, 0.5, 1e100], [0.0, 0.2], [1, 20, 30])
    np.testing.assert_allclose(risk[:, 0], risk[1, 0, 0], rtol=1e-9)
    assert risk[2, 1, 1] == math.inf  # with a ridge this chain diverges


@pytest.mark.parametrize("solver", ["eigh", "cholesky", "tridiagonal"])
def test_every_solver_finds_negative_eigenvalues_at_any_ridge(solver):
    V = np.linalg.qr(np.random.default_rng(7).standard_normal((30, 30)))[0]

    def risk(least, lam):
        d = np.r_[np.geomspace(1, 1e-3, 29), least]
        K = V * (d / np.linalg.norm(d)) @ V.T
        return krr.risk_map((K + K.T) / 2, np.ones(30), np.ones((2, 30)), np.ones(2), 0.5, lam, [1], solver=solver)

    for lam in (1e-3, 1.0, 1e6):
        risk(-0.5e-8, lam)
        with pytest.raises(linalg.NotPositiveSemidefiniteError, match="positive semidefinite"):
            risk(-5e-8, lam)


def test_bad_arguments_are_errors(K, data):
    new = np.ones((3, 11))
    with pytest.raises(ValueError, match="target must have a row for each of the 3 points"):
        krr.risk_map(K, data.y, new, np.ones(4), [0.5], [0.2], [1])
    for solver in ("cholesky", "tridiagonal"):
        with pytest.raises(ValueError, match="needs lam > 0"):
            krr.risk_map(K, data.y, new, np.ones(3), [0.5], [0.0], [1], solver=solver)
    with pytest.raises(ValueError, match="two points"):
        krr.risk_map(np.eye(1), [1.0], np.ones((1, 1)), [1.0], [0.5], [0.1], [1], solver="tridiagonal")

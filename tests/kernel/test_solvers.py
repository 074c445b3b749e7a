"""kernel/solvers.py: chains against direct solves, maps against single chains, the choice of solver."""

import math

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import GOLDEN, STEPS, exact_chain, random_kernel, rbf, ridges

from distill import krr
from distill.kernel import linalg, solvers
from distill.kernel.arrays import EPS

BOTH = pytest.mark.parametrize("solver", ["eigh", "cholesky"])


@BOTH
@pytest.mark.parametrize("alpha", GOLDEN)
def test_golden_losses(data, K, K_new, alpha, solver):
    chain = krr.chain(K, data.y, 0.2, alpha, STEPS, solver=solver)
    losses = ((krr.predict(K_new, chain.coefficients) - data.truth) ** 2).mean(axis=1)
    np.testing.assert_array_equal(losses.round(5), GOLDEN[alpha])
    assert chain.solver == solver


@BOTH
@pytest.mark.parametrize("alphas", [[0.0], [0.35], [1.0], [-0.5], [1.4], [0.2, -0.7, 0.9]])
@pytest.mark.parametrize("lam", [1e-12, 1e-3, 0.2, 50.0, 1e12])
def test_chain_equals_direct_solves(lam, alphas, solver):
    K = random_kernel(1, 7)
    y = np.random.default_rng(2).standard_normal(7)
    duals, _ = exact_chain(K, y, [lam], alphas, 5)
    d = np.linalg.eigvalsh(K)
    condition = (d[-1] + lam) / (d[0] + lam)
    # alpha outside [0, 1] makes the chain's coefficients grow, and rounding with them
    growth = 2 if min(alphas) >= 0 and max(alphas) <= 1 else 50
    computed = krr.chain(K, y, lam, alphas, range(1, 6), solver=solver).coefficients
    scale = np.linalg.norm(duals, axis=1).max()
    np.testing.assert_allclose(computed, duals, rtol=0, atol=50 * EPS * condition * growth * scale)


@BOTH
def test_many_targets_at_once(K, K_new, solver):
    Y = np.random.default_rng(0).standard_normal((11, 3))
    together = krr.chain(K, Y, 0.1, [0.2, 0.6], [1, 3, 5], solver=solver).coefficients
    apart = [krr.chain(K, Y[:, j], 0.1, [0.2, 0.6], [1, 3, 5], solver=solver).coefficients for j in range(3)]
    np.testing.assert_allclose(together, np.stack(apart, axis=-1), atol=1e-13)
    predicted = krr.predict(K_new, together)
    assert predicted.shape == (3, 101, 3)
    np.testing.assert_allclose(predicted[1, :, 2], K_new @ apart[2][1], atol=1e-13)


def test_limit_is_an_ordinary_fit_with_lam_over_alpha(K, data):
    for lam, alpha in [(0.2, 0.35), (1e-3, 1.5), (5.0, -0.1)]:
        expected = scipy.linalg.solve(K + lam / alpha * np.eye(11), data.y, assume_a="sym")
        for solver in ("eigh", "cholesky"):
            c = krr.chain(K, data.y, lam, alpha, math.inf, solver=solver).coefficients[0]
            np.testing.assert_allclose(c, expected, rtol=1e-10)


def test_zero_ridge_by_cholesky(spectrum, K, data):
    interpolant = krr.dual_coefficients(spectrum, data.y, 0.0, 0.35, [1, 2, math.inf])
    by_cholesky = krr.chain(K, data.y, 0.0, -3.0, [1, 4, math.inf], solver="cholesky").coefficients
    np.testing.assert_allclose(by_cholesky, interpolant, rtol=1e-9)


@pytest.mark.parametrize("solver", ["eigh", "cholesky", "auto"])
def test_divergence_is_an_error(K, data, solver):
    for alpha in (-0.2, 2.2):
        with pytest.raises(krr.DivergentChainError, match="diverges"):
            krr.chain(K, data.y, 0.2, alpha, math.inf, solver=solver)
    with pytest.raises(krr.DivergentChainError, match="1e308"):
        krr.chain(K, data.y, 0.2, -5.0, 2000, solver=solver)


def test_one_point():
    K = np.array([[2.0]])
    y = np.array([3.0])
    for solver in ("eigh", "cholesky"):
        chain = krr.chain(K, y, 1.0, 0.5, [1, 2, math.inf], solver=solver)
        # A = 2/3: B = 2/3, 2/3 (1/2 + 1/3) = 5/9, and (1/2 * 2)/(1/2 * 2 + 1) = 1/2 in the limit; c = B y / d
        np.testing.assert_allclose(chain.coefficients[:, 0], [1.0, 5 / 6, 3 / 4])


def test_kernel_of_zeros_predicts_zero():
    for solver in ("eigh", "cholesky"):
        chain = krr.chain(np.zeros((3, 3)), np.ones(3), 0.5, 0.4, [1, 2], solver=solver)
        np.testing.assert_allclose(chain.coefficients, [[2.0] * 3, [0.8] * 3])


def test_repeated_points(data):
    x = np.repeat(data.x, 2)
    y = np.repeat(data.y, 2)
    K = rbf(x, x)
    twice = krr.chain(K, y, 0.2, 0.35, STEPS)
    # two copies of each point count as one point with half the ridge
    once = krr.chain(rbf(data.x, data.x), data.y, 0.1, 0.35, STEPS)
    new = np.linspace(0, 1, 17)
    np.testing.assert_allclose(
        krr.predict(rbf(new, x), twice.coefficients),
        krr.predict(rbf(new, data.x), once.coefficients),
        atol=1e-12,
    )
    for solver in ("eigh", "cholesky", "auto"):
        with pytest.raises(linalg.SingularKernelError):
            krr.chain(K, y, 0.0, 0.35, [1], solver=solver)


@pytest.mark.parametrize("gamma", [1e-6, 1e-2, 1.0])
@BOTH
def test_badly_conditioned_kernels(data, gamma, solver):
    lam = 1e-10
    K = rbf(data.x, data.x, gamma)
    K_new = rbf(np.linspace(0, 1, 9), data.x, gamma)
    chain = krr.chain(K, data.y, lam, 0.35, [3], solver=solver)
    # The reference starts from the same float64 kernel matrices: what is tested is the solving.
    duals, _ = exact_chain(K, data.y, [lam], [0.35], 3)
    expected = K_new @ duals[2]
    scale = np.abs(K_new) @ np.abs(duals[2])
    assert chain.condition > krr.UNTRUSTED
    assert (np.abs(krr.predict(K_new, chain.coefficients)[0] - expected) <= EPS * chain.condition * scale).all()


def test_auto_takes_the_cheaper_solver():
    assert krr.choose_solver(2000, 1, 10) == "cholesky"
    assert krr.choose_solver(2000, 10, 100) == "cholesky"
    assert krr.choose_solver(2000, 50, 1000) == "eigh"
    assert krr.choose_solver(2000, 1, 10**6) == "eigh"
    K = random_kernel(0, 300)
    y = np.ones(300)
    assert krr.chain(K, y, 0.1, 0.3, [1, 2, 3]).solver == "cholesky"
    assert krr.chain(K, y, 0.1, 0.3, [10**6]).solver == "eigh"
    assert krr.chain(K, y, 0.1, -0.01, [math.inf]).solver == "eigh"  # whether it exists takes an eigenvalue
    low = random_kernel(0, 300, rank=5)
    assert krr.chain(low, y, 1e-18, 0.3, [2]).solver == "eigh"  # lam is lost in K's rounding
    with pytest.raises(linalg.SingularKernelError, match="eigh"):
        krr.chain(low, y, 1e-18, 0.3, [2], solver="cholesky")


def test_condition_by_cholesky_is_a_bound_or_an_estimate():
    K = random_kernel(9, 30, rank=20)
    y = np.ones(30)
    exact = krr.chain(K, y, 1e-3, 0.5, [1], solver="eigh").condition
    bound = krr.chain(K, y, 1e-3, 0.5, [1], solver="cholesky").condition
    assert exact <= bound <= 5 * exact
    full = random_kernel(9, 30)  # its smallest eigenvalue is 1e-3, and a bound by lam = 1e-12 would be 1e12
    estimate = krr.chain(full, y, 1e-12, 0.5, [1], solver="cholesky").condition
    one_norm = np.linalg.cond(full, 1)
    assert one_norm / 3 < estimate < 3 * one_norm


@BOTH
def test_bad_kernels_are_errors(solver):
    def solve(K):
        return krr.chain(np.array(K, dtype=float), np.ones(2), 10.0, 0.5, [1], solver=solver)

    solve([[2, 1], [1, 2]])
    with pytest.raises(linalg.NotSymmetricError, match="symmetric"):
        solve([[2, 1], [0.5, 2]])
    with pytest.raises(linalg.NotPositiveSemidefiniteError, match="positive semidefinite"):
        solve([[1, 2], [2, 1]])
    for bad in (math.nan, math.inf, 1e200):
        with pytest.raises(linalg.NotFiniteError):
            solve([[1, bad], [bad, 1]])
    for shape in ((2, 3), (2,), (0, 0)):
        with pytest.raises(linalg.KernelMatrixError, match="square"):
            krr.chain(np.ones(shape), np.ones(2), 1.0, 0.5, [1], solver=solver)


def test_bad_arguments_are_errors(K, data):
    for lam in (-1e-3, math.nan, math.inf):
        with pytest.raises(ValueError, match="lam"):
            krr.chain(K, data.y, lam, 0.5, [1], solver="cholesky")
    with pytest.raises(ValueError, match="row for each"):
        krr.chain(K, data.y[:-1], 0.2, 0.5, [1])
    with pytest.raises(linalg.NotFiniteError, match="y must be finite"):
        krr.chain(K, data.y * math.nan, 0.2, 0.5, [1])
    for solver in ("qr", "tridiagonal"):
        with pytest.raises(ValueError, match="solver"):
            krr.chain(K, data.y, 0.2, 0.5, [1], solver=solver)


def problem_of(n):
    """An RBF kernel matrix (n, n) and targets (n,)."""
    rng = np.random.default_rng(5)
    X = rng.standard_normal((n, 3))
    return np.exp(-((X[:, None] - X) ** 2).sum(2)), rng.standard_normal(n)


def test_trusted_kernel_gives_the_same_chain():
    K, y = problem_of(40)
    plain, trusted = (krr.chain(K, y, 0.2, 0.35, [1, 3, 10], solver="cholesky", trusted=t) for t in (False, True))
    # The same factorisation, of copies whose place in memory may change how BLAS blocks it.
    np.testing.assert_allclose(trusted.coefficients, plain.coefficients, rtol=1e-10)
    assert trusted.condition == pytest.approx(plain.condition, rel=1e-10)


def test_trusted_kernel_skips_the_test_of_eigenvalues():
    K, y = problem_of(40)
    K = K - 0.1 * np.eye(40)  # its least eigenvalue is clearly negative, and lam hides it
    with pytest.raises(linalg.NotPositiveSemidefiniteError):
        krr.chain(K, y, 0.2, 0.35, [3], solver="cholesky")
    assert np.isfinite(krr.chain(K, y, 0.2, 0.35, [3], solver="cholesky", trusted=True).coefficients).all()


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
        patch.setattr(linalg, "decompose", lambda *_, **__: pytest.fail("eigh was taken"))
        np.testing.assert_allclose(krr.risk_map(K, y, K_new, target, [0.3], [0.1, 1, 2], [1, 2]), expected, rtol=1e-9)


def test_auto_falls_back_to_the_spectrum_if_lam_is_below_rounding(monkeypatch):
    rng = np.random.default_rng(0)
    K = random_kernel(0, 300, rank=5)
    problem = (K, rng.standard_normal(300), rng.standard_normal((5, 300)), np.ones(5))
    axes = ([0.3], [1e-18, 1e-3, 0.1], [1, 2])
    expected = krr.risk_map(*problem, *axes, solver="eigh")
    decompositions = []

    def decompose(K, original=linalg.decompose, **options):
        decompositions.append(K)
        return original(K, **options)

    monkeypatch.setattr(linalg, "decompose", decompose)
    risk = krr.risk_map(*problem, *axes)
    assert len(decompositions) == 1
    assert np.isfinite(risk).all()
    # At lam = 1e-18 the risk is made of K's rounding, whose bits may depend on where the arrays are in memory.
    np.testing.assert_allclose(risk[:, 1:], expected[:, 1:], rtol=1e-9)
    with pytest.raises(linalg.SingularKernelError, match="eigh"):
        krr.risk_map(*problem, *axes, solver="tridiagonal")


@pytest.mark.parametrize("chosen", ["cholesky", "tridiagonal"])
@pytest.mark.parametrize("lams", [[1e-18], [1.0, 1e-18]])
@pytest.mark.parametrize("steps", [[1], [2, math.inf]])
def test_auto_falls_back_whatever_solver_it_chose(monkeypatch, chosen, lams, steps):
    rng = np.random.default_rng(0)
    K = random_kernel(0, 300, rank=5)
    y = rng.standard_normal(300)
    new = rng.standard_normal((5, 300))
    monkeypatch.setattr(solvers, "choose_map_solver", lambda *_: chosen)
    assert np.isfinite(krr.risk_map(K, y, new, np.ones(5), [0.3], lams, steps)).all()
    with pytest.raises(linalg.SingularKernelError, match="eigh"):
        krr.risk_map(K, y, new, np.ones(5), [0.3], lams, steps, solver=chosen)


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


def test_bad_arguments_of_a_map_are_errors(K, data):
    new = np.ones((3, 11))
    with pytest.raises(ValueError, match="target must have a row for each of the 3 points"):
        krr.risk_map(K, data.y, new, np.ones(4), [0.5], [0.2], [1])
    for solver in ("cholesky", "tridiagonal"):
        with pytest.raises(ValueError, match="needs lam > 0"):
            krr.risk_map(K, data.y, new, np.ones(3), [0.5], [0.0], [1], solver=solver)
    with pytest.raises(ValueError, match="two points"):
        krr.risk_map(np.eye(1), [1.0], np.ones((1, 1)), [1.0], [0.5], [0.1], [1], solver="tridiagonal")

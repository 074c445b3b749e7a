"""Redrawn labels, the best spectral filter and predictive variances against recursions and simulations."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar

from distill import krr

GOLDEN = (1 + math.sqrt(5)) / 2
D = np.array([30.0, 4.0, 1.0, 0.02, 0.0])


@pytest.mark.parametrize("lam", [0.3, 20.0])
@pytest.mark.parametrize("alpha", [0.0, 0.35, 1.0, 1.6])
@pytest.mark.parametrize("teacher_noise", [0.0, 0.7])
def test_variances_of_redrawn_labels_by_recursion(lam, alpha, teacher_noise):
    A = D / (D + lam)
    v = A**2 * 1.3
    expected = []
    for _ in range(40):
        expected.append(v)
        v = A**2 * (alpha**2 * 1.3 + (1 - alpha) ** 2 * (v + teacher_noise))
    found = krr.fresh_label_variances(D, lam, alpha, [*range(1, 41), math.inf], noise=1.3, teacher_noise=teacher_noise)
    np.testing.assert_allclose(found[:-1], expected, rtol=1e-12, atol=1e-15)
    for _ in range(3000):
        v = A**2 * (alpha**2 * 1.3 + (1 - alpha) ** 2 * (v + teacher_noise))
    np.testing.assert_allclose(found[-1], v, rtol=1e-9, atol=1e-15)


def test_redrawn_labels_by_simulation():
    rng = np.random.default_rng(0)
    X = rng.random((30, 2))
    K = krr.rbf(5)(X, X)
    spectrum = krr.decompose(K)
    truth = np.sin(5 * X[:, 0])
    draws = 20_000
    smoother = np.linalg.solve(K + 0.2 * np.eye(30), K)
    fit = smoother @ (truth[:, None] + 0.5 * rng.standard_normal((30, draws)))
    for _ in range(2):
        labels = truth[:, None] + 0.5 * rng.standard_normal((30, draws))
        synthetic = fit + 0.3 * rng.standard_normal((30, draws))
        fit = smoother @ (0.4 * labels + 0.6 * synthetic)
    error = ((fit - truth[:, None]) ** 2).mean()
    B = krr.diagonals(spectrum.d, 0.2, 0.4, 3)[0]
    v = krr.fresh_label_variances(spectrum.d, 0.2, 0.4, 3, noise=0.25, teacher_noise=0.09)[0]
    theory = (((1 - B) * (spectrum.V.T @ truth)) ** 2 + v).mean()
    assert error == pytest.approx(theory, rel=0.01)


def test_the_best_share_of_redrawn_labels_is_one_over_the_golden_ratio():
    def late(alpha):
        return float(krr.fresh_label_variances([1.0], 0, alpha, math.inf, teacher_noise=1.0)[0, 0])

    best = minimize_scalar(late, bounds=(0.01, 1), method="bounded", options={"xatol": 1e-9})
    assert best.x == pytest.approx(1 / GOLDEN, abs=1e-6)
    assert best.fun == pytest.approx(1 / GOLDEN, abs=1e-9)
    # The best share of each step after those before it: ratios of Fibonacci numbers.
    v = 1.0
    for share in (2 / 3, 5 / 8, 13 / 21, 34 / 55):
        best = minimize_scalar(lambda alpha, v=v: alpha**2 + (1 - alpha) ** 2 * (v + 1), bounds=(0, 1))
        assert best.x == pytest.approx(share, abs=1e-6)
        v = best.fun


def test_variances_without_a_limit_are_an_error():
    with pytest.raises(krr.DivergentChainError, match=r"\|1 - alpha\| A >= 1"):
        krr.fresh_label_variances(D, 0.1, -1, 3)
    for bad in ({"noise": -1}, {"teacher_noise": math.nan}, {"steps": 0}, {"alpha": "x"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            krr.fresh_label_variances(**{"d": D, "lam": 0.1, "alpha": 0.5, "steps": 3} | bad)


def spiked(spikes, signals, p=20):
    """A covariance with ``spikes`` above 1, and a prior of the coefficients with ``signals`` above the bulk's."""
    covariance, prior = np.ones(p), np.full(p, 0.01)
    covariance[: len(spikes)] = spikes
    prior[: len(signals)] = signals
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((p, p)))[0]
    return rotation * covariance @ rotation.T, rotation * prior @ rotation.T


def test_the_risk_of_a_filter_by_simulation():
    covariance, prior = spiked([10.0], [1.0])
    rng = np.random.default_rng(1)
    X = rng.multivariate_normal(np.zeros(20), covariance, 60, method="cholesky")
    spectrum = krr.decompose(X.T @ X)
    risk = krr.filter_risk(spectrum, covariance, prior, noise=0.5)
    draws = 20_000
    beta = np.linalg.cholesky(prior) @ rng.standard_normal((20, draws))
    y = X @ beta + math.sqrt(0.5) * rng.standard_normal((60, draws))
    chain = krr.FeatureChain(krr.FeatureSums().add(X, y))
    for steps in ([1], [3]):
        error = chain.coefficients(5.0, 0.3, steps)[0] - beta
        simulated = ((np.linalg.cholesky(covariance).T @ error) ** 2).sum(axis=0).mean()
        theory = risk(krr.diagonals(spectrum.d, 5.0, 0.3, steps))
        assert simulated == pytest.approx(theory[0], rel=0.02)


def test_the_best_filter_is_the_minimum_and_of_an_isotropic_prior_a_ridge():
    covariance, prior = spiked([10.0, 4.0], [1.0, 0.2])
    X = np.random.default_rng(1).multivariate_normal(np.zeros(20), covariance, 60, method="cholesky")
    spectrum = krr.decompose(X.T @ X)
    risk = krr.filter_risk(spectrum, covariance, prior, noise=0.5)
    best, floor = risk.best()
    assert risk(best) == pytest.approx(floor, rel=1e-12)
    assert minimize(risk, np.zeros(20)).fun == pytest.approx(floor, rel=1e-8)
    isotropic = krr.filter_risk(spectrum, covariance, 0.01 * np.eye(20), noise=0.5)
    np.testing.assert_allclose(isotropic.best()[0], krr.shrinkage(spectrum.d, 50.0), rtol=1e-9)
    weights, square = krr.joint_weights(risk.residuals(spectrum.d, 3.0, 3))
    filters = weights @ krr.shrinkage(spectrum.d, 3.0) ** np.arange(1, 4)[:, None]
    assert floor + 20 * square == pytest.approx(risk(filters), rel=1e-9)


@pytest.mark.parametrize("s", [0, 1, 2, 3])
def test_s_spikes_need_s_students(s):
    covariance, prior = spiked([30.0, 10.0, 3.0][:s], [0.2, 1.0, 0.2][:s])
    spectrum = krr.decompose(300 * covariance)  # no sample: the bulk is one eigenvalue
    risk = krr.filter_risk(spectrum, covariance, prior, noise=1.0)
    floor = risk.best()[1]

    def excess(fits):
        def of(log_lam):
            return 20 * krr.joint_weights(risk.residuals(spectrum.d, math.exp(log_lam), fits))[1] / floor

        grid = np.linspace(0, 12, 121)
        start = grid[np.argmin([of(log_lam) for log_lam in grid])]
        return minimize_scalar(of, bounds=(start - 0.1, start + 0.1), method="bounded", options={"xatol": 1e-9}).fun

    assert excess(s + 1) < 1e-12
    assert s == 0 or excess(s) > 1e-4


def test_a_singular_gram_matrix_has_no_filter_risk():
    with pytest.raises(krr.SingularKernelError, match="fewer features"):
        krr.filter_risk(krr.decompose(np.diag([1.0, 0.0])), np.eye(2), np.eye(2), 1.0)


@pytest.mark.parametrize("alpha", [0.0, 0.35, [0.2, 1.3]])
def test_predictive_variances_by_simulation(alpha):
    rng = np.random.default_rng(0)
    X = np.sort(rng.random(15))[:, None]
    X_new = np.linspace(-0.2, 1.2, 8)[:, None]
    both = np.vstack([X, X_new])
    covariance = krr.rbf(20)(both, both)
    draws = 40_000
    f = np.linalg.cholesky(covariance + 1e-10 * np.eye(23)) @ rng.standard_normal((23, draws))
    y = f[:15] + math.sqrt(0.1) * rng.standard_normal((15, draws))
    K_new = covariance[15:, :15]
    spectrum = krr.decompose(covariance[:15, :15])
    fits = krr.predict(K_new, krr.dual_coefficients(spectrum, y, 0.1, alpha, [1, 2, 4]))
    simulated = ((fits - f[15:]) ** 2).mean(axis=2)
    theory = krr.predictive_variances(spectrum, K_new, np.ones(8), 0.1, alpha, [1, 2, 4])
    np.testing.assert_allclose(simulated, theory, rtol=0.04)
    assert (theory[1:] >= theory[0]).all()


def test_the_first_fit_has_the_posterior_variance():
    rng = np.random.default_rng(0)
    X, X_new = rng.random((15, 2)), rng.random((8, 2))
    K, K_new = krr.rbf(3)(X, X), krr.rbf(3)(X_new, X)
    expected = 1 - np.einsum("qn,qn->q", K_new, np.linalg.solve(K + 0.1 * np.eye(15), K_new.T).T)
    spectrum = krr.decompose(K)
    found = krr.predictive_variances(spectrum, K_new, np.ones(8), 0.1, 0.3, [1, 5, math.inf])
    np.testing.assert_allclose(found[0], expected, rtol=1e-10)
    # A posterior as the next prior, twice more: the labels are used three times.
    thrice = np.vstack([X, X, X])
    K3, K3_new = krr.rbf(3)(thrice, thrice), krr.rbf(3)(X_new, thrice)
    expected = 1 - np.einsum("qn,qn->q", K3_new, np.linalg.solve(K3 + 0.1 * np.eye(45), K3_new.T).T)
    found = krr.predictive_variances(spectrum, K_new, np.ones(8), 0.1 / 3, 1, 1)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-9)

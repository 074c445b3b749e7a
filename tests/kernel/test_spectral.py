"""kernel/spectral.py: the closed forms against recursions, solves in extended precision, and laws of the chain."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from kernels import exact_chain, random_kernel, ridges

from distill import krr
from distill.kernel.arrays import EPS

alphas_of_any_sign = st.floats(-1.5, 2.5)
spectra = st.lists(st.floats(0, 10), min_size=1, max_size=8).map(lambda d: np.sort(d)[::-1])


def test_golden_diagonal(spectrum):
    expected = [0.7821, 0.7710, 0.7516, 0.7226, 0.6822, 0.6289, 0.5617, 0.4825, 0.3976, 0.3190, 0.2624]
    np.testing.assert_array_equal(krr.diagonals(spectrum.d, 0.2, 0.35, 6)[0].round(4), expected)


@pytest.mark.parametrize("alphas", [[0.0], [0.35], [1.0], [-0.5], [1.4], [0.2, -0.7, 0.9]])
@pytest.mark.parametrize("lam", [1e-12, 1e-3, 0.2, 50.0, 1e12])
def test_fits_equal_direct_solves(lam, alphas):
    K = random_kernel(1, 7)
    y = np.random.default_rng(2).standard_normal(7)
    spectrum = krr.decompose(K)
    duals, fits = exact_chain(K, y, [lam], alphas, 5)
    condition = (spectrum.d[0] + lam) / (spectrum.d[-1] + lam)
    # alpha outside [0, 1] makes the chain's coefficients grow, and rounding with them
    growth = 2 if min(alphas) >= 0 and max(alphas) <= 1 else 50
    tolerance = 50 * EPS * condition * growth
    fitted = krr.fitted_values(spectrum, y, krr.diagonals(spectrum.d, lam, alphas, range(1, 6)))
    spectral = krr.dual_coefficients(spectrum, y, lam, alphas, range(1, 6))
    for computed, expected in ((fitted, fits), (spectral, duals)):
        scale = np.linalg.norm(expected, axis=1).max()
        np.testing.assert_allclose(computed, expected, rtol=0, atol=tolerance * scale)


def test_recursion_of_these_tests_with_lam_and_alpha_by_step():
    K = random_kernel(3, 6)
    y = np.random.default_rng(4).standard_normal(6)
    lams = [0.3, 0.01, 2.0, 0.1]
    alphas = [0.5, -0.2, 0.8]
    spectrum = krr.decompose(K)
    B = krr.diagonals_by_recursion(spectrum.d, lams, alphas, 6)
    _, fits = exact_chain(K, y, lams, alphas, 6)
    np.testing.assert_allclose(krr.fitted_values(spectrum, y, B), fits, atol=1e-13)


def test_late_steps_against_extended_precision():
    d = np.array([1.0, 0.3, 1e-3, 1e-9, 0.0])
    for lam, alpha, step in [(0.2, 0.35, 10**6), (1e-9, 0.0, 1000), (1e-7, 1e-9, 10**6), (0.5, 1.3, 10**15)]:
        with mpmath.workdps(60):
            expected = []
            for value in map(mpmath.mpf, d.tolist()):
                A = value / (value + mpmath.mpf(lam))
                q = (1 - mpmath.mpf(alpha)) * A
                limit = alpha * value / (alpha * value + mpmath.mpf(lam))
                expected.append(float(limit + q ** (step - 1) * (A - limit)))
        np.testing.assert_allclose(krr.diagonals(d, lam, alpha, step)[0], expected, rtol=1e-12, atol=1e-300)


def test_alpha_one_is_constant_and_alpha_zero_vanishes(spectrum):
    d = spectrum.d
    lam = 0.2
    B = krr.diagonals(d, lam, 1.0, [1, 2, 100, 10**9, math.inf])
    np.testing.assert_allclose(B, np.tile(d / (d + lam), (5, 1)), rtol=1e-14)
    assert not krr.limit_diagonal(d, lam, 0.0).any()
    assert krr.diagonals(d, lam, 0.0, 10**6).max() < 1e-300
    # the closed form for alpha = 0 is a power
    np.testing.assert_allclose(krr.diagonals(d, lam, 0.0, 7)[0], (d / (d + lam)) ** 7, rtol=1e-13)


def test_zero_ridge_interpolates_at_every_step(spectrum, K, data):
    interpolant = krr.dual_coefficients(spectrum, data.y, 0.0, 0.35, [1, 2, 50, math.inf])
    np.testing.assert_allclose(K @ interpolant[0], data.y, atol=1e-12)
    # All are one computation, but as columns of one product, which BLAS may block in different ways.
    scale = np.abs(interpolant).max()
    np.testing.assert_allclose(interpolant, np.tile(interpolant[0], (4, 1)), rtol=0, atol=1e-13 * scale)


def test_huge_ridge_gives_targets_over_the_ridge(spectrum, data):
    huge = krr.dual_coefficients(spectrum, data.y, 1e12, 0.35, [1, math.inf])
    np.testing.assert_allclose(huge[0], data.y / 1e12, rtol=1e-10)
    np.testing.assert_allclose(huge[1], 0.35 * data.y / 1e12, rtol=1e-10)


def test_convergence_is_linear_with_the_rate(spectrum, data):
    for lam, alpha in [(0.2, 0.35), (0.2, 0.0), (0.01, 0.6), (1.0, -0.1), (0.3, 1.7)]:
        steps = np.arange(1, 30)
        fits = krr.fitted_values(spectrum, data.y, krr.diagonals(spectrum.d, lam, alpha, [*steps, math.inf]))
        distance = np.linalg.norm(fits[:-1] - fits[-1], axis=1)
        bound = krr.convergence_bound(spectrum.d, lam, alpha, steps, distance[0])
        assert (distance <= bound * (1 + 1e-9) + 1e-14).all()
        assert distance[20] == 0 or bound[20] < 1e6 * distance[20]
        rate = krr.convergence_rate(spectrum.d, lam, alpha)
        assert rate == pytest.approx(abs(1 - alpha) * spectrum.d[0] / (spectrum.d[0] + lam))


def test_divergence_is_an_error(spectrum):
    for alpha in (-0.2, 2.2):
        with pytest.raises(krr.DivergentChainError, match="diverges"):
            krr.limit_diagonal(spectrum.d, 0.2, alpha)
        with pytest.raises(krr.DivergentChainError, match="diverges"):
            krr.convergence_bound(spectrum.d, 0.2, alpha, [3])
    # just inside the bound there is a limit
    edge = 1 - (spectrum.d[0] + 0.2) / spectrum.d[0]
    krr.limit_diagonal(spectrum.d, 0.2, edge + 1e-6)
    with pytest.raises(krr.DivergentChainError, match="1e308"):
        krr.diagonals(spectrum.d, 0.2, -1.0, 10**6)


def test_sparsification_ratios(spectrum):
    B = krr.diagonals(spectrum.d, 0.2, 0.35, [3])[0]
    R = krr.sparsification_ratios(B)
    np.testing.assert_allclose(R, [B[k] / B[k + 1] for k in range(10)], rtol=1e-15)
    assert np.array_equal(krr.sparsification_ratios([2.0, 1.0, 0.0, 0.0]), [2.0, math.inf, math.nan], equal_nan=True)
    limit = krr.sparsification_ratios(krr.limit_diagonal(spectrum.d, 0.2, 0.35))
    late = krr.sparsification_ratios(krr.diagonals(spectrum.d, 0.2, 0.35, 300)[0])
    np.testing.assert_allclose(late, limit, rtol=1e-12)


def test_degrees_of_freedom_and_gcv_are_those_of_the_smoother(spectrum, K, data):
    S = K @ np.linalg.solve(K + 0.2 * np.eye(11), np.eye(11))
    S2 = S @ (0.35 * np.eye(11) + 0.65 * S)
    B = krr.diagonals(spectrum.d, 0.2, 0.35, [1, 2])
    np.testing.assert_allclose(krr.degrees_of_freedom(B), [np.trace(S), np.trace(S2)], rtol=1e-12)
    expected = [np.mean((data.y - M @ data.y) ** 2) / (1 - np.trace(M) / 11) ** 2 for M in (S, S2)]
    np.testing.assert_allclose(krr.generalised_cross_validation(spectrum, data.y, B), expected, rtol=1e-12)
    both = np.stack([data.y, 2 * data.y], axis=1)
    np.testing.assert_allclose(
        krr.generalised_cross_validation(spectrum, both, B), 2.5 * np.array(expected), rtol=1e-12
    )
    assert krr.generalised_cross_validation(spectrum, data.y, np.ones((1, 11)))[0] == math.inf


def test_gcv_residuals_are_those_of_the_smoother(spectrum, K, data):
    S = K @ np.linalg.solve(K + 0.2 * np.eye(11), np.eye(11))
    for j, residual in enumerate(krr.gcv_residuals(spectrum, data.y, 0.2, 3), start=1):
        M = np.linalg.matrix_power(S, j)
        expected = (data.y - M @ data.y) / (1 - np.trace(M) / 11)
        np.testing.assert_allclose(spectrum.V @ residual, expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="lam > 0"):
        krr.gcv_residuals(spectrum, data.y, 0.0, 2)


@given(spectra, ridges, alphas_of_any_sign, st.integers(1, 40))
def test_closed_form_equals_recursion(d, lam, alpha, n_steps):
    closed = krr.diagonals(d, lam, alpha, range(1, n_steps + 1))
    recursion = krr.diagonals_by_recursion(d, lam, alpha, n_steps)
    growth = max(1, abs(1 - alpha)) ** n_steps  # of a rounding error along the recursion
    np.testing.assert_allclose(closed, recursion, rtol=1e-12, atol=1e-13 * growth)


@given(spectra, ridges, st.lists(alphas_of_any_sign, min_size=1, max_size=5), st.integers(1, 12))
def test_schedule_equals_recursion(d, lam, alphas, n_steps):
    closed = krr.diagonals(d, lam, alphas, range(1, n_steps + 1))
    recursion = krr.diagonals_by_recursion(d, lam, alphas, n_steps)
    growth = max(1, *(abs(1 - alpha) for alpha in alphas)) ** n_steps
    np.testing.assert_allclose(closed, recursion, rtol=1e-12, atol=1e-13 * growth)


@given(spectra, ridges, st.floats(0.01, 1))
def test_limit_is_the_diagonal_of_an_ordinary_fit(d, lam, alpha):
    least = 1e-300  # nearer to 0, subnormal numbers have fewer digits
    np.testing.assert_allclose(krr.limit_diagonal(d, lam, alpha), d / (d + lam / alpha), rtol=1e-12, atol=least)
    late = krr.diagonals(d, lam, alpha, 10**14)[0]
    np.testing.assert_allclose(late, krr.limit_diagonal(d, lam, alpha), rtol=1e-12, atol=least)


@given(spectra, ridges, st.integers(1, 10**9))
def test_alpha_one_never_changes(d, lam, step):
    np.testing.assert_allclose(krr.diagonals(d, lam, 1.0, step)[0], krr.shrinkage(d, lam), rtol=1e-14)


@given(spectra, ridges, st.integers(1, 100))
def test_alpha_zero_decreases_to_zero_and_sparsifies(d, lam, step):
    B = krr.diagonals(d, lam, 0.0, [step, step + 1, math.inf])
    assert (B[1] <= B[0]).all()
    assert not B[2].any()
    assume(B[1].min() > 1e-290)
    R = krr.sparsification_ratios(B[:2])
    assert (R[1] >= R[0] * (1 - 1e-12)).all()


def test_bad_arguments_are_errors(spectrum):
    d = spectrum.d
    for lam in (-1e-3, math.nan, math.inf):
        with pytest.raises(ValueError, match="lam"):
            krr.diagonals(d, lam, 0.5, 1)
    for alpha in (math.nan, [], [[0.5]], [0.1, math.inf]):
        with pytest.raises(ValueError, match="alpha"):
            krr.diagonals(d, 0.2, alpha, 1)
    for step in (0, -1, 1.5, math.nan):
        with pytest.raises(ValueError, match="steps"):
            krr.diagonals(d, 0.2, 0.5, step)
    with pytest.raises(ValueError, match="row for each"):
        krr.dual_coefficients(spectrum, np.ones(10), 0.2, 0.5, [1])

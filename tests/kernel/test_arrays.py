"""Extreme but finite numbers: a finite result that scales as it must, or a named error; never NaN."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import exact_chain, random_kernel

from distill import krr

NAMED = (krr.NotFiniteError, krr.DivergentChainError, krr.SingularKernelError)
Y = np.random.default_rng(0).standard_normal(8)
NEW = np.random.default_rng(1).standard_normal((4, 8))
TARGET = np.random.default_rng(2).standard_normal(4)

exponents = st.integers(-480, 480)  # of 2: 1e-144 to 1e144
alphas = st.one_of(st.floats(-0.5, 1.99), st.floats(-1e150, 1e150))
ridges = st.one_of(st.just(0.0), st.floats(1e-320, 1e308), st.floats(-6, 6).map(lambda exponent: 10.0**exponent))
solvers = st.sampled_from(["auto", "eigh", "cholesky"])


def check_outcome(function):
    """The function's result is finite, or it raises one of the named errors. A warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            result = function()
        except NAMED:
            return
    assert np.isfinite(result).all()


@settings(max_examples=60)
@given(exponents, exponents, alphas, ridges, solvers)
def test_fits_are_finite_or_a_named_error(of_K, of_y, alpha, lam, solver):
    K = np.ldexp(random_kernel(0, 8), of_K)
    y = np.ldexp(Y, of_y)
    spectrum = krr.decompose(K)
    for steps in ([1], [2, 5], [math.inf]):
        check_outcome(lambda steps=steps: krr.chain(K, y, lam, alpha, steps, solver=solver).coefficients)
        check_outcome(lambda steps=steps: krr.predict(NEW, krr.dual_coefficients(spectrum, y, lam, alpha, steps)))
    check_outcome(lambda: krr.dual_coefficients(spectrum, y, lam, [alpha, 0.5], [3, 10**6]))
    check_outcome(lambda: krr.diagonals_by_recursion(spectrum.d, lam, [alpha, 0.5, alpha], 9))
    check_outcome(lambda: krr.power_coefficients(spectrum, y, lam, 3))
    if lam > 0:
        check_outcome(lambda: krr.gcv_residuals(spectrum, y, lam, 3))


@settings(max_examples=60)
@given(
    exponents,
    exponents,
    st.floats(0, 1.99, allow_subnormal=False),
    st.floats(1e-320, 1e308),
    st.integers(0, 480),
    solvers,
)
def test_risks_of_chains_that_have_a_limit_are_not_infinite(of_K, of_y, alpha, lam, of_new, solver):
    K = np.ldexp(random_kernel(0, 8), of_K)
    if solver != "eigh":
        alpha = min(alpha, 1.0)
    check_outcome(
        lambda: krr.risk_map(
            K, np.ldexp(Y, of_y), np.ldexp(NEW, of_new), TARGET, alpha, lam, [1, 3, math.inf], solver=solver
        )
    )


@settings(max_examples=30)
@given(st.integers(-400, 400), st.integers(-400, 400), st.floats(-0.5, 1.5), solvers)
def test_powers_of_two_change_no_bit(of_y, of_residuals, alpha, solver):
    K = random_kernel(0, 8)
    steps = [1, 2, 5]
    plain = krr.chain(K, Y, 0.5, alpha, steps, solver=solver).coefficients
    scaled = krr.chain(K, np.ldexp(Y, of_y), 0.5, alpha, steps, solver=solver).coefficients
    np.testing.assert_array_equal(scaled, np.ldexp(plain, of_y))
    f, g, t = NEW[:3]
    assert krr.best_alpha(*np.ldexp([f, g, t], of_residuals)) == krr.best_alpha(f, g, t)


@pytest.mark.parametrize("scale", [1e-140, 1e-30, 1e30, 1e140])
@pytest.mark.parametrize("solver", ["eigh", "cholesky"])
def test_a_scaled_problem_against_sixty_digits(scale, solver):
    K = random_kernel(3, 8)
    duals, _ = exact_chain(K * scale, Y * scale, [scale / 10], [0.3], 4)
    chain = krr.chain(K * scale, Y * scale, scale / 10, 0.3, [1, 2, 3, 4], solver=solver)
    np.testing.assert_allclose(chain.coefficients, duals, rtol=1e-11)


def test_what_is_too_large_for_float64_is_no_divergence():
    d = np.array([11.0, 0.0])
    spectrum = krr.Spectrum(d, np.eye(2))
    with pytest.raises(krr.NotFiniteError, match="fit 1"):
        krr.dual_coefficients(spectrum, [1.0, 1.0], 1e-320, 0.5, [7])
    for y in (1e154, math.nan):
        with pytest.raises(krr.NotFiniteError, match=r"^y must be finite and at most 1e\+150"):
            krr.dual_coefficients(spectrum, [1.0, y], 1.0, 0.5, [1])
    with pytest.raises(krr.NotFiniteError, match="predictions"):
        krr.predict(np.full((1, 2), 1e200), np.full((1, 2), 1e200))
    assert not krr.limit_diagonal(d, 1e-300, 0.0).any()  # its rate is rounded to 1
    with pytest.raises(krr.DivergentChainError, match="step 4"):
        krr.diagonals([1.0], 1.0, [1e150] * 3 + [0.5], [1, 2, 3, 4])

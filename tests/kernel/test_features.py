"""Chains on features against the dual form, direct solves, and sums over blocks."""

import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import krr
from distill.kernel.features import CHUNK_BYTES, FeatureChain, FeatureSums

STEPS = [1, 2, 3, 7, 1000, math.inf]


def problem(n=60, p=7, m=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p)) + 2
    return X, X @ rng.standard_normal((p, m)) + rng.standard_normal((n, m)) - 1, rng.standard_normal((20, p))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(2, 40),
    p=st.integers(1, 12),
    lam=st.floats(1e-2, 1e3),
    alpha=st.one_of(st.floats(0.01, 1.2), st.lists(st.floats(0, 1.2), min_size=1, max_size=3)),
)
def test_equals_the_dual_form(seed, n, p, lam, alpha):
    X, y, X_new = problem(n, p, seed=seed)
    steps = STEPS[:-1] if isinstance(alpha, list) and alpha[-1] == 0 else STEPS
    chain = FeatureChain(FeatureSums().add(X, y))
    primal = chain.predict(X_new, chain.coefficients(lam, alpha, steps))
    spectrum = krr.decompose(X @ X.T)
    dual = krr.predict(X_new @ X.T, krr.dual_coefficients(spectrum, y, lam, alpha, steps))
    scale = np.abs(dual).max() + np.abs(y).max()
    # The kernel matrix has rounding errors of EPS d1, which the smallest ridge magnifies by d1/lam.
    assert primal == pytest.approx(dual, abs=1e-14 * scale * (1 + spectrum.d[0] / lam), rel=1e-9)
    B = krr.diagonals(spectrum.d, lam, alpha, steps)
    assert chain.eigen.estimates(lam, alpha, steps).freedom == pytest.approx(krr.degrees_of_freedom(B), rel=1e-8)


def test_one_step_is_the_normal_equations():
    X, y, _ = problem()
    beta = FeatureChain(FeatureSums().add(X, y)).coefficients(0.7, 0.3, [1, 2])
    inverse = np.linalg.inv(X.T @ X + 0.7 * np.eye(7))
    teacher = inverse @ X.T @ y
    student = inverse @ X.T @ (0.3 * y + 0.7 * X @ teacher)
    assert beta == pytest.approx(np.array([teacher, student]), rel=1e-10)


def test_intercept_is_not_penalised():
    X, y, X_new = problem()
    lam = 5.0
    chain = FeatureChain(FeatureSums(intercept=True).add(X, y))
    penalty = lam * np.diag([1.0] * 7 + [0.0])
    columns = np.column_stack([X, np.ones(60)])
    inverse = np.linalg.inv(columns.T @ columns + penalty) @ columns.T
    expected = inverse @ y
    for tau in range(3):
        fitted = np.column_stack([X_new, np.ones(20)]) @ expected
        found = chain.predict(X_new, chain.coefficients(lam, 0.4, tau + 1))[0]
        assert found == pytest.approx(fitted, rel=1e-10)
        expected = inverse @ (0.4 * y + 0.6 * columns @ expected)
    hat = columns @ inverse
    assert chain.eigen.estimates(lam, 0.4, 1).freedom[0] == pytest.approx(np.trace(hat), rel=1e-10)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("m", [None, 3])
def test_risk_map_is_the_risk_of_predictions(intercept, m):
    X, y, X_new = problem()
    y = y[:, 0] if m is None else y
    target = np.random.default_rng(1).standard_normal((20, *y.shape[1:]))
    chain = FeatureChain(FeatureSums(intercept=intercept).add(X, y))
    alphas, lams = [0.0, 0.5, 1.3], [0.1, 10]
    squared = chain.risk_map(X_new, target, alphas, lams, STEPS)
    zero_one = None if m is None else chain.risk_map(X_new, target, alphas, lams, STEPS, loss="zero_one")
    for i, alpha in enumerate(alphas):
        for j, lam in enumerate(lams):
            f = chain.predict(X_new, chain.coefficients(lam, alpha, STEPS))
            error = ((f - target) ** 2).reshape(len(STEPS), -1).mean(axis=1)
            assert squared[i, j] == pytest.approx(error, rel=1e-9)
            if zero_one is not None:
                wrong = (f.argmax(axis=2) != target.argmax(axis=1)).mean(axis=1)
                assert zero_one[i, j] == pytest.approx(wrong, abs=1e-15)


@pytest.mark.parametrize("m", [None, 3])
def test_cross_validation_is_that_of_the_dual_form(m):
    X, y, _ = problem()
    y = y[:, 0] if m is None else y
    chain = FeatureChain(FeatureSums().add(X, y))
    spectrum = krr.decompose(X @ X.T)
    steps = [1, 2, 5, math.inf]
    dual = krr.generalised_cross_validation(spectrum, y, krr.diagonals(spectrum.d, 3.0, 0.4, steps))
    assert chain.eigen.estimates(3.0, 0.4, steps).gcv == pytest.approx(dual, rel=1e-9)
    primal_alphas, primal_risks = krr.greedy_alphas(chain.eigen.gcv_residuals(3.0, 2))
    dual_alphas, dual_risks = krr.greedy_alphas(krr.gcv_residuals(spectrum, y, 3.0, 2))
    assert primal_alphas == pytest.approx(dual_alphas, rel=1e-7)
    # A mean over p + 1 components in the place of n.
    assert primal_risks * 8 == pytest.approx(dual_risks * 60, rel=1e-9)


def assert_same_sums(a, b):
    assert a.rows == b.rows
    for name in ("gram", "cross", "square", "mean_x", "mean_y"):
        scale = np.abs(getattr(b, name)).max(initial=0)
        assert getattr(a, name) == pytest.approx(getattr(b, name), abs=1e-13 * scale), name


@pytest.mark.parametrize("intercept", [False, True])
def test_blocks_add_up(intercept):
    X, y, _ = problem(n=101)
    whole = FeatureSums(intercept=intercept).add(X, y)
    blocks = FeatureSums(intercept=intercept)
    for rows in (slice(0, 1), slice(1, 50), slice(50, 50), slice(50, 101)):
        blocks.add(X[rows], y[rows])
    assert_same_sums(blocks, whole)
    centred = X - X.mean(axis=0) if intercept else X
    assert whole.gram == pytest.approx(centred.T @ centred, rel=1e-12)


def sums_of(block):
    return FeatureSums(intercept=True).add(*block)


def test_sums_of_several_processes_add_up():
    X, y, _ = problem(n=90)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(sums_of, [(X[:30], y[:30]), (X[30:45], y[30:45]), (X[45:], y[45:])]))
    assert_same_sums(parts[0] + parts[1] + parts[2], sums_of((X, y)))


def test_a_memory_mapped_float32_file_is_summed_in_float64(tmp_path):
    p = 64
    n = 2 * (CHUNK_BYTES // (8 * p)) + 3  # three chunks
    rng = np.random.default_rng(0)
    X = np.lib.format.open_memmap(tmp_path / "X.npy", mode="w+", dtype=np.float32, shape=(n, p))
    X[:] = rng.standard_normal((n, p))
    y = rng.standard_normal(n)
    sums = FeatureSums().add(np.load(tmp_path / "X.npy", mmap_mode="r"), y)
    exact = np.asarray(X, np.float64)
    assert sums.gram == pytest.approx(exact.T @ exact, rel=1e-12, abs=1e-9)  # of float32 inputs, not float32 sums
    assert sums.cross == pytest.approx(exact.T @ y, rel=1e-10, abs=1e-9)


def test_adding_changes_neither_the_block_nor_the_sums_it_came_from():
    X, y, _ = problem()
    X_before, y_before = X.copy(), y.copy()
    a = FeatureSums(intercept=True).add(X, y)
    gram = a.gram.copy()
    (a + a).add(X, y)
    assert (X_before == X).all()
    assert (y == y_before).all()
    assert (a.gram == gram).all()


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (np.ones(3), np.ones(3), "a block needs X"),
        (np.ones((3, 2)), np.ones(2), "a block needs X"),
        (np.ones((3, 0)), np.ones(3), "a block needs X"),
        (np.ones((3, 4)), np.ones((3, 3)), "those before have"),
        (np.ones((3, 7)), np.ones(3), "those before have"),
        (np.full((3, 7), np.nan), np.ones((3, 3)), "NaN"),
        (np.ones((3, 7)), np.full((3, 3), np.inf), "NaN"),
        (np.full((3, 7), 1e200), np.ones((3, 3)), "above"),
    ],
)
def test_refuses_a_block_that_does_not_fit(X, y, message):
    sums = FeatureSums().add(*problem()[:2])
    with pytest.raises(ValueError, match=message):
        sums.add(X, y)
    assert sums.rows == 60


def test_refuses_what_does_not_add_up():
    X, y, _ = problem()
    with pytest.raises(ValueError, match="intercept"):
        FeatureSums().add(X, y) + FeatureSums(intercept=True).add(X, y)
    with pytest.raises(ValueError, match="no points"):
        FeatureChain(FeatureSums())


@pytest.mark.parametrize("value", ["x", 10**400, [["a"] * 3] * 5, np.full((5, 3), 1j), [[1, 2], [3]]])
def test_a_bad_argument_is_named(value):
    X = np.eye(5, 3)
    chain = krr.FeatureChain(krr.FeatureSums(intercept=True).add(X, np.ones(5)))
    for call in (
        lambda: krr.FeatureSums().add(value, np.ones(5)),
        lambda: chain.predict(value, np.ones((1, 3))),
        lambda: chain.risk_map(value, np.ones(5), 0.5, 0.1, 1),
    ):
        with pytest.raises(ValueError, match="X must hold real numbers"):
            call()
    with pytest.raises(ValueError, match="target must hold real numbers"):
        chain.risk_map(X, value, 0.5, 0.1, 1)
    with pytest.raises(ValueError, match=r"target .* does not match"):
        chain.risk_map(X, np.ones((5, 2)), 0.5, 0.1, 1)

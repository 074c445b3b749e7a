"""Block Lanczos against one eigendecomposition of the same kernel matrix."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import rbf_kernel

from distill import krr
from distill.kernel.lanczos import BlockLanczos, NotReachedError, lanczos

ALPHAS = [0.1, 0.5, 1.0, 1.4]
STEPS = [1, 2, 5, 20, math.inf]


def problem(n=300, m=2, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.random((n, 3))
    y = np.sin(6 * X[:, :1]) + 0.3 * rng.standard_normal((n, m))
    return rbf_kernel(X, gamma=3), y, rbf_kernel(rng.random((40, 3)), X, gamma=3)


def fitted(spectrum, y, lam, alpha):
    B = krr.diagonals(spectrum.d, lam, alpha, STEPS)
    return np.einsum("nk,sk,km->snm", spectrum.V, B, spectrum.V.T @ y)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), passes=st.integers(1, 12), alpha=st.floats(0.01, 1.5), lam=st.floats(1e-4, 1e3))
def test_true_errors_are_within_the_bounds(seed, passes, alpha, lam):
    K, y, _ = problem(n=120, seed=seed)
    basis = BlockLanczos(K, y, probes=5, seed=seed)
    for _ in range(passes):
        basis.extend()
    exact = fitted(krr.decompose(K), y, lam, alpha)
    found = fitted(basis.spectrum(), y, lam, alpha)
    bounds = basis.errors(alpha, lam, STEPS)[0, 0]
    errors = np.linalg.norm(found - exact, axis=(1, 2))
    # The bound is relative to the fitted values found; the eigendecomposition has rounding errors of its own.
    rounding = 1e-12 * (1 + K.sum() / len(K) / lam) * np.linalg.norm(exact, axis=(1, 2))
    assert (errors <= bounds * np.linalg.norm(found, axis=(1, 2)) + rounding).all()


def test_a_bound_is_not_much_larger_than_the_error():
    K, y, _ = problem()
    basis = BlockLanczos(K, y)
    for _ in range(4):
        basis.extend()
    exact = fitted(krr.decompose(K), y, 0.01, 0.5)
    error = np.linalg.norm(fitted(basis.spectrum(), y, 0.01, 0.5) - exact, axis=(1, 2))
    ratio = basis.errors(0.5, 0.01, STEPS)[0, 0] * np.linalg.norm(exact, axis=(1, 2)) / error
    assert (ratio < 20).all()


def test_risk_map_is_that_of_the_eigendecomposition():
    K, y, K_new = problem()
    target = np.random.default_rng(1).standard_normal((40, 2))
    lams = np.array([1e-4, 1e-2, 1]) * K.sum() / len(K)
    basis = lanczos(K, y, ALPHAS, lams, STEPS, tolerance=1e-8)
    assert basis.size < 300
    for loss in ("squared", "zero_one"):
        exact = krr.risk_map(K, y, K_new, target, ALPHAS, lams, STEPS, loss=loss)
        assert basis.risk_map(K_new, target, ALPHAS, lams, STEPS, loss=loss) == pytest.approx(exact, rel=1e-5)


def test_one_target_may_be_a_vector():
    K, y, K_new = problem(m=1)
    vector = lanczos(K, y[:, 0], 0.5, 0.1, [2])
    column = lanczos(K, y, 0.5, 0.1, [2])
    risks = [
        vector.risk_map(K_new, np.zeros(40), 0.5, 0.1, [2]),
        column.risk_map(K_new, np.zeros((40, 1)), 0.5, 0.1, [2]),
    ]
    assert risks[0] == pytest.approx(risks[1], rel=1e-12)


def test_traces_are_within_their_standard_errors():
    K, y, _ = problem()
    basis = lanczos(K, y, 0.5, 0.01, [1, 3], tolerance=1e-6, probes=40)
    spectrum = krr.decompose(K)
    B = krr.diagonals(spectrum.d, 0.01, 0.5, [1, 3])
    found = basis.eigen.estimates(0.01, 0.5, [1, 3])
    assert (np.abs(found.freedom - krr.degrees_of_freedom(B)) < 4 * found.freedom_error).all()
    assert (found.freedom_error < 0.1 * found.freedom).all()
    assert (np.abs(found.gcv - krr.generalised_cross_validation(spectrum, y, B)) < 4 * found.gcv_error).all()


@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_few_points_are_exact(n):
    K, y, _ = problem(n=n)
    basis = lanczos(K, y, 0.5, 0.1, STEPS, tolerance=1e-9)
    assert fitted(basis.spectrum(), y, 0.1, 0.5) == pytest.approx(fitted(krr.decompose(K), y, 0.1, 0.5), abs=1e-10)


def test_dependent_targets_and_a_kernel_of_low_rank():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 4))
    labels = np.eye(3)[rng.integers(0, 3, 200)] - 1 / 3  # columns that add up to 0
    basis = lanczos(X @ X.T, labels, 0.5, 1.0, STEPS, tolerance=1e-10)
    assert basis.size <= 2 * 25
    exact = fitted(krr.decompose(X @ X.T), labels, 1.0, 0.5)
    assert fitted(basis.spectrum(), labels, 1.0, 0.5) == pytest.approx(exact, abs=1e-10)


def test_the_basis_is_orthonormal():
    K, y, _ = problem()
    V = lanczos(K, y, 0.5, 1e-3, [1], tolerance=1e-9).spectrum().V
    assert np.abs(V.T @ V - np.eye(V.shape[1])).max() < 1e-12


def test_names_the_ridges_that_are_not_reached():
    K, y, K_new = problem()
    target = np.zeros((40, 2))
    lams = [1e-3, 100.0]
    with pytest.raises(NotReachedError, match=r"lam = 0.001 \(error .*, needs some \d+ vectors\)$") as caught:
        lanczos(K, y, 0.5, lams, [1, 2], max_basis=100, probes=5)
    assert caught.value.lams == [1e-3]
    assert 100 < caught.value.needs < 300
    risk = caught.value.basis.risk_map(K_new, target, 0.5, lams, [1, 2])  # the rest is there
    assert risk[0, 1] == pytest.approx(krr.risk_map(K, y, K_new, target, 0.5, lams, [1, 2])[0, 1], rel=1e-2)


def test_errors_of_schedules_are_within_the_bounds():
    K, y, _ = problem()
    schedule = [0.2, -0.5, 1.3]
    basis = BlockLanczos(K, y, probes=5)
    for _ in range(6):
        basis.extend()
    bounds = basis.errors([schedule, 0.5, [0.5]], 0.05, STEPS)
    np.testing.assert_array_equal(bounds[1], bounds[2])
    exact = fitted(krr.decompose(K), y, 0.05, schedule)
    found = fitted(basis.spectrum(), y, 0.05, schedule)
    errors = np.linalg.norm(found - exact, axis=(1, 2)) / np.linalg.norm(found, axis=(1, 2))
    assert (errors > 1e-9).all()
    assert (errors <= bounds[0, 0]).all()
    assert (errors > bounds[0, 0] / 30).all()


def test_chains_that_diverge_are_left_out():
    K, y, K_new = problem()
    basis = lanczos(K, y, [-2.0, 0.5], 1e-3, [2, math.inf], tolerance=1e-6)
    errors = basis.errors([-2.0, 0.5], 1e-3, [2, math.inf])[:, 0]
    np.testing.assert_array_equal(np.isnan(errors), [[False, True], [False, False]])
    risk = basis.risk_map(K_new, np.zeros((40, 2)), [-2.0, 0.5], 1e-3, [2, math.inf])[:, 0]
    np.testing.assert_array_equal(np.isinf(risk), np.isnan(errors))


def test_residuals_for_the_best_alphas():
    K, y, _ = problem(n=600, m=1)
    basis = lanczos(K, y[:, 0], 0.5, 1.0, [1], tolerance=1e-8, probes=60)
    found = basis.eigen.gcv_residuals(1.0, 3)
    assert not found[:, -1].any()  # the targets are in the basis
    found = found[:, :-1]
    exact = krr.gcv_residuals(krr.decompose(K), y[:, 0], 1.0, 3)
    # The traces have standard errors of some per cent; what they divide has none.
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.linalg.norm(exact, axis=1), rel=0.02)
    ratio = found[1] / found[0]
    d = basis.spectrum().d
    share = np.linalg.norm(found[1]) / np.linalg.norm(found[0])
    assert (ratio / ratio[0]) == pytest.approx((1 + d / (d + 1)) / (1 + d[0] / (d[0] + 1)), rel=1e-9)
    assert share == pytest.approx(np.linalg.norm(exact[1]) / np.linalg.norm(exact[0]), rel=0.01)
    assert krr.greedy_alphas(found)[0][0] == pytest.approx(krr.greedy_alphas(exact)[0][0], abs=0.3)


def test_nothing_to_fit():
    K, _, _ = problem()
    basis = lanczos(K, np.zeros(300), 0.5, 0.1, [2], probes=2)
    assert not fitted(basis.spectrum(), np.zeros((300, 1)), 0.1, 0.5).any()


def test_refuses_what_is_no_kernel_matrix():
    K, y, _ = problem()
    for wrong, error in [
        (K + np.triu(K), krr.NotSymmetricError),
        (K - 0.5 * np.eye(300), krr.NotPositiveSemidefiniteError),
        (np.where(K[2, 3] == K, np.nan, K), krr.NotFiniteError),
    ]:
        with pytest.raises(error):
            lanczos(wrong, y, 0.5, 1.0, [1], tolerance=1e-9)


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_rounding_is_no_asymmetry(name):
    K, y, _ = problem()
    rounded = K.astype(name)
    rounded *= 1 + np.random.default_rng(0).uniform(-1, 1, K.shape).astype(name) * np.finfo(name).eps
    assert lanczos(rounded, y, 0.5, 1.0, [1]).size < 300


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": [2000]}, "up to step 1000"),
        ({"steps": [0]}, "steps must be"),
        ({"max_basis": 10}, "max_basis = 10"),
        ({"max_basis": 0}, "max_basis must be a whole number"),
        ({"max_basis": 100.5}, "max_basis must be a whole number"),
        ({"probes": 1}, "probes must be a whole number from 2"),
        ({"probes": 2.5}, "probes must be a whole number"),
        ({"tolerance": 0}, "tolerance must be positive"),
        ({"tolerance": "x"}, "tolerance must hold real numbers"),
        ({"tolerance": math.nan}, "tolerance must be finite"),
        ({"y": np.ones(3)}, "a row for each"),
        ({"y": np.full(50, np.nan)}, "y must be finite"),
        ({"lams": -1.0}, "lams must be"),
        ({"lams": [[1.0]]}, "lams must be"),
        ({"lams": math.nan}, "lams must be"),
        ({"alphas": math.inf}, "alpha must be"),
        ({"alphas": [0.5, [math.nan]]}, "alpha must be"),
        ({"K": np.ones((50, 49))}, "K must be square"),
        ({"K": np.eye(50) * 1j}, "K must be square and real"),
    ],
)
def test_refuses_what_it_cannot_do(change, message):
    K, y, _ = problem(n=50)
    arguments = {"K": K, "y": y, "alphas": 0.5, "lams": 1.0, "steps": [1]} | change
    with pytest.raises(ValueError, match=message):
        lanczos(**arguments)


def test_new_points_are_checked():
    K, y, K_new = problem(n=50)
    basis = lanczos(K, y, 0.5, 1.0, [1])
    for wrong, message in ((K_new[:, 1:], "K_new must have a column for each of the 50"), (K_new * np.nan, "finite")):
        with pytest.raises(ValueError, match=message):
            basis.risk_map(wrong, np.zeros((40, 2)), 0.5, 1.0, [1])


def test_refuses_what_is_no_matrix():
    with pytest.raises(TypeError, match="K must be a matrix or a linear operator, not str"):
        lanczos("K", np.ones(3), 0.5, 1.0, [1])


def test_a_basis_of_all_vectors_is_enough():
    K, y, _ = problem()
    with pytest.raises(NotReachedError) as caught:
        lanczos(K, y, 0.5, 1e-12, [1], max_basis=100)
    assert np.isnan(caught.value.needs).all() or (caught.value.needs <= 300).all()

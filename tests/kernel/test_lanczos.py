"""Block Lanczos against one eigendecomposition of the same kernel matrix."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator
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
    trace, deviation = basis.degrees_of_freedom(0.01, 0.5, [1, 3])
    assert (np.abs(trace - krr.degrees_of_freedom(B)) < 4 * deviation).all()
    assert (deviation < 0.1 * trace).all()
    gcv, deviation = basis.generalised_cross_validation(0.01, 0.5, [1, 3])
    assert (np.abs(gcv - krr.generalised_cross_validation(spectrum, y, B)) < 4 * deviation).all()


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
    K, y, _ = problem()
    with pytest.raises(NotReachedError, match=r"\d+ basis.* lam = 0.001 \(error .*, needs some \d+ vectors\)$"):
        lanczos(K, y, 0.5, [1e-3, 100.0], [1, 2], max_basis=100, probes=5)


def test_resumes_from_its_folder(tmp_path):
    K, y, _ = problem()

    left = 4

    def product(block):
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return K @ block

    interrupted = LinearOperator(K.shape, matvec=product, matmat=product, dtype=K.dtype)
    arguments = (y, 0.5, 1e-3, [1, 2])
    with pytest.raises(KeyboardInterrupt):
        lanczos(interrupted, *arguments, tolerance=1e-8, checkpoint=tmp_path)
    begun = BlockLanczos(K, y, checkpoint=tmp_path)
    assert begun.passes == 4
    resumed = lanczos(K, *arguments, tolerance=1e-8, checkpoint=tmp_path)
    straight = BlockLanczos(K, y)
    while straight.passes < resumed.passes:
        straight.extend()
    assert resumed.passes > 4
    assert resumed.spectrum().d == pytest.approx(straight.spectrum().d, rel=1e-12, abs=1e-12)
    with pytest.raises(ValueError, match="another problem"):
        lanczos(K, y + 1, 0.5, 1e-3, [1, 2], checkpoint=tmp_path)
    with pytest.raises(ValueError, match="another kernel matrix"):
        lanczos(2 * K, *arguments, checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": [2000]}, "up to step 1000"),
        ({"max_basis": 10}, "max_basis = 10"),
        ({"y": np.ones(3)}, "a row for each"),
        ({"lams": -1.0}, "lam must be"),
    ],
)
def test_refuses_what_it_cannot_do(change, message):
    K, y, _ = problem(n=50)
    arguments = {"y": y, "alphas": 0.5, "lams": 1.0, "steps": [1]} | change
    with pytest.raises(ValueError, match=message):
        lanczos(K, **arguments)


def test_a_chain_that_diverges_has_no_bound():
    K, y, _ = problem()
    basis = BlockLanczos(K, y)
    basis.extend()
    assert np.isinf(basis.errors(-2.0, 1e-3, [math.inf])).all()

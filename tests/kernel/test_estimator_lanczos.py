"""The estimators with solver="lanczos" against an eigendecomposition."""

import math
import pickle

import numpy as np
import pytest
import scipy.sparse
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from distill import krr
from distill.estimator import SelfDistilledKernelRidge, SelfDistilledKernelRidgeClassifier
from distill.kernel import estimator_base, linalg


@parametrize_with_checks(
    [
        SelfDistilledKernelRidge(solver="lanczos"),
        SelfDistilledKernelRidge(solver="lanczos", alpha=[0.2, -0.1], n_steps=4, kernel="linear"),
        SelfDistilledKernelRidgeClassifier(solver="lanczos"),
    ]
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((150, 3)) * (rng.random((150, 3)) < 0.8)
    return X, np.sin(X).sum(axis=1) + 0.3 * rng.standard_normal(150), rng.standard_normal((20, 3))


def pair(**options):
    """By block Lanczos, accurate to 1e-10, and by an eigendecomposition."""
    lanczos = SelfDistilledKernelRidge(solver="lanczos", tol=1e-10, random_state=0, **options)
    return lanczos, SelfDistilledKernelRidge(solver="eigh", random_state=0, **options)


def laplace(a, b, width):
    return np.exp(-np.abs(a - b).sum() / width)


@pytest.mark.parametrize(
    "kernel",
    [
        {"kernel": "rbf"},
        {"kernel": "linear"},
        {"kernel": "poly", "degree": 2, "coef0": 0.5, "gamma": 0.3},
        {"kernel": "laplacian", "gamma": 0.7},
        {"kernel": "cosine"},
        {"kernel": laplace, "kernel_params": {"width": 2.0}},
        {"kernel": "precomputed"},
    ],
    ids=["rbf", "linear", "poly", "laplacian", "cosine", "callable", "precomputed"],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_the_eigendecomposition(data, kernel, weighted):
    X, y, X_new = data
    if kernel["kernel"] == "precomputed":
        X, X_new = krr.rbf(0.3)(X, X), krr.rbf(0.3)(X_new, X)
    weight = np.random.default_rng(1).integers(0, 3, 150) if weighted else None
    mine, theirs = (model.fit(X, y, weight) for model in pair(alpha=[0.2, 1.1, -0.1], lam=0.5, n_steps=4, **kernel))
    assert mine.solver_ == "lanczos"
    np.testing.assert_allclose(mine.predict(X_new), theirs.predict(X_new), rtol=1e-7, atol=1e-9)
    stages = zip(mine.staged_predict(X_new), theirs.staged_predict(X_new), strict=True)
    for found, expected in stages:
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)
    axes = ([0.2, 1], [0.5, 5], [1, 3, math.inf], X_new, np.ones(20))
    np.testing.assert_allclose(mine.path(X, y, *axes), theirs.path(X, y, *axes), rtol=1e-7)
    assert theirs.condition_ <= mine.condition_ * (1 + 1e-9)


@pytest.mark.parametrize("fraction", [None, 0.3])
@pytest.mark.parametrize("n_steps", [3, math.inf])
@pytest.mark.parametrize("weighted", [False, True])
def test_alphas_are_chosen_as_by_the_eigendecomposition(data, fraction, n_steps, weighted):
    X, y, X_new = data
    weight = np.random.default_rng(1).integers(0, 3, 150) if weighted else None
    options = {"alpha": "auto", "validation_fraction": fraction, "n_steps": n_steps, "lam": 0.5}
    mine, theirs = (model.fit(X, y, weight) for model in pair(**options))
    # On held-out points to rounding. By cross-validation, traces have standard errors of some per cent.
    exact = fraction is not None
    np.testing.assert_allclose(mine.alphas_, theirs.alphas_, **({"rtol": 1e-5} if exact else {"atol": 0.35}))
    np.testing.assert_allclose(mine.predict(X_new), theirs.predict(X_new), atol=1e-6 if exact else 0.1)


@pytest.mark.parametrize("form", [scipy.sparse.csr_array, scipy.sparse.csc_array])
def test_sparse_inputs_and_many_targets(data, form, monkeypatch):
    X, y, X_new = data
    Y = np.stack([y, -y, y**2], axis=1)
    mine, theirs = (model.fit(X, Y) for model in pair())
    monkeypatch.setattr(estimator_base, "available_memory", lambda: 0)  # no tile is kept
    sparse = SelfDistilledKernelRidge(solver="lanczos", tol=1e-10).fit(form(X), Y)
    for model, new in ((mine, X_new), (sparse, form(X_new))):
        np.testing.assert_allclose(model.predict(new), theirs.predict(X_new), atol=1e-9)


def test_a_classifier(data):
    X, y, X_new = data
    labels = np.array(["low", "mid", "high"])[np.digitize(y, [-0.5, 0.5])]
    models = [SelfDistilledKernelRidgeClassifier(solver=solver).fit(X, labels) for solver in ("lanczos", "eigh")]
    np.testing.assert_array_equal(models[0].predict(X_new), models[1].predict(X_new))


def test_a_kernel_that_does_not_fit_into_memory(data, monkeypatch):
    X, y, _ = data
    monkeypatch.setattr(linalg, "available_memory", lambda: 10_000)
    for model in (SelfDistilledKernelRidge(), SelfDistilledKernelRidge(alpha="auto")):
        with pytest.raises(krr.MatrixTooLargeError, match=r"n = 150 needs .* solver='lanczos' needs none"):
            model.fit(X, y)
    with pytest.raises(krr.MatrixTooLargeError, match="solver='lanczos'"):
        SelfDistilledKernelRidge().path(X, y, [0.5], [1.0], [1], X, y)
    monkeypatch.setattr(linalg, "available_memory", lambda: 8 * 150**2)  # of a basis of all vectors
    SelfDistilledKernelRidge(solver="lanczos").fit(X, y)


def test_a_ridge_that_is_not_reached_is_named(data):
    X, y, _ = data
    model = SelfDistilledKernelRidge(solver="lanczos", lam=1e-6, max_basis=50, gamma=5.0)
    with pytest.raises(krr.NotReachedError, match=r"lam = 1e-06 \(error .*; raise lam, tol or max_basis$") as caught:
        model.fit(X, y)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(ValueError, match="up to step 1000"):
        SelfDistilledKernelRidge(solver="lanczos", n_steps=2000).fit(X, y)


def test_matrices_that_are_no_kernel_matrices(data):
    X, y, _ = data
    K = krr.rbf(0.3)(X, X)
    for change, error in ((np.triu(K), krr.NotSymmetricError), (-np.eye(150), krr.NotPositiveSemidefiniteError)):
        with pytest.raises(error):
            SelfDistilledKernelRidge(kernel="precomputed", solver="lanczos").fit(K + change, y)
    with pytest.raises(krr.DivergentChainError):
        SelfDistilledKernelRidge(solver="lanczos", alpha=-5, n_steps=math.inf).fit(X, y)


@pytest.mark.parametrize(("name", "value"), [("tol", 0), ("tol", math.nan), ("max_basis", 0), ("max_basis", 1.5)])
def test_parameters_are_checked(data, name, value):
    with pytest.raises(ValueError, match=f"'{name}' parameter"):
        SelfDistilledKernelRidge(**{name: value}).fit(*data[:2])


def test_large_kernel_matrices_are_computed_in_blocks(data, monkeypatch):
    """NumPy's product of a large array with its own transpose crashes."""
    X, y, X_new = data
    expected = SelfDistilledKernelRidge(kernel="linear", solver="eigh").fit(X, y).predict(X_new)
    calls = []

    def kernels(A, B=None, **options):
        calls.append((len(A), len(B)))
        return A @ B.T

    for module in (estimator_base, estimator_base.tiles):
        monkeypatch.setattr(module, "MOST_ENTRIES", 3000)
    monkeypatch.setattr(estimator_base, "pairwise_kernels", kernels)
    model = SelfDistilledKernelRidge(kernel="linear", solver="eigh").fit(X, y)
    np.testing.assert_allclose(model.predict(X_new), expected, atol=1e-12)
    assert max(a * b for a, b in calls) <= 3000


def test_a_search_over_solvers(data):
    X, y, _ = data
    search = GridSearchCV(SelfDistilledKernelRidge(), {"solver": ["eigh", "lanczos"]}, cv=3).fit(X, y)
    scores = search.cv_results_["mean_test_score"]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)

"""distill.estimator: scikit-learn's whole check suite, KernelRidge as first fit, and chains by hand."""

import doctest
import math
import pickle

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.exceptions import NotFittedError
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import laplacian_kernel, rbf_kernel
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from distill import krr
from distill.estimator import SelfDistilledKernelRidge, SelfDistilledKernelRidgeClassifier
from distill.kernel import estimator, linalg, mixing


@parametrize_with_checks(
    [
        SelfDistilledKernelRidge(),
        SelfDistilledKernelRidge(alpha=[0.2, -0.1], n_steps=4, kernel="linear", solver="eigh"),
        SelfDistilledKernelRidge(n_steps=math.inf, lam=0.01),
        SelfDistilledKernelRidgeClassifier(),
    ]
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_examples_in_the_documentation():
    results = doctest.testmod(estimator)
    assert results.attempted >= 10
    assert results.failed == 0


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50, 3))
    return X, np.sin(X).sum(axis=1) + 0.3 * rng.standard_normal(50), rng.standard_normal((20, 3))


def chain_by_refits(X, y, X_new, lam, alphas, n_steps, sample_weight=None, **kernel):
    """Predictions of each fit, (n_steps, q), by scikit-learn's KernelRidge."""
    target = y
    out = []
    for step in range(n_steps):
        model = KernelRidge(alpha=lam, **kernel).fit(X, target, sample_weight)
        out.append(model.predict(X_new))
        alpha = alphas[min(step, len(alphas) - 1)]
        target = alpha * y + (1 - alpha) * model.predict(X)
    return np.array(out)


@pytest.mark.parametrize("solver", ["auto", "eigh", "cholesky"])
@pytest.mark.parametrize("lam", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize(
    "kernel",
    [
        {"kernel": "rbf"},
        {"kernel": "linear"},
        {"kernel": "poly", "degree": 2, "coef0": 0.5, "gamma": 0.3},
        {"kernel": "laplacian", "gamma": 0.7},
        {"kernel": lambda a, b, width: np.exp(-np.abs(a - b).sum() / width), "kernel_params": {"width": 2.0}},
    ],
    ids=["rbf", "linear", "poly", "laplacian", "callable"],
)
def test_one_step_is_kernel_ridge(data, kernel, lam, solver):
    X, y, X_new = data
    ours = SelfDistilledKernelRidge(lam=lam, n_steps=1, solver=solver, **kernel).fit(X, y)
    theirs = KernelRidge(alpha=lam, **kernel).fit(X, y)
    # The dual coefficients of a singular kernel are as large as y / lam, and their last digits with them.
    scale = max(1.0, np.abs(theirs.dual_coef_).max())
    if hasattr(ours, "coef_"):  # a linear kernel, and fewer features than points
        np.testing.assert_allclose(ours.coef_, theirs.dual_coef_.T @ X, rtol=0, atol=1e-10 * scale)
    else:
        np.testing.assert_allclose(ours.dual_coef_, theirs.dual_coef_, rtol=0, atol=1e-10 * scale)
    np.testing.assert_allclose(ours.predict(X_new), theirs.predict(X_new), rtol=0, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.35, 0.0, -0.4, [0.2, 0.9, -0.3]])
def test_chain_and_stages_are_refits(data, alpha):
    X, y, X_new = data
    weights = np.random.default_rng(1).uniform(0.1, 2, 50)
    for sample_weight in (None, weights):
        expected = chain_by_refits(X, y, X_new, 0.5, np.atleast_1d(alpha), 5, sample_weight, kernel="rbf", gamma=0.4)
        model = SelfDistilledKernelRidge(alpha=alpha, lam=0.5, n_steps=5, gamma=0.4).fit(X, y, sample_weight)
        np.testing.assert_allclose(model.predict(X_new), expected[-1], atol=1e-12)
        np.testing.assert_allclose(list(model.staged_predict(X_new)), expected, atol=1e-12)
        np.testing.assert_allclose(list(model.staged_predict(X_new, [4, 2])), expected[[3, 1]], atol=1e-12)


def test_limit_is_kernel_ridge_with_lam_over_alpha(data):
    X, y, X_new = data
    for alpha in (0.25, 1.0):
        limit = SelfDistilledKernelRidge(alpha=alpha, lam=0.5, n_steps=math.inf).fit(X, y)
        expected = KernelRidge(alpha=0.5 / alpha, kernel="rbf").fit(X, y).predict(X_new)
        np.testing.assert_allclose(limit.predict(X_new), expected, atol=1e-12)
        stages = list(limit.staged_predict(X_new, [1, math.inf]))
        np.testing.assert_allclose(stages[1], expected, atol=1e-12)
        with pytest.raises(ValueError, match="n_steps is inf"):
            next(limit.staged_predict(X_new))
    assert not SelfDistilledKernelRidge(alpha=0.0, n_steps=math.inf).fit(X, y).dual_coef_.any()
    with pytest.raises(krr.DivergentChainError):
        SelfDistilledKernelRidge(alpha=-5, n_steps=math.inf).fit(X, y)


def test_whole_weights_are_copies_and_zero_leaves_out(data):
    X, y, X_new = data
    weights = np.random.default_rng(2).integers(0, 4, 50)
    copies = np.repeat(np.arange(50), weights)
    options = {"alpha": [0.2, -0.3], "lam": 0.1, "n_steps": 3}
    weighted = SelfDistilledKernelRidge(**options).fit(X, y, weights)
    repeated = SelfDistilledKernelRidge(**options).fit(X[copies], y[copies])
    np.testing.assert_allclose(weighted.predict(X_new), repeated.predict(X_new), atol=1e-12)
    assert not weighted.dual_coef_[weights == 0].any()
    # a point left out may make K singular without doing harm at lam = 0
    twin = np.vstack([X[:20], X[:1]])
    zero = np.r_[np.ones(20), 0]
    left_out = SelfDistilledKernelRidge(lam=0, gamma=5.0).fit(twin, np.r_[y[:20], 7.0], zero)
    np.testing.assert_allclose(left_out.predict(X[:20]), y[:20], atol=1e-10)
    # a number is a weight for all: the ridge counts that much less
    double = SelfDistilledKernelRidge(**options).fit(X, y, 2.0)
    half = SelfDistilledKernelRidge(**{**options, "lam": 0.05}).fit(X, y)
    np.testing.assert_allclose(double.predict(X_new), half.predict(X_new), atol=1e-12)
    for bad in (-weights, np.zeros(50), np.ones(49), np.full(50, np.nan), np.ones((50, 1))):
        with pytest.raises(ValueError, match="sample_weight"):
            SelfDistilledKernelRidge().fit(X, y, bad)


def test_precomputed_kernel(data):
    X, y, X_new = data
    K = rbf_kernel(X)
    K_new = rbf_kernel(X_new, X)
    before = K.copy()
    for solver in ("eigh", "cholesky"):
        options = {"alpha": 0.3, "n_steps": 4, "solver": solver}
        ours = SelfDistilledKernelRidge(kernel="precomputed", **options).fit(K, y)
        direct = SelfDistilledKernelRidge(**options).fit(X, y)
        np.testing.assert_allclose(ours.predict(K_new), direct.predict(X_new), atol=1e-12)
        np.testing.assert_allclose(list(ours.staged_predict(K_new)), list(direct.staged_predict(X_new)), atol=1e-12)
        ours.path(K, y, [0.3], [1.0], [2], K_new, np.zeros(20))
        np.testing.assert_array_equal(K, before)
    with pytest.raises(linalg.NotSymmetricError):
        SelfDistilledKernelRidge(kernel="precomputed").fit(K + np.triu(K), y)
    search = GridSearchCV(SelfDistilledKernelRidge(kernel="precomputed"), {"alpha": [0.1, 0.9]}, cv=3).fit(K, y)
    by_X = GridSearchCV(SelfDistilledKernelRidge(), {"alpha": [0.1, 0.9]}, cv=3).fit(X, y)
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], by_X.cv_results_["mean_test_score"], atol=1e-12)


def test_many_targets_and_sparse_inputs(data):
    X, y, X_new = data
    Y = np.stack([y, -y, y**2], axis=1)
    model = SelfDistilledKernelRidge(n_steps=3).fit(X, Y)
    assert model.predict(X_new).shape == (20, 3)
    np.testing.assert_allclose(
        model.predict(X_new)[:, 2],
        SelfDistilledKernelRidge(n_steps=3).fit(X, y**2).predict(X_new),
        atol=1e-12,
    )
    assert [stage.shape for stage in model.staged_predict(X_new)] == [(20, 3)] * 3
    sparse = SelfDistilledKernelRidge(n_steps=3).fit(scipy.sparse.csr_array(X), Y)
    np.testing.assert_allclose(sparse.predict(scipy.sparse.csr_array(X_new)), model.predict(X_new), atol=1e-12)


def test_float32_inputs_are_computed_in_float64(data):
    X, y, X_new = (a.astype(np.float32) for a in data)
    ours = SelfDistilledKernelRidge(lam=1e-3).fit(X, y)
    exact = SelfDistilledKernelRidge(lam=1e-3).fit(X.astype(float), y.astype(float))
    assert ours.dual_coef_.dtype == np.float64
    np.testing.assert_allclose(ours.predict(X_new), exact.predict(X_new.astype(float)), rtol=1e-12)  # float32: 1e-7


def test_kernel_matrix_of_float32_is_taken_as_scikit_learn_takes_it(data):
    X, y, _ = data
    K = rbf_kernel(X).astype(np.float32)
    K[np.triu_indices(50, 1)] *= np.float32(1 + 1.2e-7)
    assert (K != K.T).any()
    options = {"kernel": "precomputed", "alpha": 0.3, "n_steps": 3, "lam": 0.1}
    expected = KernelRidge(kernel="precomputed", alpha=0.1).fit(K.astype(float), y).predict(K)
    for solver in ("auto", "eigh", "cholesky"):
        model = SelfDistilledKernelRidge(solver=solver, **options).fit(K, y)
        np.testing.assert_allclose(next(model.staged_predict(K)), expected, atol=1e-5)
        weighted = SelfDistilledKernelRidge(solver=solver, **options).fit(K, y, np.ones(50))
        np.testing.assert_allclose(weighted.dual_coef_, model.dual_coef_, rtol=1e-4, atol=1e-6)
        assert np.isfinite(model.path(K, y, [0.3], [0.1], [1, 2], K, y)).all()
    with pytest.raises(linalg.NotSymmetricError):
        SelfDistilledKernelRidge(**options).fit(K.astype(float), y)


def test_pipeline_search_clone_and_pickle(data):
    X, y, X_new = data
    pipeline = make_pipeline(StandardScaler(), SelfDistilledKernelRidge(n_steps=3))
    grid = {"selfdistilledkernelridge__alpha": [0.0, 0.5, 1.0], "selfdistilledkernelridge__lam": [0.1, 1.0]}
    search = GridSearchCV(pipeline, grid, cv=3).fit(X, y)
    assert search.best_score_ > 0.5
    copy = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_allclose(copy.predict(X_new), search.predict(X_new), rtol=1e-12)
    again = clone(search.best_estimator_).fit(X, y)
    np.testing.assert_allclose(again.predict(X_new), search.predict(X_new), rtol=1e-12)


def test_path_is_the_map_of_fits(data):
    X, y, X_new = data
    y_new = np.sin(X_new).sum(axis=1)
    alphas = [0.0, 0.5, 1.0]
    lams = [0.1, 2.0]
    steps = [1, 3, math.inf]
    for solver in ("auto", "eigh", "cholesky"):
        risk = SelfDistilledKernelRidge(gamma=0.3, solver=solver).path(X, y, alphas, lams, steps, X_new, y_new)
        assert risk.shape == (3, 2, 3)
        for i, alpha in enumerate(alphas):
            for j, lam in enumerate(lams):
                for s, n_steps in enumerate(steps):
                    model = SelfDistilledKernelRidge(alpha=alpha, lam=lam, n_steps=n_steps, gamma=0.3).fit(X, y)
                    expected = np.mean((model.predict(X_new) - y_new) ** 2)
                    assert risk[i, j, s] == pytest.approx(expected, rel=1e-9)


# ---- the best alpha


@pytest.fixture(scope="module")
def noisy():
    rng = np.random.default_rng(3)
    X = rng.uniform(size=(400, 1))
    return X, np.sin(2 * np.pi * X[:, 0]) + 0.5 * rng.standard_normal(400)


def test_auto_by_cross_validation_is_the_greedy_choice(noisy):
    X, y = noisy
    model = SelfDistilledKernelRidge(alpha="auto", lam=20.0, n_steps=3, gamma=80.0).fit(X, y)
    expected, _ = krr.greedy_alphas(krr.gcv_residuals(krr.decompose(rbf_kernel(X, gamma=80.0)), y, 20.0, 3))
    np.testing.assert_allclose(model.alphas_, expected, rtol=1e-8)
    x_new = np.linspace(0, 1, 101)[:, None]
    truth = np.sin(2 * np.pi * x_new[:, 0])
    stages = [np.mean((stage - truth) ** 2) for stage in model.staged_predict(x_new)]
    assert stages[1] < stages[0] / 2


def test_auto_on_a_held_out_fraction_is_best_there(noisy):
    X, y = noisy
    options = {"lam": 20.0, "n_steps": 2, "gamma": 80.0, "validation_fraction": 0.25, "random_state": 5}
    model = SelfDistilledKernelRidge(alpha="auto", **options).fit(X, y)
    order = np.random.RandomState(5).permutation(400)
    held_out = order[:100]
    train = order[100:]
    grid = model.alphas_[0] + np.linspace(-1, 1, 21)
    plain = SelfDistilledKernelRidge(gamma=80.0)
    risks = plain.path(X[train], y[train], grid, [20.0], [2], X[held_out], y[held_out]).ravel()
    assert np.argmin(risks) == 10
    fixed = SelfDistilledKernelRidge(alpha=model.alphas_[0], lam=20.0, n_steps=2, gamma=80.0).fit(X, y)
    # Two fits of the same chain: their arrays may differ in alignment, and so in the last bits.
    np.testing.assert_allclose(model.dual_coef_, fixed.dual_coef_, rtol=1e-10)


@pytest.mark.parametrize("fraction", [None, 0.3])
def test_auto_at_other_numbers_of_steps(noisy, fraction):
    X, y = noisy
    options = {
        "alpha": "auto",
        "gamma": 80.0,
        "lam": 1e-3,
        "validation_fraction": fraction,
        "random_state": 0,
    }
    assert SelfDistilledKernelRidge(n_steps=1, **options).fit(X, y).alphas_.tolist() == [1.0]
    late = SelfDistilledKernelRidge(n_steps=10**6, **options).fit(X, y)
    assert len(late.alphas_) == krr.AUTO_FITS
    assert late.alphas_[-1] == np.clip(late.alphas_[-2], 0, 1)  # which cannot diverge
    limit = SelfDistilledKernelRidge(n_steps=math.inf, **options).fit(X, y)
    assert limit.alphas_ in mixing.LIMIT_ALPHAS
    assert limit.alphas_ < 0.1  # the ridge is far too small for this noise, and lam/alpha must make up for it


def test_auto_warns_of_few_points(data):
    X, y, _ = data
    with pytest.warns(UserWarning, match="needs hundreds of points, but there are fewer than 100") as caught:
        SelfDistilledKernelRidge(alpha="auto").fit(X, y)
    assert caught[0].filename == __file__  # the caller's line, not one of ours


# ---- the classifier


def test_classifier_is_the_regressor_on_one_hot_targets():
    X, y = make_classification(150, 6, n_informative=4, n_classes=3, random_state=0)
    labels = np.array(["red", "green", "blue"])[y]
    model = SelfDistilledKernelRidgeClassifier(alpha=0.3, n_steps=4).fit(X[:100], labels[:100])
    assert model.classes_.tolist() == ["blue", "green", "red"]
    one_hot = (labels[:100, None] == model.classes_).astype(float)
    regressor = SelfDistilledKernelRidge(alpha=0.3, n_steps=4).fit(X[:100], one_hot)
    outputs = regressor.predict(X[100:])
    np.testing.assert_allclose(model.decision_function(X[100:]), outputs, atol=1e-13)
    np.testing.assert_array_equal(model.predict(X[100:]), model.classes_[outputs.argmax(axis=1)])
    assert model.score(X[100:], labels[100:]) > 0.6
    stages = [stage.argmax(axis=1) for stage in regressor.staged_predict(X[100:])]
    np.testing.assert_array_equal(list(model.staged_predict(X[100:])), model.classes_[stages])
    risk = model.path(X[:100], labels[:100], [0.3], [1.0], [4], X[100:], labels[100:])
    expected = np.mean((outputs - (labels[100:, None] == model.classes_)) ** 2)
    assert risk.item() == pytest.approx(expected)


def test_binary_classifier_has_one_score():
    X, y = make_classification(80, random_state=1)
    model = SelfDistilledKernelRidgeClassifier(n_steps=2).fit(X, y)
    score = model.decision_function(X)
    assert score.shape == (80,)
    np.testing.assert_array_equal(model.predict(X), (score > 0).astype(int))
    with pytest.raises(NotFittedError):
        SelfDistilledKernelRidgeClassifier().predict(X)


def test_limit_of_the_classifier_by_a_solve():
    X, y = make_classification(40, random_state=2)
    model = SelfDistilledKernelRidgeClassifier(alpha=0.5, n_steps=math.inf, kernel="laplacian").fit(X, y)
    one_hot = np.eye(2)[y]
    expected = np.linalg.solve(0.5 * laplacian_kernel(X) + np.eye(40), 0.5 * one_hot)
    np.testing.assert_allclose(model.dual_coef_, expected, atol=1e-13)


def test_distances_that_overflow_float64_do_no_harm():
    X = np.random.default_rng(0).standard_normal((30, 2)) * 3
    model = SelfDistilledKernelRidge(lam=1.0, n_steps=2, alpha=0.5, solver="cholesky", gamma=1e300)
    assert np.isfinite(model.fit(X, X[:, 0]).predict(X)).all()

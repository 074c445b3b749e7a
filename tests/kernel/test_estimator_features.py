"""The estimators with a linear kernel: the features' route against the kernel matrix's, and scikit-learn's Ridge."""

import math

import numpy as np
import pytest
from sklearn.datasets import load_iris, make_friedman1
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from distill.estimator import SelfDistilledKernelRidge, SelfDistilledKernelRidgeClassifier


@parametrize_with_checks(
    [
        SelfDistilledKernelRidge(kernel="linear"),
        SelfDistilledKernelRidge(kernel="linear", fit_intercept=True, n_steps=3, alpha=0.2),
        SelfDistilledKernelRidgeClassifier(kernel="linear"),
    ]
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def data():
    X, y = make_friedman1(220, 6, noise=1, random_state=0)
    targets = np.column_stack([y, X[:, 0] - y])
    return X[:200], targets[:200], X[200:], targets[200:]


def linear(**options):
    return SelfDistilledKernelRidge(kernel="linear", **options)


@pytest.mark.parametrize("alpha", [0.3, [0.2, 1.4, -0.1], "auto"])
@pytest.mark.parametrize("n_steps", [1, 4, math.inf])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fraction", [None, 0.3])
def test_equals_the_route_by_the_kernel_matrix(data, alpha, n_steps, weighted, fraction):
    if isinstance(alpha, list) and n_steps == math.inf:
        alpha = 0.7
    X, y, X_new, _ = data
    weight = np.random.default_rng(0).integers(0, 3, 200) if weighted else None
    options = {"alpha": alpha, "lam": 2.0, "n_steps": n_steps, "validation_fraction": fraction, "random_state": 0}
    features = linear(**options).fit(X, y, weight)
    matrix = linear(solver="eigh", **options).fit(X, y, weight)
    assert hasattr(features, "coef_")
    assert hasattr(matrix, "dual_coef_")
    if not (weighted and fraction):  # there the kernel matrix's route also draws among the weighted points only
        np.testing.assert_allclose(features.alphas_, matrix.alphas_, rtol=1e-6)
        np.testing.assert_allclose(features.predict(X_new), matrix.predict(X_new), rtol=1e-7)
        stages = zip(features.staged_predict(X_new, [1, 2]), matrix.staged_predict(X_new, [1, 2]), strict=True)
        for mine, theirs in stages:
            np.testing.assert_allclose(mine, theirs, rtol=1e-7)


def test_the_path_equals_that_of_the_kernel_matrix(data):
    X, y, X_new, y_new = data
    axes = ([0, 0.5, 1.2], [0.1, 10], [1, 2, 5, math.inf])
    mine = linear().path(X, y, *axes, X_new, y_new)
    np.testing.assert_allclose(mine, linear(solver="eigh").path(X, y, *axes, X_new, y_new), rtol=1e-8)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_teacher_with_an_intercept_is_scikit_learns_ridge(data, weighted):
    X, y, X_new, _ = data
    weight = np.random.default_rng(0).integers(1, 4, 200) if weighted else None
    mine = linear(n_steps=1, lam=3.0, fit_intercept=True).fit(X, y, weight)
    theirs = Ridge(3.0).fit(X, y, weight)
    np.testing.assert_allclose(mine.coef_, theirs.coef_, rtol=1e-9)
    np.testing.assert_allclose(mine.intercept_, theirs.intercept_, rtol=1e-9)
    np.testing.assert_allclose(mine.predict(X_new), theirs.predict(X_new), rtol=1e-9)


def test_no_ridge_is_least_squares_at_every_step(data):
    X, y, X_new, _ = data
    mine = linear(lam=0.0, n_steps=5, alpha=0.3, fit_intercept=True).fit(X, y)
    np.testing.assert_allclose(mine.predict(X_new), LinearRegression().fit(X, y).predict(X_new), rtol=1e-9)


@pytest.mark.parametrize("options", [{}, {"fit_intercept": True}, {"alpha": "auto"}])
def test_blocks_are_fitted_as_one(data, options):
    X, y, X_new, _ = data
    whole = linear(n_steps=3, **options).fit(X, y)
    blocks = linear(n_steps=3, **options)
    with np.errstate(all="raise"):
        for rows in (slice(0, 120), slice(120, 125), slice(125, 200)):
            blocks.partial_fit(X[rows], y[rows])
    np.testing.assert_allclose(blocks.predict(X_new), whole.predict(X_new), rtol=1e-8)
    np.testing.assert_allclose(
        blocks.fit(X[:110], y[:110]).coef_, linear(n_steps=3, **options).fit(X[:110], y[:110]).coef_
    )


def test_blocks_of_a_classifier():
    X, y = load_iris(return_X_y=True)
    whole = SelfDistilledKernelRidgeClassifier(kernel="linear").fit(X, y)
    blocks = SelfDistilledKernelRidgeClassifier(kernel="linear")
    with pytest.raises(ValueError, match="needs classes"):
        blocks.partial_fit(X[:40], y[:40])
    for start in range(0, 150, 50):  # each block has one class only
        blocks.partial_fit(X[start : start + 50], y[start : start + 50], classes=[0, 1, 2])
    np.testing.assert_allclose(blocks.decision_function(X), whole.decision_function(X), rtol=1e-9)
    with pytest.raises(ValueError, match="label 7"):
        blocks.partial_fit(X[:2], [0, 7])


def test_an_approximate_kernel_in_a_pipeline(data):
    X, y, X_new, y_new = data
    model = make_pipeline(Nystroem(gamma=0.3, n_components=60, random_state=0), linear(lam=0.1, n_steps=3)).fit(X, y)
    assert model[-1].coef_.shape == (2, 60)
    assert model.score(X_new, y_new) > linear(lam=0.1).fit(X, y).score(X_new, y_new)


def test_more_features_than_points_use_the_kernel_matrix():
    X = np.random.default_rng(0).standard_normal((10, 30))
    assert hasattr(linear().fit(X, X[:, 0]), "dual_coef_")
    assert linear(fit_intercept=True).fit(X, X[:, 0]).coef_.shape == (30,)


@pytest.mark.parametrize("options", [{"kernel": "rbf"}, {"kernel": "linear", "solver": "eigh"}])
def test_an_intercept_needs_features(data, options):
    with pytest.raises(ValueError, match="fit_intercept=True needs kernel='linear'"):
        SelfDistilledKernelRidge(fit_intercept=True, **options).fit(*data[:2])
    assert not hasattr(SelfDistilledKernelRidge(**options), "partial_fit")


def test_blocks_cannot_hold_points_out(data):
    with pytest.raises(ValueError, match="validation_fraction=None"):
        linear(alpha="auto", validation_fraction=0.2).partial_fit(*data[:2])

"""The parameters and arguments that the regressor and the classifier share, and what is not to be trusted."""

import math
import warnings

import numpy as np
import pytest
from scipy.linalg import LinAlgWarning
from sklearn.metrics.pairwise import rbf_kernel

from distill import krr
from distill.estimator import SelfDistilledKernelRidge, SelfDistilledKernelRidgeClassifier
from distill.kernel import estimator_base, linalg


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50, 3))
    return X, np.sin(X).sum(axis=1) + 0.3 * rng.standard_normal(50), rng.standard_normal((20, 3))


@pytest.mark.parametrize(
    "name",
    [
        "alpha",
        "lam",
        "n_steps",
        "kernel",
        "gamma",
        "degree",
        "coef0",
        "validation_fraction",
        "solver",
        "tol",
        "max_basis",
    ],
)
@pytest.mark.parametrize("value", ["x", 10**400, math.nan, 1j, b"x", [[1.0, 2.0]], {"a": 1}], ids=repr)
def test_a_parameter_of_another_type_is_named(data, name, value):
    X, y, _ = data
    for model in (SelfDistilledKernelRidge, SelfDistilledKernelRidgeClassifier):
        with pytest.raises((ValueError, TypeError), match=name.removeprefix("n_")):
            model(**{name: value}).fit(X, y > 0)


@pytest.mark.parametrize("solver", ["auto", "lanczos"])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_points_whose_kernel_overflows_are_named(data, solver):
    X, y, _ = data
    model = SelfDistilledKernelRidge(kernel="poly", solver=solver).fit(X, y)
    for call in (model.predict, lambda X: list(model.staged_predict(X)), lambda X: model.fit(X, y)):
        with pytest.raises(krr.NotFiniteError, match="the kernel of X exceeds float64's range: scale X"):
            call(1e120 * X)
    for kernel in ("linear", "poly", "rbf"):
        with pytest.raises(krr.NotFiniteError, match="X_val must be finite"):
            SelfDistilledKernelRidge(kernel=kernel, solver=solver).path(X, y, [0.5], [0.1], [1], 1e160 * X, y)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.longdouble])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_parameters_may_be_numbers_of_numpy(data, kind):
    X, y, new = data
    options = {"alpha": 0.25, "lam": 0.125, "gamma": 0.5, "degree": 2.0, "coef0": 1.0, "tol": 2.0**-10}
    for more in ({}, {"kernel": "poly"}, {"solver": "lanczos"}):
        given = SelfDistilledKernelRidge(**{name: kind(value) for name, value in options.items()}, **more)
        expected = SelfDistilledKernelRidge(**options, **more).fit(X, y).predict(new)
        np.testing.assert_allclose(given.fit(X, y).predict(new), expected, rtol=1e-6)


def test_bad_parameters_are_errors(data):
    X, y, _ = data
    for options, message in [
        ({"alpha": "best"}, "'alpha' parameter"),
        ({"alpha": math.nan}, "'alpha' parameter"),
        ({"n_steps": 0}, "n_steps"),
        ({"n_steps": 2.5}, "n_steps"),
        ({"n_steps": 10**400}, r"'n_steps' parameter .* range \[1, 1000000000000000\]"),
        ({"lam": np.float32("inf")}, "'lam' parameter"),
        ({"lam": -1.0}, "lam"),
        ({"lam": [0.1, 1]}, "'lam' parameter .* must be a float"),
        ({"gamma": -0.1}, "gamma"),
        ({"solver": "svd"}, "solver"),
        ({"alpha": "auto", "validation_fraction": 1.5}, "validation_fraction"),
        ({"alpha": "auto", "validation_fraction": 0.999}, "holds out all"),
    ]:
        with pytest.raises(ValueError, match=message):
            SelfDistilledKernelRidge(**options).fit(X, y)


def test_a_bad_condition_number_gives_a_warning(data):
    X, y, _ = data
    with pytest.warns(LinAlgWarning, match="condition number") as caught:
        SelfDistilledKernelRidge(gamma=1e-6, lam=1e-10).fit(X, y)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = SelfDistilledKernelRidge(gamma=1e-6, lam=1e-6).fit(X, y)
    K = rbf_kernel(X, gamma=1e-6) + 1e-6 * np.eye(50)
    assert model.solver_ == "cholesky"
    assert np.linalg.cond(K, 1) / 3 < model.condition_ < 3 * np.linalg.cond(K, 1)


def test_singular_and_indefinite_kernels_are_errors(data):
    X, y, _ = data
    with pytest.raises(linalg.SingularKernelError):
        SelfDistilledKernelRidge(lam=0.0).fit(np.vstack([X, X]), np.r_[y, y])
    with pytest.raises(linalg.NotPositiveSemidefiniteError):
        SelfDistilledKernelRidge(kernel="sigmoid", gamma=3.0, coef0=-2).fit(X, y)


def test_too_many_points_are_an_error_before_the_kernel_is_made(data, monkeypatch):
    X, y, _ = data
    monkeypatch.setattr(linalg, "available_memory", lambda: 10_000)
    monkeypatch.setattr(estimator_base, "pairwise_kernels", lambda *_, **__: pytest.fail("allocated"))
    with pytest.raises(linalg.MatrixTooLargeError, match="n = 50"):
        SelfDistilledKernelRidge().fit(X, y)


def test_targets_and_validation_points_are_checked_by_name(data):
    X, y, _ = data
    model = SelfDistilledKernelRidge(lam=0.0, gamma=50.0)
    with pytest.raises(krr.NotFiniteError, match=r"y must be finite and at most 1e\+150"):
        model.fit(X, 1e307 * y)
    for name, change in {
        "y_val": {"y_val": np.where(np.arange(50) == 3, np.nan, y)},
        "y": {"y": y[:-1]},
        "X_val": {"X_val": np.full_like(X, np.nan)},
        "X": {"X": np.full_like(X, np.inf)},
        "0 sample": {"X_val": X[:0], "y_val": y[:0]},
        "target": {"y_val": np.ones((50, 2))},
        "lams": {"lams": [[0.1]]},
        "steps": {"steps": [1.5]},
    }.items():
        grid = {"alphas": [0.5], "lams": [0.1], "steps": [1]}
        with pytest.raises(ValueError, match=rf"\b{name}"):
            model.path(**{"X": X, "y": y, "X_val": X, "y_val": y, **grid, **change})

"""The base class of the regressor and the classifier: from validated inputs and targets to a fitted chain."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal, Self

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import LinAlgWarning
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from sklearn.base import BaseEstimator
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import pairwise_kernels
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import Interval, Options, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from distill.environment import available_memory
from distill.kernel import solvers, spectral, tiles
from distill.kernel.arguments import as_sample_weight, as_schedule, as_targets
from distill.kernel.arrays import LARGEST_FLOAT, MOST_ENTRIES, FloatArray, as_floats, check_entries
from distill.kernel.features import FeatureChain, FeatureSums
from distill.kernel.lanczos import BlockLanczos, NotReachedError, lanczos
from distill.kernel.linalg import check_kernel, decompose, product, require_memory
from distill.kernel.mixing import AUTO_FITS, LIMIT_ALPHAS
from distill.kernel.riskmap import EigenChain, eigen_chain
from distill.kernel.solvers import risk_map
from distill.kernel.warn import warn

GCV_NEEDS = 100  # points; with fewer the estimate is too rough, and a wrong alpha does harm
HINT = "; solver='lanczos' needs none of them"
ALL = slice(None)


class Bounded(Interval):
    """A range of numbers. NumPy's count as Python's: a float32 cannot be compared with a limit above its range."""

    def __contains__(self, value: Any) -> bool:
        return super().__contains__(value.item() if isinstance(value, np.generic) else value)


# scikit-learn's own ranges have no end, and an int may be larger than any float.
ANY_NUMBER = Bounded(numbers.Real, -LARGEST_FLOAT, LARGEST_FLOAT, closed="both")
NOT_NEGATIVE = Bounded(numbers.Real, 0, LARGEST_FLOAT, closed="both")

Rows = Any  # (n, p): array-like, or a SciPy sparse matrix, whose types scikit-learn does not name


def by_features(estimator: Any) -> bool:
    """Whether the options of an estimator allow a fit by coefficients of features."""
    return bool(estimator.kernel == "linear" and estimator.solver == "auto")


class SelfDistilledBase(BaseEstimator):
    """A chain of kernel ridge regressions on targets (n,) or (n, m), float64; parameters as in the subclasses."""

    _parameter_constraints = KernelRidge._parameter_constraints | {
        "alpha": [ANY_NUMBER, "array-like", StrOptions({"auto"})],
        "lam": [NOT_NEGATIVE],
        "gamma": [NOT_NEGATIVE, None],
        "degree": [NOT_NEGATIVE],
        "coef0": [ANY_NUMBER],
        "n_steps": [Interval(numbers.Integral, 1, 10**15, closed="both"), Options(numbers.Real, {math.inf})],
        "validation_fraction": [Interval(numbers.Real, 0, 1, closed="neither"), None],
        "random_state": ["random_state"],
        "solver": [StrOptions({"auto", "eigh", "cholesky", "lanczos"})],
        "tol": [Bounded(numbers.Real, 0, LARGEST_FLOAT, closed="right")],
        "max_basis": [Interval(numbers.Integral, 1, 10**9, closed="both")],
        "fit_intercept": ["boolean"],
    }

    def __init__(
        self,
        alpha: float | ArrayLike | Literal["auto"] = 0.5,
        lam: float = 1.0,
        n_steps: float = 2,
        *,
        kernel: str | Callable[..., float] = "rbf",
        gamma: float | None = None,
        degree: float = 3,
        coef0: float = 1,
        kernel_params: dict[str, Any] | None = None,
        validation_fraction: float | None = None,
        random_state: int | np.random.RandomState | None = None,
        solver: str = "auto",
        tol: float = 1e-6,
        max_basis: int = 2000,
        fit_intercept: bool = False,
    ):
        self.alpha = alpha
        self.lam = lam
        self.n_steps = n_steps
        self.kernel = kernel
        self.gamma = gamma
        self.degree = degree
        self.coef0 = coef0
        self.kernel_params = kernel_params
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.solver = solver
        self.tol = tol
        self.max_basis = max_basis
        self.fit_intercept = fit_intercept

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = self.kernel != "precomputed" and not self.fit_intercept
        tags.input_tags.pairwise = self.kernel == "precomputed"
        return tags

    def _kernel(self, X: Rows, Y: Rows = None) -> FloatArray:
        named = {"gamma": self.gamma, "degree": self.degree, "coef0": self.coef0}
        params = (self.kernel_params or {}) if callable(self.kernel) else named
        with np.errstate(over="ignore", invalid="ignore"):
            return check_entries(pairwise_kernels(X, Y, metric=self.kernel, filter_params=True, **params))

    def _kernel_matrix(self, X: Rows, Y: Rows = None) -> FloatArray:
        """k(x, y), (q, n), or k(x, x)."""
        if self.kernel == "precomputed" or X.shape[0] * (X if Y is None else Y).shape[0] <= MOST_ENTRIES:
            return self._kernel(X, Y)
        return tiles.matrix(self._kernel, X, X if Y is None else Y)

    def _operator(self, X: Rows, X_new: Rows = None) -> Any:
        """k(X_new, X), or k(X, X), as an operator in tiles; if precomputed, X_new or X itself.

        Tiles of k(X, X) are kept in half of the memory that the basis leaves free. Raises KernelMatrixError's
        subclasses.
        """
        if self.kernel == "precomputed":
            return check_kernel(X).K if X_new is None else X_new
        room = (available_memory() or 0) - 8 * X.shape[0] * min(self.max_basis, X.shape[0])
        return tiles.KernelTiles(self._kernel, X, X_new, memory=max(0, room) / 2 if X_new is None else 0)

    def _lanczos(self, K: Any, y: ArrayLike, *axes: Any) -> BlockLanczos:
        """A basis that reaches ``tol`` for all chains with ``axes`` alphas, lams and steps. Raises NotReachedError."""
        try:
            return lanczos(K, y, *axes, tolerance=self.tol, max_basis=self.max_basis)
        except NotReachedError as error:  # without the basis: the error may be sent to another process
            raise NotReachedError(f"{error}; raise lam, tol or max_basis") from None

    def _check_X(self, X: Rows, y: Any = "no_validation", **options: Any) -> Any:
        """validate_data with this estimator's rules for X; a kernel matrix must be dense."""
        self._validate_params()
        precomputed = self.kernel == "precomputed"
        # The precision of a kernel matrix says how far rounding may have spoilt its symmetry.
        dtype = [np.float64, np.float32] if precomputed else np.float64
        sparse = False if precomputed or self.fit_intercept else ("csr", "csc")
        return validate_data(self, X, y, accept_sparse=sparse, dtype=dtype, **options)

    def _validated(self, X: Rows, y: ArrayLike, **options: Any) -> tuple[Rows, FloatArray]:
        """Checked inputs, and targets (n,) or (n, m)."""
        X, y = self._check_X(X, y, multi_output=True, y_numeric=True, **options)
        return X, np.asarray(y, dtype=np.float64)

    def _decoded(self, outputs: FloatArray) -> NDArray[Any]:
        return outputs

    def _path_targets(self, y: ArrayLike, y_val: ArrayLike) -> tuple[ArrayLike, ArrayLike]:
        return y, y_val

    def fit(self, X: Rows, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the chain to X (n, p), or (n, n) if precomputed, and y (n,) or (n, m), or labels (n,).

        ``sample_weight``: a number or (n,), >= 0. At every fit the squared error of point i, to the ground
        truth and to the teacher alike, counts w_i times: a whole number w_i is w_i copies of the point
        (except that the number of points, which "auto" uses, counts it once), 0 leaves it out.
        """
        X, targets = self._validated(X, y)
        weight = as_sample_weight(sample_weight, len(targets))
        self._keep: Any = ALL if weight is None else np.flatnonzero(weight)
        weight = None if weight is None else weight[self._keep]
        self._sums = None
        if self._suits_features(X):
            X = X[self._keep]
            targets = targets[self._keep]
            self._sums = FeatureSums(intercept=self.fit_intercept).add(X, targets, weight)
        else:
            self.X_fit_ = X
            self._targets = targets
            self._root = None if weight is None else np.sqrt(weight)
        return self._fit_chain(X, targets, weight)

    def _suits_features(self, X: Rows) -> bool:
        """Whether X (n, p) is fitted by its p coefficients. Raises ValueError for an intercept that it cannot have."""
        linear = by_features(self) and isinstance(X, np.ndarray)
        if self.fit_intercept and not linear:
            raise ValueError("fit_intercept=True needs kernel='linear' and solver='auto'")
        return linear and (self.fit_intercept or X.shape[1] < len(X))

    @available_if(by_features)
    def partial_fit(self, X: Rows, y: ArrayLike) -> Self:
        """Fit the chain to these rows and those of earlier calls; X (n, p) dense, y (n,) or (n, m).

        For kernel="linear" and solver="auto". Each call decomposes a p × p matrix.
        """
        return self._fit_partially(X, y)

    def _fit_partially(self, X: Rows, y: ArrayLike, **options: Any) -> Self:
        X, targets = self._validated(X, y, reset=not hasattr(self, "coef_"), **options)
        if isinstance(self.alpha, str) and self.validation_fraction is not None:
            raise ValueError("partial_fit keeps no points to hold out; set validation_fraction=None")
        sums = getattr(self, "_sums", None)
        self._sums = (sums or FeatureSums(intercept=self.fit_intercept)).add(X, targets)
        return self._fit_chain(X, targets, None)

    def _fit_chain(self, X: Rows, targets: FloatArray, weight: FloatArray | None) -> Self:
        auto = isinstance(self.alpha, str)
        self.alphas_ = self._choose_alphas(X, targets, weight) if auto else as_schedule(self.alpha)
        chain = self._chain([self.n_steps])
        if chain.condition > solvers.UNTRUSTED:
            warn(
                f"K + lam I has a condition number above {solvers.UNTRUSTED:g}: fewer than six digits of the fit are "
                "reliable; raise lam",
                LinAlgWarning,
            )
        if self._sums is None:
            self.dual_coef_ = chain.coefficients[0]
        else:
            self.coef_ = chain.coefficients[0].T
            self.intercept_ = self._sums.mean_y - self._sums.mean_x @ chain.coefficients[0]
        self.condition_ = chain.condition
        self.solver_ = chain.solver
        return self

    def _problem(self) -> tuple[FloatArray, FloatArray]:
        """K (n', n') and targets of the n' points with a sample weight above 0.

        With sample weights w each fit minimises sum_i w_i (f(x_i) - t_i)² + lam ‖f‖². With s_i = sqrt(w_i) that is
        the unweighted chain on s y and s K s, whose coefficients c~ give c = s c~.
        """
        require_memory(len(self._targets), 3, HINT)
        K = self._kernel_matrix(self.X_fit_)
        if self._root is None:
            return K, self._targets
        K = K[np.ix_(self._keep, self._keep)]
        K *= self._root[:, None]
        K *= self._root
        return K, (self._targets[self._keep].T * self._root).T

    def _problem_by_products(self, train: Any = ALL, held_out: Any = None) -> tuple[LinearOperator, FloatArray]:
        """As ``_problem``, for block Lanczos, of the points ``train`` among these, or from them to ``held_out``."""
        rows = train if held_out is None else held_out
        X = self.X_fit_[self._keep]
        if self.kernel == "precomputed":
            X = X[:, self._keep]
            K = self._operator(X[train][:, train]) if held_out is None else X[held_out][:, train]
        else:
            K = self._operator(X[train], None if held_out is None else X[held_out])
        K = aslinearoperator(K)
        targets = self._targets[self._keep][rows]
        if self._root is None:
            return K, targets
        left, right = (aslinearoperator(scipy.sparse.diags_array(self._root[part])) for part in (rows, train))
        return left @ K @ right, (targets.T * self._root[rows]).T

    def _chain(self, steps: list[float]) -> solvers.Chain:
        """The chain at ``steps``, with a coefficient for each feature or each point, 0 for points without weight."""
        if self._sums is not None:
            gram = self._sums.gram
            return solvers.chain(gram, self._sums.cross, self.lam, self.alphas_, steps, trusted=True)
        if self.solver == "lanczos":
            basis = self._lanczos(*self._problem_by_products(), [self.alphas_], self.lam, steps)
            d = basis.eigen.d
            # K may have eigenvalues near 0 that the basis does not show.
            least = self.lam or (d[-1] if basis.exact else 0)
            condition = (d[0] + self.lam) / least if least > 0 else math.inf
            chain = solvers.Chain(basis.coefficients(self.lam, self.alphas_, steps), condition, "lanczos")
        else:
            K, targets = self._problem()
            # A precomputed kernel without sample weights is the caller's array.
            overwrite = self.kernel != "precomputed" or self._root is not None
            # These are positive semidefinite for any points. If they overflow, K has NaN and the test fails.
            trusted = self.kernel in ("rbf", "laplacian") and bool(K.min() >= 0)
            chain = solvers.chain(
                K, targets, self.lam, self.alphas_, steps, solver=self.solver, overwrite=overwrite, trusted=trusted
            )
        if self._root is None:
            return chain
        coefficients = np.zeros((len(steps), *self._targets.shape))
        coefficients[:, self._keep] = [(c.T * self._root).T for c in chain.coefficients]
        return replace(chain, coefficients=coefficients)

    def _choose_alphas(self, X: Rows, targets: FloatArray, weight: FloatArray | None) -> FloatArray:
        """The schedule of alpha="auto", by generalised cross-validation or on held-out points."""
        if self.n_steps == 1:
            return np.ones(1)  # fit 1 has no teacher: alpha has no effect
        n = len(self._targets[self._keep]) if self._sums is None else self._sums.rows
        parts = []
        if self.validation_fraction is not None:
            n_held_out = math.ceil(self.validation_fraction * n)
            if n_held_out >= n:
                raise ValueError(f"validation_fraction={self.validation_fraction} holds out all {n} points")
            order = check_random_state(self.random_state).permutation(n)
            parts = [order[n_held_out:], order[:n_held_out]]
        elif n < GCV_NEEDS:
            warn(
                "alpha='auto' by generalised cross-validation needs hundreds of points, but there are fewer than "
                f"{GCV_NEEDS}; set validation_fraction",
                UserWarning,
            )
        chain, *held_out = self._eigenbasis(X, targets, weight, *parts)
        return chain.auto_alphas(self.lam, self.n_steps, *held_out)

    def _eigenbasis(
        self, X: Rows, targets: FloatArray, weight: FloatArray | None, train: Any = ALL, held_out: Any = None
    ) -> tuple[EigenChain, FloatArray | None, FloatArray | None]:
        """The problem of the points ``train``, and rows and targets of the points ``held_out``, if any.

        Both are positions among the points with a weight above 0.
        """
        if self._sums is not None:
            if held_out is None:
                return FeatureChain(self._sums).eigen, None, None
            weight = None if weight is None else weight[train]
            features = FeatureChain(FeatureSums(intercept=self.fit_intercept).add(X[train], targets[train], weight))
            return features.eigen, features.rows(X[held_out]), targets[held_out]
        if self.solver == "lanczos":
            limit = self.n_steps == math.inf
            alphas = LIMIT_ALPHAS.tolist() if limit else [0.0]  # alpha = 0 has the powers A y, A² y, ...
            steps = [math.inf] if limit else range(1, AUTO_FITS + 1)
            basis = self._lanczos(*self._problem_by_products(train), alphas, self.lam, steps)
            if held_out is None:
                return basis.eigen, None, None
            K_new, target = self._problem_by_products(train, held_out)
            return basis.eigen, basis.rows(K_new), target
        K, y = self._problem()
        if held_out is None:
            return eigen_chain(decompose(K), y), None, None
        spectrum = decompose(K[np.ix_(train, train)], overwrite=True)
        rows = product(K[np.ix_(held_out, train)], spectrum.V)
        return eigen_chain(spectrum, y[train]), rows, y[held_out]

    def predict(self, X: Rows) -> NDArray[Any]:
        """f^(n_steps)(X), (q,) or (q, m), or labels (q,)."""
        return self._decoded(self._predicted(X))

    def _predicted(self, X: Rows) -> FloatArray:
        check_is_fitted(self)
        X = self._check_X(X, reset=False)
        coefficients = self.dual_coef_ if self._sums is None else self.coef_.T
        return self._outputs(X, coefficients[None])[0]

    def _outputs(self, X: Rows, coefficients: FloatArray) -> FloatArray:
        """f(X) for coefficients (steps, n[, m]), or (steps, p[, m]) of features: (steps, q[, m])."""
        if self._sums is not None:
            return spectral.predict(X - self._sums.mean_x, coefficients) + self._sums.mean_y
        if self.solver == "lanczos":
            return BlockLanczos.predict(self._operator(self.X_fit_, X), coefficients)
        return spectral.predict(self._kernel_matrix(X, self.X_fit_), coefficients)

    def staged_predict(self, X: Rows, steps: Iterable[float] | None = None) -> Iterator[NDArray[Any]]:
        """Yield what ``predict`` returns, of f^(step) at each of ``steps`` (default: 1, ..., n_steps; inf: the limit).

        A fitted estimator holds its last step only; this solves for all steps at once, at the cost of a fit.
        """
        check_is_fitted(self)
        X = self._check_X(X, reset=False)
        if steps is None:
            if self.n_steps == math.inf:
                raise ValueError("n_steps is inf: name the steps to predict at")
            steps = range(1, int(self.n_steps) + 1)
        chain = self._chain(list(steps) if isinstance(steps, Iterable) else [steps])
        yield from map(self._decoded, self._outputs(X, chain.coefficients))

    def path(
        self, X: Rows, y: ArrayLike, alphas: ArrayLike, lams: ArrayLike, steps: ArrayLike, X_val: Rows, y_val: ArrayLike
    ) -> FloatArray:
        """Mean squared errors on (X_val, y_val) of chains fitted to (X, y), (alphas, lams, steps) float64.

        All from one decomposition, or one factorisation for each ridge; see ``distill.krr.risk_map``. X (n, p),
        y (n,) or (n, m), X_val (q, p), y_val (q,) or (q, m), dense; for kernel="precomputed" X is (n, n) and X_val
        (q, n). Labels count as one-hot targets. Uses the kernel's parameters and the solver of this estimator, and does
        not change it, fitted or not.
        """
        axes = (alphas, lams, steps)
        y, y_val = self._path_targets(y, y_val)
        self._validate_params()
        dtype = [np.float64, np.float32] if self.kernel == "precomputed" else np.float64
        points = check_array(X, dtype=dtype, input_name="X")
        new_points = as_floats("X_val", check_array(X_val, dtype=dtype, input_name="X_val"))
        targets = as_targets(y, len(points))
        targets_val = as_targets(y_val, len(new_points), "y_val")
        if self._suits_features(points):
            features = FeatureChain(FeatureSums(intercept=self.fit_intercept).add(points, targets))
            return features.risk_map(new_points, targets_val, *axes)
        if self.solver == "lanczos":
            basis = self._lanczos(self._operator(points), targets, *axes)
            return basis.risk_map(self._operator(points, new_points), targets_val, *axes)
        require_memory(len(points), 3, HINT)
        K = self._kernel_matrix(points)
        K_new = self._kernel_matrix(new_points, points)
        overwrite = self.kernel != "precomputed"
        return risk_map(K, targets, K_new, targets_val, *axes, solver=self.solver, overwrite=overwrite)

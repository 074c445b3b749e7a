"""The base class of the regressor and the classifier: from validated inputs and targets to a fitted chain."""

import math
import numbers
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import LinAlgWarning
from sklearn.base import BaseEstimator
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import pairwise_kernels
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import Interval, Options, StrOptions
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from distill.kernel import solvers, spectral, tiles
from distill.kernel.arguments import as_sample_weight, as_schedule, as_targets
from distill.kernel.arrays import LARGEST_FLOAT, MOST_ENTRIES, FloatArray
from distill.kernel.eigenchain import EigenChain, eigen_chain
from distill.kernel.estimator_lanczos import ALL, Points
from distill.kernel.features import FeatureChain, FeatureSums
from distill.kernel.lanczos import BlockLanczos
from distill.kernel.linalg import MatrixTooLargeError, decompose, require_memory
from distill.kernel.mixing import AUTO_FITS, auto_schedule
from distill.kernel.riskmap import risk_map
from distill.kernel.warn import warn

GCV_NEEDS = 100  # points; with fewer the estimate is too rough, and a wrong alpha does harm
LIMIT_ALPHAS = np.geomspace(1e-3, 1, 61)  # from which "auto" chooses if n_steps is inf

# scikit-learn's own ranges have no end, and an int may be larger than any float.
ANY_NUMBER = Interval(numbers.Real, -LARGEST_FLOAT, LARGEST_FLOAT, closed="both")
NOT_NEGATIVE = Interval(numbers.Real, 0, LARGEST_FLOAT, closed="both")

Inputs = Any  # (n, p): array-like, or a SciPy sparse matrix, whose types scikit-learn does not name


class SelfDistilledBase(BaseEstimator):
    """A chain of kernel ridge regressions on targets (n,) or (n, m), float64; parameters as in the subclasses."""

    _parameter_constraints = KernelRidge._parameter_constraints | {
        "alpha": [ANY_NUMBER, "array-like", StrOptions({"auto"})],
        "lam": [NOT_NEGATIVE],
        "gamma": [NOT_NEGATIVE, None],
        "degree": [NOT_NEGATIVE],
        "coef0": [ANY_NUMBER],
        "n_steps": [Interval(numbers.Integral, 1, None, closed="left"), Options(numbers.Real, {math.inf})],
        "validation_fraction": [Interval(numbers.Real, 0, 1, closed="neither"), None],
        "random_state": ["random_state"],
        "solver": [StrOptions({"auto", "eigh", "cholesky", "lanczos"})],
        "tol": [Interval(numbers.Real, 0, LARGEST_FLOAT, closed="right")],
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

    def _kernel(self, X: Inputs, Y: Inputs = None) -> FloatArray:
        if callable(self.kernel):
            params = self.kernel_params or {}
        else:
            params = {"gamma": self.gamma, "degree": self.degree, "coef0": self.coef0}
        return pairwise_kernels(X, Y, metric=self.kernel, filter_params=True, **params)

    def _kernel_matrix(self, X: Inputs, Y: Inputs = None) -> FloatArray:
        """k(x, y), (q, n), or k(x, x)."""
        if self.kernel == "precomputed" or X.shape[0] * (X if Y is None else Y).shape[0] <= MOST_ENTRIES:
            return self._kernel(X, Y)
        return tiles.matrix(self._kernel, X, X if Y is None else Y)

    def _points(self, X: Inputs, weight: FloatArray | None = None) -> Points:
        kernel = None if self.kernel == "precomputed" else self._kernel
        return Points(X, kernel, None if weight is None else np.sqrt(weight), self.tol, self.max_basis)

    def _check_X(self, X: Inputs, y: Any = "no_validation", **options: Any) -> Any:
        """validate_data with this estimator's rules for X; a kernel matrix must be dense."""
        self._validate_params()
        precomputed = self.kernel == "precomputed"
        # The precision of a kernel matrix says how far rounding may have spoilt its symmetry.
        dtype = [np.float64, np.float32] if precomputed else np.float64
        sparse = False if precomputed or self.fit_intercept else ("csr", "csc")
        return validate_data(self, X, y, accept_sparse=sparse, dtype=dtype, **options)

    def _fit_targets(self, X: Inputs, targets: FloatArray, sample_weight: ArrayLike | None) -> Self:
        """Fit to validated X and targets (n,) or (n, m): sets the attributes with a trailing underscore."""
        weight = as_sample_weight(sample_weight, len(targets))
        self._sums = None
        if self._suits_features(X):
            self._sums = self._sum_up(X, targets, weight)
        else:
            self.X_fit_ = X
            self._targets = targets
            self._sample_weight = weight
        return self._fit_chain(X, targets, weight)

    def _suits_features(self, X: Inputs) -> bool:
        """Whether X (n, p) is fitted by its p coefficients. Raises ValueError for an intercept that it cannot have."""
        linear = self.kernel == "linear" and self.solver == "auto" and isinstance(X, np.ndarray)
        if self.fit_intercept and not linear:
            raise ValueError("fit_intercept=True needs kernel='linear' and solver='auto'")
        return linear and (self.fit_intercept or X.shape[1] < len(X))

    def _sum_up(self, X: FloatArray, targets: FloatArray, weight: FloatArray | None) -> FeatureSums:
        sums = FeatureSums(intercept=self.fit_intercept)
        if weight is None:
            return sums.add(X, targets)
        keep = weight > 0
        return sums.add(X[keep], targets[keep], weight[keep])

    def _fit_partially(self, X: FloatArray, targets: FloatArray) -> Self:
        """Add a block of rows to those fitted before, and fit the chain to all."""
        if isinstance(self.alpha, str) and self.validation_fraction is not None:
            raise ValueError("partial_fit keeps no points to hold out; set validation_fraction=None")
        sums = getattr(self, "_sums", None)
        self._sums = (sums or FeatureSums(intercept=self.fit_intercept)).add(X, targets)
        return self._fit_chain(X, targets, None)

    def _fit_chain(self, X: Inputs, targets: FloatArray, weight: FloatArray | None) -> Self:
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

    def _problem(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """K (n', n'), targets and root weights s (n',) of the n' points with a sample weight above 0.

        With sample weights w each fit minimises sum_i w_i (f(x_i) - t_i)² + lam ‖f‖². With s_i = sqrt(w_i) that is
        the unweighted chain on s y and s K s, whose coefficients c~ give c = s c~.
        """
        _require_memory(len(self._targets))
        K = self._kernel_matrix(self.X_fit_)
        if self._sample_weight is None:
            return K, self._targets, np.ones(len(K))
        keep = np.flatnonzero(self._sample_weight)
        s = np.sqrt(self._sample_weight[keep])
        K = K[np.ix_(keep, keep)]
        K *= s[:, None]
        K *= s
        return K, _rows_times(self._targets[keep], s), s

    def _chain(self, steps: list[float]) -> solvers.Chain:
        """The chain at ``steps``, with a coefficient for each feature or each point, 0 for points without weight."""
        if self._sums is not None:
            gram = self._sums.gram
            return solvers.chain(gram, self._sums.cross, self.lam, self.alphas_, steps, trusted=True)
        if self.solver == "lanczos":
            return self._chain_by_lanczos(steps)
        K, targets, s = self._problem()
        # A precomputed kernel without sample weights is the caller's array.
        overwrite = self.kernel != "precomputed" or self._sample_weight is not None
        # These two kernels are positive semidefinite for any points. If they overflow, K has NaN and the test fails.
        trusted = self.kernel in ("rbf", "laplacian") and bool(K.min() >= 0)
        chain = solvers.chain(
            K, targets, self.lam, self.alphas_, steps, solver=self.solver, overwrite=overwrite, trusted=trusted
        )
        return solvers.Chain(self._unweighted(chain.coefficients, s), chain.condition, chain.solver)

    def _unweighted(self, coefficients: FloatArray, s: FloatArray) -> FloatArray:
        """The coefficients (steps, n[, m]) of all points from those of the weighted points, (steps, n'[, m])."""
        if self._sample_weight is None:
            return coefficients
        out = np.zeros((len(coefficients), *self._targets.shape))
        out[:, self._sample_weight > 0] = [_rows_times(c, s) for c in coefficients]
        return out

    def _weighted(self) -> tuple[Points, Any, FloatArray]:
        """The fitted points for block Lanczos, the positions of those with a weight above 0, and their targets s y."""
        points = self._points(self.X_fit_, self._sample_weight)
        if points.root is None:
            return points, ALL, self._targets
        keep = np.flatnonzero(points.root)
        return points, keep, _rows_times(self._targets[keep], points.root[keep])

    def _chain_by_lanczos(self, steps: list[float]) -> solvers.Chain:
        points, keep, targets = self._weighted()
        basis = points.basis(points.matrix(keep), targets, [self.alphas_], self.lam, steps)
        coefficients = basis.coefficients(self.lam, self.alphas_, steps)
        if points.root is not None:
            coefficients = self._unweighted(coefficients, points.root[keep])
        d = basis.eigen.d
        # K may have eigenvalues near 0 that the basis does not show.
        least = self.lam or (d[-1] if basis.exact else 0)
        return solvers.Chain(coefficients, (d[0] + self.lam) / least if least > 0 else math.inf, "lanczos")

    def _choose_alphas(self, X: Inputs, targets: FloatArray, weight: FloatArray | None) -> FloatArray:
        """The schedule of alpha="auto"."""
        if self._sums is not None:
            return self._choose_by_features(self._sums, X, targets, weight)
        if self.solver == "lanczos":
            return self._choose_by_lanczos()
        K, targets, _ = self._problem()
        if self.validation_fraction is None:
            self._warn_of_few_points(len(K))
            return self._choose(eigen_chain(decompose(K), targets))
        train, held_out = self._held_out(len(K), self.validation_fraction)
        spectrum = decompose(K[np.ix_(train, train)], overwrite=True)
        rows = spectral.product(K[np.ix_(held_out, train)], spectrum.V)
        return self._choose(eigen_chain(spectrum, targets[train]), rows, targets[held_out])

    @staticmethod
    def _warn_of_few_points(n: int) -> None:
        if n < GCV_NEEDS:
            warn(
                f"alpha='auto' by generalised cross-validation needs hundreds of points, but there are fewer than "
                f"{GCV_NEEDS}; set validation_fraction",
                UserWarning,
            )

    def _choose_by_features(
        self, sums: FeatureSums, X: FloatArray, targets: FloatArray, weight: FloatArray | None
    ) -> FloatArray:
        if self.validation_fraction is None:
            self._warn_of_few_points(sums.rows)
            return self._choose(FeatureChain(sums).eigen)
        train, held_out = self._held_out(len(X), self.validation_fraction)
        chain = FeatureChain(self._sum_up(X[train], targets[train], None if weight is None else weight[train]))
        rows = spectral.product(X[held_out] - chain.sums.mean_x, chain.spectrum.V)
        return self._choose(chain.eigen, rows, targets[held_out])

    def _choose_by_lanczos(self) -> FloatArray:
        points, keep, targets = self._weighted()
        steps: list[float] = list(range(1, AUTO_FITS + 1))
        alphas = [0.0]  # the powers A y, A² y, ...
        if self.n_steps == math.inf:
            steps = [math.inf]
            alphas = LIMIT_ALPHAS.tolist()
        if self.validation_fraction is None:
            self._warn_of_few_points(len(targets))
            return self._choose(points.basis(points.matrix(keep), targets, alphas, self.lam, steps).eigen)
        train, held_out = self._held_out(len(targets), self.validation_fraction)
        rows, new = (part if isinstance(keep, slice) else keep[part] for part in (train, held_out))
        basis = points.basis(points.matrix(rows), targets[train], alphas, self.lam, steps)
        return self._choose(basis.eigen, basis.rows(points.matrix(new, rows)), targets[held_out])

    def _choose(
        self, chain: EigenChain, rows: FloatArray | None = None, target: FloatArray | None = None
    ) -> FloatArray:
        """The schedule by generalised cross-validation, or on points with ``rows`` and ``target``."""
        if self.n_steps == math.inf:
            if rows is None or target is None:
                scores = np.array([chain.estimates(self.lam, alpha, math.inf).gcv[0] for alpha in LIMIT_ALPHAS])
            else:
                scores = chain.risk_map(rows, target, LIMIT_ALPHAS, self.lam, math.inf, "squared")
            return LIMIT_ALPHAS[[np.argmin(scores)]]
        if rows is None or target is None:
            return self._greedy_schedule(chain.gcv_residuals(self.lam, AUTO_FITS))
        powers = chain.predict(rows, self.lam, 0.0, range(1, AUTO_FITS + 1))  # of A y, A² y, ...
        return self._greedy_schedule(target - powers)

    def _held_out(self, n: int, fraction: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The positions of the points to train on and to hold out."""
        n_held_out = math.ceil(fraction * n)
        if n_held_out >= n:
            raise ValueError(f"validation_fraction={fraction} holds out all {n} points")
        order = check_random_state(self.random_state).permutation(n)
        return order[n_held_out:], order[:n_held_out]

    def _greedy_schedule(self, residuals: FloatArray) -> FloatArray:
        if self.n_steps == 1:
            return np.ones(1)  # fit 1 has no teacher: alpha has no effect
        return auto_schedule(residuals)[: int(self.n_steps) - 1]

    def _predict_targets(self, X: Inputs) -> FloatArray:
        check_is_fitted(self)
        X = self._check_X(X, reset=False)
        coefficients = self.dual_coef_ if self._sums is None else self.coef_.T
        return self._outputs(X, coefficients[None])[0]

    def _outputs(self, X: Inputs, coefficients: FloatArray) -> FloatArray:
        """f(X) for coefficients (steps, n[, m]), or (steps, p[, m]) of features: (steps, q[, m])."""
        if self._sums is None:
            if self.solver == "lanczos" and self.kernel != "precomputed":
                return BlockLanczos.predict(self._points(X).tiles(self.X_fit_, X), coefficients)
            return spectral.predict(self._kernel_matrix(X, self.X_fit_), coefficients)
        return spectral.predict(X - self._sums.mean_x, coefficients) + self._sums.mean_y

    def _staged_targets(self, X: Inputs, steps: Iterable[float] | None) -> Iterator[FloatArray]:
        check_is_fitted(self)
        X = self._check_X(X, reset=False)
        if steps is None:
            if self.n_steps == math.inf:
                raise ValueError("n_steps is inf: name the steps to predict at")
            steps = range(1, int(self.n_steps) + 1)
        chain = self._chain(list(steps) if isinstance(steps, Iterable) else [steps])
        return iter(self._outputs(X, chain.coefficients))

    def _path(
        self, X: ArrayLike, targets: ArrayLike, X_val: ArrayLike, targets_val: ArrayLike, *axes: ArrayLike
    ) -> FloatArray:
        """The risk map with ``axes`` alphas, lams and steps."""
        self._validate_params()
        dtype = [np.float64, np.float32] if self.kernel == "precomputed" else np.float64
        points = check_array(X, dtype=dtype, input_name="X")
        new_points = check_array(X_val, dtype=dtype, input_name="X_val")
        targets = as_targets(targets, len(points))
        targets_val = as_targets(targets_val, len(new_points), "y_val")
        if self._suits_features(points):
            return FeatureChain(self._sum_up(points, targets, None)).risk_map(new_points, targets_val, *axes)
        if self.solver == "lanczos":
            fitted = self._points(points)
            K_new = new_points if fitted.kernel is None else fitted.tiles(points, new_points)
            return fitted.basis(fitted.matrix(), targets, *axes).risk_map(K_new, targets_val, *axes)
        _require_memory(len(points))
        K = self._kernel_matrix(points)
        K_new = self._kernel_matrix(new_points, points)
        overwrite = self.kernel != "precomputed"
        return risk_map(K, targets, K_new, targets_val, *axes, solver=self.solver, overwrite=overwrite)


def _require_memory(n: int) -> None:
    """Raise MatrixTooLargeError, which names a solver that needs less, if three n × n arrays do not fit into memory."""
    try:
        require_memory(n, arrays=3)
    except MatrixTooLargeError as error:
        raise MatrixTooLargeError(f"{error}; solver='lanczos' needs none of them") from None


def _rows_times(a: FloatArray, s: FloatArray) -> FloatArray:
    """Row i of ``a`` (n,) or (n, m) times s[i]."""
    return (a.T * s).T

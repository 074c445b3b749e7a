"""The base class of the regressor and the classifier: from validated inputs and targets to a fitted chain."""

import math
import numbers
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import LinAlgWarning
from sklearn.base import BaseEstimator
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import pairwise_kernels
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import Interval, Options, StrOptions
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from distill.kernel import solvers, spectral
from distill.kernel.arguments import as_schedule, as_targets
from distill.kernel.arrays import LARGEST_FLOAT, FloatArray, as_floats
from distill.kernel.linalg import decompose, require_memory
from distill.kernel.mixing import AUTO_FITS, auto_schedule
from distill.kernel.riskmap import risk_map

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
        "solver": [StrOptions({"auto", "eigh", "cholesky"})],
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

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = self.kernel != "precomputed"
        tags.input_tags.pairwise = self.kernel == "precomputed"
        return tags

    def _kernel_matrix(self, X: Inputs, Y: Inputs = None) -> FloatArray:
        if callable(self.kernel):
            params = self.kernel_params or {}
        else:
            params = {"gamma": self.gamma, "degree": self.degree, "coef0": self.coef0}
        return pairwise_kernels(X, Y, metric=self.kernel, filter_params=True, **params)

    def _check_X(self, X: Inputs, y: Any = "no_validation", **options: Any) -> Any:
        """validate_data with this estimator's rules for X; a kernel matrix must be dense."""
        self._validate_params()
        precomputed = self.kernel == "precomputed"
        # The precision of a kernel matrix says how far rounding may have spoilt its symmetry.
        dtype = [np.float64, np.float32] if precomputed else np.float64
        sparse = False if precomputed else ("csr", "csc")
        return validate_data(self, X, y, accept_sparse=sparse, dtype=dtype, **options)

    def _fit_targets(self, X: Inputs, targets: FloatArray, sample_weight: ArrayLike | None) -> Self:
        """Fit to validated X and targets (n,) or (n, m): sets the attributes with a trailing underscore."""
        self.X_fit_ = X
        self._targets = targets
        self._sample_weight = _check_sample_weight(sample_weight, len(targets))
        self.alphas_ = self._choose_alphas() if isinstance(self.alpha, str) else as_schedule(self.alpha)
        chain = self._chain([self.n_steps])
        if chain.condition > solvers.UNTRUSTED:
            warnings.warn(
                f"K + lam I has condition number {chain.condition:.2g}: fewer than six digits of the fit are "
                "reliable; raise lam",
                LinAlgWarning,
                stacklevel=3,
            )
        self.dual_coef_ = chain.coefficients[0]
        self.condition_ = chain.condition
        self.solver_ = chain.solver
        return self

    def _problem(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """K (n', n'), targets and root weights s (n',) of the n' points with a sample weight above 0.

        With sample weights w each fit minimises sum_i w_i (f(x_i) - t_i)² + lam ‖f‖². With s_i = sqrt(w_i) that is
        the unweighted chain on s y and s K s, whose coefficients c~ give c = s c~.
        """
        require_memory(len(self._targets), arrays=3)
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
        """The chain at ``steps``, with a coefficient for each of the n points, 0 for those without weight."""
        K, targets, s = self._problem()
        # A precomputed kernel without sample weights is the caller's array.
        overwrite = self.kernel != "precomputed" or self._sample_weight is not None
        # These two kernels are positive semidefinite for any points. If they overflow, K has NaN and the test fails.
        trusted = self.kernel in ("rbf", "laplacian") and bool(K.min() >= 0)
        chain = solvers.chain(
            K, targets, self.lam, self.alphas_, steps, solver=self.solver, overwrite=overwrite, trusted=trusted
        )
        if self._sample_weight is None:
            return chain
        coefficients = np.zeros((len(steps), *self._targets.shape))
        coefficients[:, self._sample_weight > 0] = [_rows_times(c, s) for c in chain.coefficients]
        return solvers.Chain(coefficients, chain.condition, chain.solver)

    def _choose_alphas(self) -> FloatArray:
        """The schedule of alpha="auto"."""
        K, targets, _ = self._problem()
        if self.validation_fraction is None:
            return self._choose_by_cross_validation(K, targets)
        return self._choose_on_held_out(K, targets, self.validation_fraction)

    def _choose_by_cross_validation(self, K: FloatArray, targets: FloatArray) -> FloatArray:
        if len(K) < GCV_NEEDS:
            warnings.warn(
                f"alpha='auto' by generalised cross-validation needs hundreds of points, but there are {len(K)}; "
                "set validation_fraction",
                UserWarning,
                stacklevel=5,
            )
        spectrum = decompose(K)
        if self.n_steps == math.inf:
            B = np.array([spectral.limit_diagonal(spectrum.d, self.lam, alpha) for alpha in LIMIT_ALPHAS])
            scores = spectral.generalised_cross_validation(spectrum, targets, B)
            return LIMIT_ALPHAS[[np.argmin(scores)]]
        return self._greedy_schedule(spectral.gcv_residuals(spectrum, targets, self.lam, AUTO_FITS))

    def _choose_on_held_out(self, K: FloatArray, targets: FloatArray, fraction: float) -> FloatArray:
        n = len(K)
        n_held_out = math.ceil(fraction * n)
        if n_held_out >= n:
            raise ValueError(f"validation_fraction={fraction} holds out all {n} points")
        order = check_random_state(self.random_state).permutation(n)
        train = order[n_held_out:]
        held_out = order[:n_held_out]
        spectrum = decompose(K[np.ix_(train, train)], overwrite=True)
        K_new = K[np.ix_(held_out, train)]
        target = targets[held_out]
        if self.n_steps == math.inf:
            scores = risk_map(spectrum, targets[train], K_new, target, LIMIT_ALPHAS, self.lam, math.inf)
            return LIMIT_ALPHAS[[np.argmin(scores)]]
        powers = spectral.power_coefficients(spectrum, targets[train], self.lam, AUTO_FITS)
        return self._greedy_schedule(target - spectral.predict(K_new, powers))

    def _greedy_schedule(self, residuals: FloatArray) -> FloatArray:
        if self.n_steps == 1:
            return np.ones(1)  # fit 1 has no teacher: alpha has no effect
        return auto_schedule(residuals)[: int(self.n_steps) - 1]

    def _predict_targets(self, X: Inputs) -> FloatArray:
        check_is_fitted(self)
        X = self._check_X(X, reset=False)
        return spectral.predict(self._kernel_matrix(X, self.X_fit_), self.dual_coef_[None])[0]

    def _staged_targets(self, X: Inputs, steps: Iterable[float] | None) -> Iterator[FloatArray]:
        check_is_fitted(self)
        X = self._check_X(X, reset=False)
        if steps is None:
            if self.n_steps == math.inf:
                raise ValueError("n_steps is inf: name the steps to predict at")
            steps = range(1, int(self.n_steps) + 1)
        chain = self._chain(list(steps) if isinstance(steps, Iterable) else [steps])
        return iter(spectral.predict(self._kernel_matrix(X, self.X_fit_), chain.coefficients))

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
        require_memory(len(points), arrays=3)
        K = self._kernel_matrix(points)
        K_new = self._kernel_matrix(new_points, points)
        overwrite = self.kernel != "precomputed"
        return risk_map(K, targets, K_new, targets_val, *axes, solver=self.solver, overwrite=overwrite)


def _rows_times(a: FloatArray, s: FloatArray) -> FloatArray:
    """Row i of ``a`` (n,) or (n, m) times s[i]."""
    return (a.T * s).T


def _check_sample_weight(sample_weight: ArrayLike | None, n: int) -> FloatArray | None:
    """Sample weights (n,) float64, >= 0 and not all 0, or None. Raises ValueError."""
    if sample_weight is None:
        return None
    weights = as_floats("sample_weight", sample_weight, 0, 1)
    if weights.shape not in ((), (n,)):
        raise ValueError(f"sample_weight must be a number or of shape ({n},), not {weights.shape}")
    if (weights < 0).any() or not weights.any():
        raise ValueError("sample_weight must not be negative, and not all zero")
    return np.broadcast_to(weights, (n,))

"""Kernel ridge self-distillation as scikit-learn estimators.

A fit is the chain of `distill.krr`: fit 1 is scikit-learn's KernelRidge, and each later fit has the targets
alpha * y + (1 - alpha) * (predictions of the fit before). Kernels are those of `sklearn.metrics.pairwise`.
"""

import math
import numbers
import warnings

import numpy as np
from scipy.linalg import LinAlgWarning
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.metrics.pairwise import pairwise_kernels
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from distill.kernel import solvers, spectral
from distill.kernel.linalg import decompose, require_memory
from distill.kernel.mixing import AUTO_FITS, auto_schedule
from distill.kernel.riskmap import risk_map

GCV_NEEDS = 100  # points; with fewer its trace is too rough an estimate, and a wrong alpha does harm
LIMIT_ALPHAS = np.geomspace(1e-3, 1, 61)  # among which "auto" chooses where n_steps is inf


class _SelfDistilled(BaseEstimator):
    """What the regressor and the classifier share; targets are float64, (n,) or (n, m)."""

    def __init__(
        self,
        alpha=0.5,
        lam=1.0,
        n_steps=2,
        *,
        kernel="rbf",
        gamma=None,
        degree=3,
        coef0=1,
        kernel_params=None,
        validation_fraction=None,
        random_state=None,
        solver="auto",
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

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = self.kernel != "precomputed"
        tags.input_tags.pairwise = self.kernel == "precomputed"
        return tags

    def _kernel_matrix(self, X, Y=None):
        if callable(self.kernel):
            params = self.kernel_params or {}
        else:
            params = {"gamma": self.gamma, "degree": self.degree, "coef0": self.coef0}
        return pairwise_kernels(X, Y, metric=self.kernel, filter_params=True, **params)

    def _check_X(self, X, y="no_validation", **options):
        """validate_data with this estimator's rules for X; a kernel matrix must be dense."""
        sparse = False if self.kernel == "precomputed" else ("csr", "csc")
        return validate_data(self, X, y, accept_sparse=sparse, dtype=np.float64, **options)

    def _check_parameters(self):
        whole = isinstance(self.n_steps, numbers.Integral) or self.n_steps == math.inf
        if not whole or self.n_steps < 1:
            raise ValueError(f"n_steps must be a whole number from 1 or inf, not {self.n_steps!r}")
        if isinstance(self.alpha, str) and self.alpha != "auto":
            raise ValueError(f"alpha must be a number, a sequence of numbers or 'auto', not {self.alpha!r}")
        fraction = self.validation_fraction
        if fraction is not None and not 0 < fraction < 1:
            raise ValueError(f"validation_fraction must lie between 0 and 1, or be None, not {fraction!r}")

    def _fit_targets(self, X, targets, sample_weight):
        """Fit to validated X and float64 targets (n,) or (n, m): sets the attributes with a trailing _."""
        self._check_parameters()
        self.X_fit_, self._targets = X, targets
        self._weights = _check_weights(sample_weight, len(targets))
        self.alphas_ = self._choose_alphas() if isinstance(self.alpha, str) else np.atleast_1d(self.alpha)
        chain = self._chain([self.n_steps])
        if chain.condition > solvers.UNTRUSTED:
            warnings.warn(
                f"K + lam I has condition number {chain.condition:.2g}: fewer than six digits of the fit can "
                "be trusted; raise lam",
                LinAlgWarning,
                stacklevel=3,
            )
        self.dual_coef_ = chain.coefficients[0]
        self.condition_, self.solver_ = chain.condition, chain.solver
        return self

    def _problem(self):
        """K (n', n'), targets and root weights s (n',) of the n' points with a weight above 0.

        With weights w each fit minimises sum_i w_i (f(x_i) - t_i)² + lam ‖f‖². In s_i = sqrt(w_i) that is the
        chain without weights of s y and s K s, whose coefficients c~ give c = s c~.
        """
        require_memory(len(self._targets), arrays=3)
        K = self._kernel_matrix(self.X_fit_)
        if self._weights is None:
            return K, self._targets, np.ones(len(K))
        keep = np.flatnonzero(self._weights)
        s = np.sqrt(self._weights[keep])
        K = K[np.ix_(keep, keep)]
        K *= s[:, None]
        K *= s
        return K, _rows_times(self._targets[keep], s), s

    def _chain(self, steps):
        """Chain with coefficients (len(steps), n[, m]) in terms of the original points."""
        K, targets, s = self._problem()
        # A precomputed kernel without weights is the caller's own array.
        overwrite = self.kernel != "precomputed" or self._weights is not None
        # These two are positive semidefinite whatever the points; a K with NaN in it, from an overflow, has no minimum.
        trusted = self.kernel in ("rbf", "laplacian") and (self.gamma is None or self.gamma >= 0) and K.min() >= 0
        options = {"solver": self.solver, "overwrite": overwrite, "trusted": bool(trusted)}
        chain = solvers.chain(K, targets, self.lam, self.alphas_, steps, **options)
        inner = np.array([_rows_times(c, s) for c in chain.coefficients])
        if self._weights is None:
            return chain
        coefficients = np.zeros((len(steps), *self._targets.shape))
        coefficients[:, self._weights > 0] = inner
        return solvers.Chain(coefficients, chain.condition, chain.solver)

    def _choose_alphas(self):
        K, targets, _ = self._problem()
        n = len(K)
        if self.validation_fraction is None:
            if n < GCV_NEEDS:
                warnings.warn(
                    f"alpha='auto' by generalised cross-validation needs some hundreds of points and has {n};"
                    " set validation_fraction",
                    UserWarning,
                    stacklevel=4,
                )
            spectrum = decompose(K)
            if self.n_steps == math.inf:
                B = np.array([spectral.limit_diagonal(spectrum.d, self.lam, alpha) for alpha in LIMIT_ALPHAS])
                scores = spectral.generalised_cross_validation(spectrum, targets, B)
                return LIMIT_ALPHAS[[np.argmin(scores)]]
            residuals = spectral.gcv_residuals(spectrum, targets, self.lam, AUTO_FITS)
        else:
            n_held_out = math.ceil(self.validation_fraction * n)
            if n_held_out >= n:
                raise ValueError(f"validation_fraction={self.validation_fraction} leaves no points to fit, of {n}")
            order = check_random_state(self.random_state).permutation(n)
            held_out, train = order[:n_held_out], order[n_held_out:]
            spectrum = decompose(K[np.ix_(train, train)], overwrite=True)
            K_new, target = K[np.ix_(held_out, train)], targets[held_out]
            if self.n_steps == math.inf:
                scores = risk_map(spectrum, targets[train], K_new, target, LIMIT_ALPHAS, self.lam, math.inf)
                return LIMIT_ALPHAS[[np.argmin(scores)]]
            powers = spectral.power_coefficients(spectrum, targets[train], self.lam, AUTO_FITS)
            residuals = target - spectral.predict(K_new, powers)
        if self.n_steps == 1:
            return np.ones(1)  # fit 1 has no teacher, and any alpha serves
        return auto_schedule(residuals)[: self.n_steps - 1]

    def _predict_targets(self, X):
        check_is_fitted(self)
        X = self._check_X(X, reset=False)
        return spectral.predict(self._kernel_matrix(X, self.X_fit_), self.dual_coef_[None])[0]

    def _staged_targets(self, X, steps):
        check_is_fitted(self)
        X = self._check_X(X, reset=False)
        if steps is None:
            if self.n_steps == math.inf:
                raise ValueError("n_steps is inf: say which steps to predict at")
            steps = range(1, self.n_steps + 1)
        steps = list(steps)
        return spectral.predict(self._kernel_matrix(X, self.X_fit_), self._chain(steps).coefficients)

    def _path(self, X, targets, alphas, lams, steps, X_val, targets_val):
        self._check_parameters()
        require_memory(len(targets), arrays=3)
        K, K_new = self._kernel_matrix(X), self._kernel_matrix(X_val, X)
        overwrite = self.kernel != "precomputed"
        return risk_map(K, targets, K_new, targets_val, alphas, lams, steps, solver=self.solver, overwrite=overwrite)


def _rows_times(a, s):
    """Row i of `a` (n,) or (n, m) times s[i]."""
    return (a.T * s).T


def _check_weights(sample_weight, n):
    """Weights (n,) float64, >= 0 and not all 0, or None."""
    if sample_weight is None:
        return None
    weights = np.asarray(sample_weight, dtype=np.float64)
    if weights.ndim > 1 or weights.shape not in ((), (n,)):
        raise ValueError(f"sample_weight must be a number or of shape ({n},), not {weights.shape}")
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ValueError("sample_weight must be finite, not negative, and not all zero")
    return np.broadcast_to(weights, (n,))


PARAMETERS = """
    Parameters
    ----------
    alpha : float, sequence of floats or "auto", default=0.5
        Weight of the ground truth in the targets of fits 2, 3, ...: 1 is no distillation, 0 the teacher's
        output alone; any real number. A sequence is a schedule, one weight a fit, whose last repeats. "auto"
        chooses the weights of fits 2 to 6 one after the other (later fits repeat the last, clipped to [0, 1];
        for n_steps = inf it is one weight of a grid on [0.001, 1]): by generalised cross-validation, which
        needs hundreds of points (Dang, Patil & Rinaldo, arXiv 2602.17565), or with `validation_fraction` on
        held-out points (Borup & Andersen, arXiv 2102.13088), and then fits on all points.
    lam : float, default=1.0
        Ridge, >= 0; what KernelRidge calls alpha.
    n_steps : int or inf, default=2
        Number of fits, counting the first; `math.inf` for the limit of the chain.
    kernel, gamma, degree, coef0, kernel_params
        As in scikit-learn's KernelRidge, "precomputed" and callables included. The kernel must be positive
        semidefinite.
    validation_fraction : float or None, default=None
        Share of the points on which alpha="auto" is judged; None is generalised cross-validation.
    random_state : int, RandomState or None, default=None
        Draws the held-out points.
    solver : "auto", "eigh" or "cholesky", default="auto"
        An eigendecomposition, a Cholesky factorisation, or whichever costs less for the chain asked for ("auto"
        may also take a tridiagonal form for `path`).

    Attributes
    ----------
    dual_coef_ : ndarray (n,) or (n, m), float64
        Predictions are kernel(X, X_fit_) @ dual_coef_.
    X_fit_ : ndarray or sparse matrix (n, p)
        The training inputs; for kernel="precomputed" the kernel matrix (n, n).
    alphas_ : ndarray
        The schedule in use: weights of fits 2, 3, ..., the last of which repeats.
    condition_ : float
        Condition number of K + lam I; with solver "cholesky" an upper bound of it, or past 1e9 an estimate. Past
        1e9 a fit warns (scipy's LinAlgWarning): fewer than some six digits can be trusted.
    solver_ : str
        "eigh" or "cholesky", the solver that was taken.

    Errors: `distill.linalg.KernelMatrixError` and its subclasses for a kernel matrix that is none,
    `SingularKernelError` for lam = 0 with a singular one, `MatrixTooLargeError`, and
    `distill.krr.DivergentChainError` where the chain has no limit or overflows.
"""


class SelfDistilledKernelRidge(MultiOutputMixin, RegressorMixin, _SelfDistilled):
    __doc__ = f"""Kernel ridge regression distilled into itself n_steps - 1 times, in closed form.

    With n_steps=1 it is scikit-learn's KernelRidge(alpha=lam).
    {PARAMETERS}"""

    def fit(self, X, y, sample_weight=None):
        """Fit the chain to X (n, p), or (n, n) if precomputed, and y (n,) or (n, m).

        `sample_weight`: a number or (n,), >= 0. At every fit the squared error of point i, to the ground
        truth and to the teacher alike, counts w_i times: a whole number w_i is w_i copies of the point
        (except that the number of points, of which "auto" makes use, counts it once), 0 leaves it out.
        """
        X, y = self._check_X(X, y, multi_output=True, y_numeric=True)
        return self._fit_targets(X, np.asarray(y, dtype=np.float64), sample_weight)

    def predict(self, X):
        """f^(n_steps)(X), (q,) or (q, m)."""
        return self._predict_targets(X)

    def staged_predict(self, X, steps=None):
        """Yield f^(step)(X), (q,) or (q, m), for `steps` (default: 1, ..., n_steps; inf is the limit).

        The fit keeps its last step alone; this solves again for all steps, once, at the cost of a fit.
        """
        yield from self._staged_targets(X, steps)

    def path(self, X, y, alphas, lams, steps, X_val, y_val):
        """Mean squared errors on (X_val, y_val) of chains fitted to (X, y), (alphas, lams, steps) float64.

        All from one decomposition, or one factorisation a ridge; see `distill.krr.risk_map`. X (n, p), y (n,)
        or (n, m), X_val (q, p), y_val (q,) or (q, m), dense; for kernel="precomputed" X is (n, n) and X_val
        (q, n). Uses the kernel's parameters and the solver of this estimator and leaves it as it is, fitted
        or not.
        """
        X, y = (np.asarray(a, dtype=np.float64) for a in (X, y))
        X_val, y_val = (np.asarray(a, dtype=np.float64) for a in (X_val, y_val))
        return self._path(X, y, alphas, lams, steps, X_val, y_val)


class SelfDistilledKernelRidgeClassifier(ClassifierMixin, _SelfDistilled):
    __doc__ = f"""Classification by self-distilled kernel ridge regression on one-hot targets.

    The class with the largest output is predicted. Students are fitted to the teacher's outputs, not to its
    predicted classes: alpha * onehot + (1 - alpha) * output.
    {PARAMETERS}
    classes_ : ndarray (n_classes,)
        The labels, in the order of dual_coef_'s columns.
"""

    def fit(self, X, y, sample_weight=None):
        """Fit the chain to X (n, p), or (n, n) if precomputed, and labels y (n,).

        `sample_weight` as in `SelfDistilledKernelRidge.fit`.
        """
        X, y = self._check_X(X, y)
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        return self._fit_targets(X, self._one_hot(y, self.classes_), sample_weight)

    @staticmethod
    def _one_hot(y, classes):
        return (np.asarray(y)[:, None] == classes).astype(np.float64)

    def decision_function(self, X):
        """Outputs (q, n_classes); for two classes the second's minus the first's, (q,)."""
        outputs = self._predict_targets(X)
        return outputs[:, 1] - outputs[:, 0] if len(self.classes_) == 2 else outputs

    def predict(self, X):
        """Labels (q,)."""
        outputs = self._predict_targets(X)
        return self.classes_[np.argmax(outputs, axis=1)]

    def staged_predict(self, X, steps=None):
        """Yield the labels (q,) at each of `steps`; as `SelfDistilledKernelRidge.staged_predict`."""
        for outputs in self._staged_targets(X, steps):
            yield self.classes_[np.argmax(outputs, axis=1)]

    def path(self, X, y, alphas, lams, steps, X_val, y_val):
        """As `SelfDistilledKernelRidge.path`: mean squared errors of outputs against one-hot labels."""
        X, X_val = (np.asarray(a, dtype=np.float64) for a in (X, X_val))
        classes = np.unique(y)
        one_hot, one_hot_val = self._one_hot(y, classes), self._one_hot(y_val, classes)
        return self._path(X, one_hot, alphas, lams, steps, X_val, one_hot_val)

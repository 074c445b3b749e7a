"""Kernel ridge self-distillation as scikit-learn estimators.

``fit`` computes the chain of ``distill.krr``, with the kernels of ``sklearn.metrics.pairwise``.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils import column_or_1d
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets

from distill.kernel.arrays import FloatArray
from distill.kernel.estimator_base import Rows, SelfDistilledBase, by_features


class SelfDistilledKernelRidge(MultiOutputMixin, RegressorMixin, SelfDistilledBase):
    """Kernel ridge regression distilled into itself n_steps - 1 times, in closed form.

    With n_steps=1 it is scikit-learn's KernelRidge(alpha=lam).

    Parameters
    ----------
    alpha : float, sequence of floats or "auto", default=0.5
        Weight of the ground truth in the targets of fits 2, 3, ...: any real number; 1 is no distillation, 0 the
        teacher's output alone. A sequence is a schedule, one alpha a fit, whose last entry repeats. "auto" chooses
        the alphas of fits 2 to 6 one after the other (later fits repeat the last, clipped to [0, 1]; for
        n_steps = inf it is one alpha from a grid on [0.001, 1]): by generalised cross-validation, which needs
        hundreds of points (Dang, Patil & Rinaldo, arXiv 2602.17565), or with ``validation_fraction`` on held-out
        points (Borup & Andersen, arXiv 2102.13088). The chain is then fitted to all points.
    lam : float, default=1.0
        Ridge, >= 0; the parameter alpha of scikit-learn's KernelRidge.
    n_steps : int or inf, default=2
        Number of fits, counting the first, >= 1; ``math.inf`` for the limit of the chain.
    kernel, gamma, degree, coef0, kernel_params
        As in scikit-learn's KernelRidge, "precomputed" and callables included. The kernel must be positive
        semidefinite.
    validation_fraction : float or None, default=None
        Fraction of the points, in (0, 1), on which alpha="auto" is chosen; None for generalised cross-validation.
    random_state : int, RandomState or None, default=None
        Draws the held-out points.
    solver : "auto", "eigh", "cholesky" or "lanczos", default="auto"
        An eigendecomposition, a Cholesky factorisation, or the cheaper of the two ("auto"; ``path`` then also
        considers a tridiagonal form). "lanczos" is for kernel matrices that are too large to factorise: it only
        multiplies by them, in tiles that are kept as far as memory allows (``distill.krr.lanczos``). With
        kernel="linear" and dense X (n, p), "auto" works with the p × p Gram matrix of the features if p < n: it has
        ``coef_`` and ``intercept_``, but no ``dual_coef_`` and ``X_fit_``.
    tol : float, default=1e-6
        With "lanczos": a bound on the relative error of the fitted values (2-norm over all points) of every step.
    max_basis : int, default=2000
        With "lanczos": the largest number k of basis vectors; n × k float64 numbers must fit into memory.
    fit_intercept : bool, default=False
        Whether to add an intercept that is not penalised; needs kernel="linear", solver="auto" and dense X.

    Attributes
    ----------
    dual_coef_ : ndarray (n,) or (n, m), float64
        Predictions are kernel(X, X_fit_) @ dual_coef_.
    coef_, intercept_ : ndarray (p,) and () or (m, p) and (m,), float64
        Predictions are X @ coef_.T + intercept_.
    X_fit_ : ndarray or sparse matrix (n, p)
        The training inputs; for kernel="precomputed" the kernel matrix (n, n).
    alphas_ : ndarray
        The schedule in use: the alphas of fits 2, 3, ..., the last of which repeats.
    condition_ : float
        Condition number of K + lam I; with "cholesky" an upper bound of it or, above 1e9, an estimate; with
        "lanczos" an upper bound. Above 1e9 a fit warns (scipy's LinAlgWarning): fewer than about six digits are
        reliable.
    solver_ : str
        The solver that was used: "eigh", "cholesky" or "lanczos".

    Raises
    ------
    KernelMatrixError
        By ``fit``, for a matrix that is not a kernel matrix. This and the following errors are in ``distill.krr``.
    SingularKernelError
        By ``fit``, for a singular kernel matrix and lam = 0.
    DivergentChainError
        By ``fit``, for a chain that has no limit or overflows.
    MatrixTooLargeError
        By ``fit`` and ``path``, before the kernel matrix is allocated.
    NotReachedError
        By ``fit`` and ``path``, with "lanczos", if ``max_basis`` vectors do not reach ``tol``.

    Examples
    --------
    >>> import numpy as np
    >>> from distill.estimator import SelfDistilledKernelRidge
    >>> X = np.linspace(0, 1, 11)[:, None]
    >>> y = np.sin(2 * np.pi * X[:, 0])
    >>> model = SelfDistilledKernelRidge(alpha=0.35, lam=0.2, n_steps=6, gamma=80).fit(X, y)
    >>> model.predict([[0.25]]).round(2)
    array([0.76])
    >>> [float(fit[0].round(2)) for fit in model.staged_predict([[0.25]], steps=[1, 2, 6])]
    [0.9, 0.84, 0.76]
    """


class SelfDistilledKernelRidgeClassifier(ClassifierMixin, SelfDistilledBase):
    """Classification by self-distilled kernel ridge regression on one-hot targets.

    The class with the largest output is predicted. Students are fitted to the teacher's outputs, not to its
    predicted classes: alpha * onehot + (1 - alpha) * output.

    Parameters, attributes and exceptions are those of ``SelfDistilledKernelRidge``, and one attribute more.

    Attributes
    ----------
    classes_ : ndarray (n_classes,)
        The labels, in the order of dual_coef_'s columns.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from distill.estimator import SelfDistilledKernelRidgeClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = SelfDistilledKernelRidgeClassifier(alpha=0.3, lam=0.1, n_steps=3).fit(X[::2], y[::2])
    >>> model.predict(X[1::50])
    array([0, 1, 2])
    >>> print(f"{model.score(X[1::2], y[1::2]):.2f}")
    0.97
    """

    def _validated(self, X: Rows, y: ArrayLike, classes: ArrayLike | None = None, **options: Any) -> tuple[Rows, Any]:
        """X, and one-hot y (n, n_classes); sets ``classes_`` to ``classes`` or the labels in y, or keeps it."""
        X, y = self._check_X(X, y, **options)
        check_classification_targets(y)
        if options.get("reset", True):
            self.classes_ = np.unique(np.asarray(y if classes is None else classes))
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise ValueError(f"label {unknown[0]} is not among the classes of the first call")
        return X, one_hot(y, self.classes_)

    def _decoded(self, outputs: FloatArray) -> NDArray[Any]:
        return self.classes_[np.argmax(outputs, axis=1)]

    def _path_targets(self, y: ArrayLike, y_val: ArrayLike) -> tuple[ArrayLike, ArrayLike]:
        y = column_or_1d(y)
        check_classification_targets(y)
        classes = np.unique(y)
        return one_hot(y, classes), one_hot(column_or_1d(y_val), classes)

    @available_if(by_features)
    def partial_fit(self, X: Rows, y: ArrayLike, classes: ArrayLike | None = None) -> Self:
        """As ``SelfDistilledKernelRidge.partial_fit``, for labels y (n,); the first call needs all ``classes``."""
        if classes is None and not hasattr(self, "coef_"):
            raise ValueError("the first call of partial_fit needs classes, the labels of all blocks")
        return self._fit_partially(X, y, classes=classes)

    def decision_function(self, X: Rows) -> FloatArray:
        """Outputs (q, n_classes); for two classes the second's minus the first's, (q,)."""
        outputs = self._predicted(X)
        return outputs[:, 1] - outputs[:, 0] if len(self.classes_) == 2 else outputs


def one_hot(labels: ArrayLike, classes: NDArray[Any]) -> FloatArray:
    """One-hot labels (n, n_classes); a label that is not among ``classes`` is a row of zeros."""
    return (np.asarray(labels)[:, None] == classes).astype(np.float64)

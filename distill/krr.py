"""Kernel ridge self-distillation in closed form: the public functions.

The chain (Borup & Andersen, NeurIPS 2021, arXiv 2102.13088): y^(0) = y, and for fits tau = 1, 2, ...

    f^(tau)(x) = k(x, X) (K + lam I)^-1 (alpha_tau y + (1 - alpha_tau) y^(tau-1)),    y^(tau) = f^(tau)(X).

Fit 1 is an ordinary kernel ridge regression, the teacher; each later fit is a student.

Conventions: ``d`` (n,) are K's eigenvalues, large to small, >= 0. ``lam`` >= 0 is the ridge. ``alpha``, the weight of
the ground truth, is any finite number, or a schedule: a sequence whose first entry belongs to fit 2 (fit 1 has no
teacher) and whose last entry repeats. ``steps`` are fit numbers >= 1, or ``math.inf`` for the limit. Targets ``y`` are
(n,) or (n, m). All arrays are float64.
"""

from distill.kernel.features import FeatureChain, FeatureSums
from distill.kernel.lanczos import BlockLanczos, NotReachedError, lanczos
from distill.kernel.linalg import (
    KernelMatrixError,
    MatrixTooLargeError,
    NotFiniteError,
    NotPositiveSemidefiniteError,
    NotSymmetricError,
    SingularKernelError,
    Spectrum,
    decompose,
)
from distill.kernel.mixing import (
    AUTO_FITS,
    alphas_to_weights,
    auto_schedule,
    best_alpha,
    greedy_alphas,
    joint_weights,
    weights_to_alphas,
)
from distill.kernel.riskmap import risk_map
from distill.kernel.solvers import UNTRUSTED, Chain, chain, choose_map_solver, choose_solver
from distill.kernel.spectral import (
    DivergentChainError,
    blend_filters,
    convergence_bound,
    convergence_rate,
    degrees_of_freedom,
    diagonals,
    diagonals_by_recursion,
    dual_coefficients,
    fitted_values,
    gcv_residuals,
    generalised_cross_validation,
    limit_diagonal,
    power_coefficients,
    predict,
    shrinkage,
    sparsification_ratios,
)
from distill.kernel.tiles import KernelTiles

__all__ = [
    "AUTO_FITS",
    "UNTRUSTED",
    "BlockLanczos",
    "Chain",
    "DivergentChainError",
    "FeatureChain",
    "FeatureSums",
    "KernelMatrixError",
    "KernelTiles",
    "MatrixTooLargeError",
    "NotFiniteError",
    "NotPositiveSemidefiniteError",
    "NotReachedError",
    "NotSymmetricError",
    "SingularKernelError",
    "Spectrum",
    "alphas_to_weights",
    "auto_schedule",
    "best_alpha",
    "blend_filters",
    "chain",
    "choose_map_solver",
    "choose_solver",
    "convergence_bound",
    "convergence_rate",
    "decompose",
    "degrees_of_freedom",
    "diagonals",
    "diagonals_by_recursion",
    "dual_coefficients",
    "fitted_values",
    "gcv_residuals",
    "generalised_cross_validation",
    "greedy_alphas",
    "joint_weights",
    "lanczos",
    "limit_diagonal",
    "power_coefficients",
    "predict",
    "risk_map",
    "shrinkage",
    "sparsification_ratios",
    "weights_to_alphas",
]

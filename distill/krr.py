# ruff: noqa: I001 - "name as name" marks a public name; the import sorter would give each its own statement
"""Kernel ridge self-distillation in closed form: the public functions.

The chain (Borup & Andersen, NeurIPS 2021, arXiv 2102.13088): y^(0) = y, and for fits tau = 1, 2, ...

    f^(tau)(x) = k(x, X) (K + lam I)^-1 (alpha_tau y + (1 - alpha_tau) y^(tau-1)),    y^(tau) = f^(tau)(X).

Fit 1 is an ordinary kernel ridge regression, the teacher; each later fit is a student.

Conventions: ``d`` (n,) are K's eigenvalues, large to small, >= 0. ``lam`` >= 0 is the ridge. ``alpha``, the weight of
the ground truth, is any finite number, or a schedule: a sequence whose first entry belongs to fit 2 (fit 1 has no
teacher) and whose last entry repeats. ``steps`` are fit numbers >= 1, or ``math.inf`` for the limit. Targets ``y`` are
(n,) or (n, m). All arrays are float64.
"""

from distill.kernel.features import FeatureChain as FeatureChain, FeatureSums as FeatureSums
from distill.kernel.lanczos import BlockLanczos as BlockLanczos, NotReachedError as NotReachedError, lanczos as lanczos
from distill.kernel.linalg import (
    KernelMatrixError as KernelMatrixError,
    MatrixTooLargeError as MatrixTooLargeError,
    NotFiniteError as NotFiniteError,
    NotPositiveSemidefiniteError as NotPositiveSemidefiniteError,
    NotSymmetricError as NotSymmetricError,
    SingularKernelError as SingularKernelError,
    Spectrum as Spectrum,
    decompose as decompose,
)
from distill.kernel.mixing import (
    AUTO_FITS as AUTO_FITS,
    alphas_to_weights as alphas_to_weights,
    auto_schedule as auto_schedule,
    best_alpha as best_alpha,
    greedy_alphas as greedy_alphas,
    joint_weights as joint_weights,
    weights_to_alphas as weights_to_alphas,
)
from distill.kernel.solvers import (
    UNTRUSTED as UNTRUSTED,
    Chain as Chain,
    chain as chain,
    choose_map_solver as choose_map_solver,
    choose_solver as choose_solver,
    risk_map as risk_map,
)
from distill.kernel.spectral import (
    DivergentChainError as DivergentChainError,
    blend_filters as blend_filters,
    convergence_bound as convergence_bound,
    convergence_rate as convergence_rate,
    degrees_of_freedom as degrees_of_freedom,
    diagonals as diagonals,
    diagonals_by_recursion as diagonals_by_recursion,
    dual_coefficients as dual_coefficients,
    fitted_values as fitted_values,
    gcv_residuals as gcv_residuals,
    generalised_cross_validation as generalised_cross_validation,
    limit_diagonal as limit_diagonal,
    power_coefficients as power_coefficients,
    predict as predict,
    shrinkage as shrinkage,
    sparsification_ratios as sparsification_ratios,
)
from distill.kernel.theory import (
    FilterRisk as FilterRisk,
    filter_risk as filter_risk,
    fresh_label_variances as fresh_label_variances,
    predictive_variances as predictive_variances,
)
from distill.kernel.tiles import KernelTiles as KernelTiles, rbf as rbf

"""Every argument of every public function: a wrong type, shape or number is an error that names the argument."""

import inspect
import math
from fractions import Fraction

import numpy as np
import pytest
from kernels import random_kernel

from distill import krr

rng = np.random.default_rng(0)
n = 6
K = random_kernel(0, n)
SPECTRUM = krr.decompose(K)
CHAIN = {"lam": 0.1, "alpha": 0.5, "steps": [1, 3]}
OF_D = {"d": SPECTRUM.d, **CHAIN}
OF_SPECTRUM = {"spectrum": SPECTRUM, "y": np.ones(n)}
DIAGONALS = krr.diagonals(**OF_D)
RESIDUALS = {"residuals": rng.standard_normal((3, 8))}
NEW = {"K_new": rng.standard_normal((4, n)), "target": np.ones(4)}
GRID = {"alphas": [0.5], "lams": [0.1], "steps": [1, 3]}

CALLS = {
    "alphas_to_weights": {"alphas": [0.5]},
    "auto_schedule": RESIDUALS,
    "best_alpha": {"first": np.ones(3), "probe": np.zeros(3), "target": np.ones(3)},
    "blend_filters": OF_D,
    "chain": {"K": K, "y": np.ones(n), **CHAIN, "solver": "auto"},
    "convergence_bound": {**OF_D, "first_distance": 1.0},
    "convergence_rate": {"d": SPECTRUM.d, "lam": 0.1, "alpha": 0.5},
    "decompose": {"K": K},
    "degrees_of_freedom": {"B": DIAGONALS},
    "diagonals": OF_D,
    "diagonals_by_recursion": {"d": SPECTRUM.d, "lams": 0.1, "alphas": 0.5, "n_steps": 2},
    "dual_coefficients": {**OF_SPECTRUM, **CHAIN},
    "fitted_values": {**OF_SPECTRUM, "B": DIAGONALS},
    "gcv_residuals": {**OF_SPECTRUM, "lam": 0.1, "k": 2},
    "generalised_cross_validation": {**OF_SPECTRUM, "B": DIAGONALS},
    "greedy_alphas": RESIDUALS,
    "joint_weights": RESIDUALS,
    "limit_diagonal": {"d": SPECTRUM.d, "lam": 0.1, "alpha": 0.5},
    "power_coefficients": {**OF_SPECTRUM, "lam": 0.1, "k": 2},
    "predict": {"K_new": NEW["K_new"], "coefficients": rng.standard_normal((2, n))},
    "risk_map": {"K": K, "y": np.ones(n), **NEW, **GRID, "solver": "auto", "loss": "squared"},
    "shrinkage": {"d": SPECTRUM.d, "lam": 0.1},
    "sparsification_ratios": {"B": DIAGONALS},
    "weights_to_alphas": {"weights": [0.5, 0.5]},
}
BAD = [
    None,
    "x",
    ["1.0"],
    b"x",
    {},
    object(),
    1j,
    math.nan,
    10**400,
    [10**400],
    [[1, 2], [3]],
    np.datetime64("2020-01-01"),
    np.ones((2, 2, 2, 2)) * math.nan,
    np.ones((0, n)),
    np.full((n, n), 1j),
    np.full((4, n), math.nan),
    np.full(n, -math.inf),
]
ARGUMENTS = [(name, argument) for name, call in CALLS.items() for argument in call]


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_a_bad_argument_is_named(name, argument):
    function = getattr(krr, name)
    function(**CALLS[name])
    for value in BAD:
        with pytest.raises((ValueError, TypeError), match=rf"\b{argument}|\b{argument.rstrip('s')}\b") as caught:
            function(**{**CALLS[name], argument: value})
        assert len(str(caught.value)) < 200


def test_every_function_of_arrays_is_in_the_table():
    modules = [f"distill.kernel.{name}" for name in ("linalg", "mixing", "riskmap", "solvers", "spectral")]
    functions = {name for name, value in vars(krr).items() if inspect.isfunction(value) and value.__module__ in modules}
    assert functions - set(CALLS) == {"choose_solver", "choose_map_solver"}  # of numbers that this package counts


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("chain", "lam", [0.1, 1]),
        ("chain", "lam", -1e-3),
        ("chain", "y", np.ones(n - 1)),
        ("chain", "steps", 1.5),
        ("chain", "steps", [1, 0]),
        ("chain", "alpha", []),
        ("diagonals", "d", SPECTRUM.d[::-1]),
        ("diagonals", "d", -SPECTRUM.d),
        ("dual_coefficients", "spectrum", K),
        ("fitted_values", "B", np.ones((2, n + 1))),
        ("gcv_residuals", "k", 2.5),
        ("gcv_residuals", "k", 0),
        ("diagonals_by_recursion", "n_steps", -1),
        ("best_alpha", "probe", np.zeros(4)),
        ("predict", "K_new", np.ones((3, n + 1))),
        ("risk_map", "K_new", np.ones((4, n + 1))),
        ("risk_map", "lams", [0.1, -0.1]),
        ("risk_map", "target", np.ones(5)),
        ("risk_map", "target", np.ones((4, 2))),
    ],
)
def test_a_number_or_shape_out_of_its_range_is_named(name, argument, value):
    with pytest.raises((ValueError, TypeError), match=rf"\b{argument}"):
        getattr(krr, name)(**{**CALLS[name], argument: value})


def test_other_real_types_are_taken():
    expected = krr.chain(K, np.ones(n), 0.5, 0.25, [1, 2]).coefficients
    for lam, alpha in ((np.float32(0.5), np.float16(0.25)), (Fraction(1, 2), Fraction(1, 4)), (np.array(0.5), [0.25])):
        np.testing.assert_array_equal(krr.chain(K.tolist(), [1] * n, lam, alpha, range(1, 3)).coefficients, expected)

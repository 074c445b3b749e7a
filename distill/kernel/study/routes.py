"""Routes to the eigenbasis of a problem: through the features' Gram matrix, an eigendecomposition, or block Lanczos."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse.linalg import LinearOperator
from tqdm import tqdm

from distill.environment import available_memory
from distill.errors import ConfigError
from distill.kernel.arrays import EPS, FloatArray
from distill.kernel.features import FeatureChain, FeatureSums
from distill.kernel.kernels import RADIAL, kernel_function
from distill.kernel.lanczos import BlockLanczos, NotReachedError, lanczos
from distill.kernel.linalg import decompose, product, require_memory
from distill.kernel.riskmap import EigenChain, Grid, eigen_chain
from distill.kernel.study.data import Part, Problem, Rows
from distill.kernel.tiles import Kernel, KernelTiles, matrix
from distill.kernel.toy.options import MEDIAN, require_absent
from distill.program import complain

MOST_DECOMPOSED = 5000  # points; above, block Lanczos is quicker for all but the smallest ridges
PAIRS = 2000  # of points, for the median distance
LAMS = np.geomspace(1e-6, 1, 25)  # times the largest eigenvalue
LANCZOS_LAMS = np.geomspace(1e-5, 1, 16)
LANCZOS_ONLY = ("tolerance", "max_basis", "memory", "precision")
GIB = 2**30


@dataclass(frozen=True)
class Route:
    """A problem in an eigenbasis, and the grid of its maps."""

    text: str  # how the basis was computed, for the reader
    chain: EigenChain
    rows: Callable[[Rows], FloatArray]  # from inputs (q, p) to rows (q, k) in the basis
    grid: Grid
    basis: BlockLanczos | None = None


def choose_gamma(args: argparse.Namespace, X: Rows) -> float:
    """The number that --gamma names; "median" is 1 / the median squared distance of PAIRS random pairs of points."""
    if args.gamma not in (None, MEDIAN):
        return float(args.gamma)
    if args.kernel not in RADIAL:
        return 1 / X.shape[1]
    rng = np.random.default_rng(args.seed or 0)
    first, second = (X[rng.integers(0, len(X), PAIRS)] for _ in range(2))
    median = float(np.median(((first - second).astype(np.float64) ** 2).sum(axis=1)))
    if median == 0:
        raise ConfigError("--gamma median: half of the pairs of points are equal, or more; give a number")
    return 1 / median


def make_route(
    args: argparse.Namespace, problem: Problem, alphas: FloatArray, steps: list[float], folder: Path
) -> Route:
    """The route that the options name, by default the cheapest that suits; ``folder`` keeps a Lanczos basis.

    Raises ConfigError, MatrixTooLargeError, NotReachedError and the kernel matrix's errors.
    """
    train = problem.train
    n, p = train.X.shape
    linear = args.kernel == "linear"
    solver = args.solver
    if solver in (None, "auto"):
        solver = "eigh" if n <= MOST_DECOMPOSED else "lanczos"
        if linear and (p < n or args.intercept):
            solver = "features"
    if solver == "features" and not linear:
        raise ConfigError(f"--solver features is for --kernel linear, not {args.kernel}")
    if args.intercept and solver != "features":
        raise ConfigError("--intercept needs --kernel linear and --solver features")
    if solver != "lanczos":
        require_absent(vars(args), LANCZOS_ONLY, f"is for --solver lanczos, and this run takes {solver}")
    gamma = choose_gamma(args, train.X)
    kernel = kernel_function(args.kernel, gamma)
    name = args.kernel if linear else f"{args.kernel} kernel, gamma = {gamma:.4g}"
    if solver == "lanczos":
        return _by_lanczos(args, train, kernel, name, alphas, steps, folder)
    if solver == "features":
        features = FeatureChain(FeatureSums(intercept=args.intercept).add(train.X, train.y))
        chain = features.eigen
        rows: Callable[[Rows], FloatArray] = features.rows
        name = f"linear kernel{' and intercept' * args.intercept}, by the {p} x {p} Gram matrix of the features"
    else:
        chain, rows = _by_eigh(train, kernel)
        name += f", by an eigendecomposition of {n:,} x {n:,} numbers"
    return Route(name, chain, rows, Grid(alphas, _ridges(args.lam, chain.d[0], n, LAMS), steps))


def _by_eigh(train: Part, kernel: Kernel) -> tuple[EigenChain, Callable[[Rows], FloatArray]]:
    require_memory(len(train.X), 3, "; --solver lanczos needs less")
    X = train.X.astype(np.float64)
    spectrum = decompose(matrix(kernel, X, X), overwrite=True)
    return eigen_chain(spectrum, train.y), lambda new: product(matrix(kernel, new.astype(np.float64), X), spectrum.V)


def _by_lanczos(
    args: argparse.Namespace,
    train: Part,
    kernel: Kernel,
    name: str,
    alphas: FloatArray,
    steps: list[float],
    folder: Path,
) -> Route:
    n = len(train.X)
    memory = args.memory * GIB if args.memory is not None else (available_memory() or 0) / 2
    dtype = np.dtype(args.precision or ("float64" if 4 * n * (n + 1) <= memory else "float32"))
    X = train.X.astype(dtype, copy=False)
    tiles = KernelTiles(kernel, X, dtype=dtype, memory=memory)
    with tqdm(desc=f"kernel matrix of {n:,} points", unit=" products", disable=None, leave=False) as bar:

        def multiply(block: FloatArray) -> FloatArray:
            bar.update()
            return tiles.matmat(block)

        K = LinearOperator(tiles.shape, matvec=multiply, matmat=multiply, dtype=dtype)
        lams = _ridges(args.lam, _largest_eigenvalue(K), n, LANCZOS_LAMS)
        try:
            basis = lanczos(
                K,
                train.y,
                alphas,
                lams,
                steps,
                tolerance=args.tolerance or 1e-3,
                max_basis=args.max_basis or 4000,
                checkpoint=folder / "lanczos",
                report=lambda size, error: bar.set_postfix_str(f"{size} basis vectors, error {error:.1e}"),
            )
        except NotReachedError as error:
            reached = lams[~np.isin(lams, error.lams)]
            if args.lam is not None or not len(reached):
                raise NotReachedError(f"{error}; raise --max-basis or --tolerance, or leave these out") from None
            complain(f"note: {error}; they are left out")
            lams = reached
            basis = error.basis
    text = f"{name}, by block Lanczos with {basis.size} vectors, kernel matrix in {dtype.name}"

    def rows(X_new: Rows) -> FloatArray:
        return basis.rows(KernelTiles(kernel, X, X_new.astype(dtype, copy=False), dtype=dtype, memory=0))

    return Route(text, basis.eigen, rows, Grid(alphas, lams, steps), basis)


def _ridges(given: list[float] | None, largest: float, n: int, shares: FloatArray) -> FloatArray:
    """The ridges that were given, or those that are ``shares`` of the largest eigenvalue of K (n, n).

    Raises ConfigError for a ridge that is lost in K's rounding: no cross-validation can judge an interpolant.
    """
    if given is None:
        return largest * shares
    if min(given) <= n * EPS * largest:
        raise ConfigError(f"--lam must be above {n * EPS * largest:.1g}, the rounding of K, not {min(given):g}")
    return np.array(given)


def _largest_eigenvalue(K: LinearOperator, products: int = 5) -> float:
    """The largest eigenvalue to a percent or so, by power iteration: it scales the grid of ridges."""
    v = np.ones((K.shape[0], 1))
    for _ in range(products):
        v /= np.linalg.norm(v)
        v = np.asarray(K.matmat(v))
    return float(np.linalg.norm(v))

"""Closed forms at the size of real data: ridge regression on features, and kernels by block Lanczos.

    python -m benchmarks.kernel_large features                          # writes 2 GB of temporary files
    python -m benchmarks.kernel_large lanczos --data-dir IMAGES         # CIFAR-10 as an image folder
    python -m benchmarks.kernel_large lanczos --data-dir IMAGES --sizes 5000 10000

``features`` compares the whole map with its floor (one Gram product, one eigendecomposition, one product for each
prediction), and with a refit of scikit-learn's Ridge for each cell. ``lanczos`` measures all of CIFAR-10 with 40 %
wrong labels, and where a decomposition fits into memory the true errors, LAPACK's times, scikit-learn's refits, and
himalaya's cross-validation if it is installed (``pip install himalaya``).
Prints Markdown, and writes the numbers with hardware and versions as JSON.
"""

import json
import math
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge, RidgeCV

from benchmarks import common
from benchmarks.kernel import hardware, seconds
from benchmarks.options import Parser, positive
from distill import krr
from distill.config import DataConfig
from distill.data.load import load_source
from distill.kernel.linalg import cholesky

ALPHAS = np.linspace(0.05, 1, 20)
STEPS = [*range(1, 11), math.inf]
CLASSES = 10
DECOMPOSES = 10_000  # points; up to here results are compared with an eigendecomposition
MEMORY = 2 * 10**9
ROUNDING = 1e-10  # of fitted values in float64, which no certificate covers
Array = NDArray[Any]


def peak() -> float:
    """This process's peak memory so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def features_problem(n: int, p: int = 512) -> tuple[Array, Array, Array, Array]:
    """X (n, p), one-hot y (n, 10), X_val (10,000, p), one-hot y_val: a noisy linear rule."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n + 10_000, p))
    outputs = X @ rng.standard_normal((p, CLASSES))
    noisy = outputs + 40 * rng.standard_normal(outputs.shape)
    eye = np.eye(CLASSES)
    return X[:n], eye[noisy[:n].argmax(axis=1)], X[n:], eye[outputs[n:].argmax(axis=1)]


def features_map(rounds: int) -> dict[str, Any]:
    """20 alphas × 30 ridges × 10 steps and the limit at n = 50,000, both losses, against the floor and refits."""
    X, y, X_val, y_val = features_problem(50_000)
    lams = np.geomspace(1, 1e6, 30)
    predictions = len(ALPHAS) * len(lams) * len(STEPS)
    ours, floors, refits, cross_validated = [], [], [], []
    for _ in range(rounds):

        def whole_map() -> tuple[Array, Array]:
            chain = krr.FeatureChain(krr.FeatureSums().add(X, y))
            squared = chain.risk_map(X_val, y_val, ALPHAS, lams, STEPS)
            return squared, chain.risk_map(X_val, y_val, ALPHAS, lams, STEPS, loss="zero_one")

        ours.append(seconds(whole_map)[0])
        gram, G = seconds(lambda: X.T @ X)
        decomposed = seconds(partial(eigh, G))[0]
        product = seconds(partial(np.matmul, X_val, np.ones((X.shape[1], 10 * CLASSES))))[0] / 10 * predictions
        floors.append(gram + decomposed + product)
        refits.append(seconds(lambda: Ridge(1.0, fit_intercept=False).fit(X, y).predict(X_val))[0] * predictions)
        cross_validated.append(seconds(lambda: RidgeCV(lams, fit_intercept=False).fit(X, y))[0])
    chain = krr.FeatureChain(krr.FeatureSums().add(X, y))
    mine = chain.predict(X_val, chain.coefficients(10.0, 0.3, [1]))[0]
    theirs = Ridge(10.0, fit_intercept=False).fit(X, y).predict(X_val)
    return {
        "cells": predictions,
        "ours_s": float(np.median(ours)),
        "floor_s": float(np.median(floors)),
        "over_floor": common.paired_ratio(ours, floors),
        "over_refits": common.paired_ratio(refits, ours),
        "ridge_cv_s": float(np.median(cross_validated)),
        "difference": float(np.abs(mine - theirs).max()),
    }


def features_from_disk(n: int = 1_000_000, p: int = 512) -> dict[str, Any]:
    """Sums over a memory-mapped float32 file of n rows, within MEMORY bytes of the process's own data."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "X.npy"
        X = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, p))
        for start in range(0, n, 10_000):
            X[start : start + 10_000] = rng.standard_normal((10_000, p))
        X.flush()
        y = np.eye(CLASSES)[rng.integers(0, CLASSES, n)]
        resource.setrlimit(
            resource.RLIMIT_DATA, (MEMORY, resource.RLIM_INFINITY)
        )  # mapped pages of files are not counted
        taken, _ = seconds(lambda: krr.FeatureChain(krr.FeatureSums().add(np.load(path, mmap_mode="r"), y)))
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return {"n": n, "p": p, "seconds": taken, "within_GB": MEMORY / 1e9}


class Images:
    """n training and 10,000 test images as rows of float32, one-hot targets (40 % wrong), and an RBF kernel."""

    def __init__(self, folder: str, n: int, seed: int = 0):
        source = load_source(DataConfig(dataset="imagefolder", data_dir=folder))
        rng = np.random.default_rng(seed)
        chosen = rng.permutation(len(source.train_images))[:n]
        self.X = source.train_images[chosen].reshape(n, -1).astype(np.float32) / 255
        self.X_test = source.test_images.reshape(len(source.test_images), -1).astype(np.float32) / 255
        given = source.train_labels[chosen]
        wrong = rng.random(n) < 0.4
        given = np.where(wrong, (given + rng.integers(1, CLASSES, n)) % CLASSES, given)
        self.y = np.eye(CLASSES)[given]
        self.y_test = np.eye(CLASSES)[source.test_labels]
        pairs = self.X[rng.integers(0, n, (2, 2000))]
        self.gamma = float(1 / np.median(((pairs[0] - pairs[1]) ** 2).sum(axis=1)))


class Grid(NamedTuple):
    """The cells of the map."""

    alphas: list[float]
    lams: Array
    steps: list[float]


def solve(K: Any, y: Array, grid: Grid) -> krr.BlockLanczos:
    """A basis that is certified to 1e-3 in every cell."""

    def report(size: int, error: float) -> None:
        print(f"  {size}: {error:.2g}", flush=True)

    return krr.lanczos(K, y, *grid, max_basis=4000, report=report)


def lanczos_map(folder: str, n: int, device: str | None) -> dict[str, Any]:
    """The whole map by block Lanczos, K in float32; compared with LAPACK up to DECOMPOSES, and with a device."""
    data = Images(folder, n)
    K = krr.KernelTiles(krr.rbf(data.gamma), data.X, dtype=np.float32, memory=9e9)
    start = time.perf_counter()
    d1 = float(np.linalg.norm(K.matvec(np.ones(n))) / math.sqrt(n))  # the first eigenvector is nearly constant
    built = time.perf_counter() - start
    grid = Grid([0.1, 0.3, 0.6, 1.0], d1 * np.geomspace(1e-5, 1, 16), [1, 2, 3, 4, 5, 6, math.inf])
    solved, basis = seconds(partial(solve, K, data.y, grid))
    K_test = krr.KernelTiles(krr.rbf(data.gamma), data.X, data.X_test, dtype=np.float32, memory=3e9)
    mapped, risks = seconds(lambda: basis.risk_map(K_test, data.y_test, *grid))
    wrong = basis.risk_map(K_test, data.y_test, *grid, loss="zero_one")
    best = np.unravel_index(risks.argmin(), risks.shape)
    row = {
        "n": n,
        "build_s": built,
        "lanczos_s": solved,
        "map_s": mapped,
        "basis": basis.size,
        "certificate": float(basis.errors(*grid).max()),
        "peak_GB": peak(),
        "best_risk": float(risks[best]),
        "best": [grid.alphas[best[0]], float(grid.lams[best[1]] / d1), grid.steps[best[2]]],
        "accuracy": float(1 - wrong[best]),
        "best_ridge_risk": float(risks[-1, :, 0].min()),
        "lams_over_d1": (grid.lams / d1).tolist(),
        "ridge_risks": risks[-1, :, 0].tolist(),
    }
    if device is not None:
        row |= on_device(data, grid, device)
    return row if n > DECOMPOSES else row | against_lapack(data, basis, grid, risks)


def on_device(data: Images, grid: Grid, device: str) -> dict[str, Any]:
    """Times of the same map with products in float64 on a torch device."""
    from distill import device_kernel

    kernel = device_kernel.rbf(data.gamma)
    K = device_kernel.DeviceKernel(kernel, data.X, device=device)
    solved, basis = seconds(partial(solve, K, data.y, grid))
    K_test = device_kernel.DeviceKernel(kernel, data.X, data.X_test, device=device)
    mapped, _ = seconds(lambda: basis.risk_map(K_test, data.y_test, *grid))
    return {"device": device, "device_lanczos_s": solved, "device_map_s": mapped}


def against_lapack(data: Images, basis: krr.BlockLanczos, grid: Grid, risks: Array) -> dict[str, Any]:
    """Times of what else gives the map, and true errors: of ``basis``, and of one of the same K in float64."""
    X, X_test = data.X.astype(float), data.X_test.astype(float)
    K = krr.rbf(data.gamma)(X, X)
    eigen, spectrum = seconds(lambda: krr.decompose(K))
    factor = seconds(lambda: cholesky(K, grid.lams[0]))[0]
    refit = seconds(lambda: KernelRidge(alpha=grid.lams[5], kernel="precomputed").fit(K, data.y))[0]
    exact = krr.risk_map(spectrum, data.y, krr.rbf(data.gamma)(X_test, X), data.y_test, *grid)
    solved, exact_basis = seconds(partial(solve, K, data.y, grid))
    errors = true_errors(exact_basis, spectrum, data.y, grid)
    return {
        "eigh_s": eigen,
        "cholesky_per_lam_s": factor * len(grid.lams),
        "refits_s": refit * risks.size,
        "himalaya_s": himalaya_seconds(K, data.y, grid.lams),
        "float64_lanczos_s": solved,
        "float64_error_over_certificate": float((errors / np.maximum(exact_basis.errors(*grid), ROUNDING)).max()),
        "float32_error": float(true_errors(basis, spectrum, data.y, grid).max()),
        "risk_difference": float(np.abs(risks - exact).max()),
    }


def true_errors(basis: krr.BlockLanczos, spectrum: krr.Spectrum, y: Array, grid: Grid) -> Array:
    """Relative errors of the fitted values in every cell (alphas, lams, steps)."""
    errors = np.zeros(tuple(map(len, grid)))
    for i, j in np.ndindex(errors.shape[:2]):
        cell = y, grid.lams[j], grid.alphas[i], grid.steps
        true = fitted(spectrum, *cell)
        difference = fitted(basis.spectrum(), *cell) - true
        errors[i, j] = np.linalg.norm(difference, axis=(1, 2)) / np.linalg.norm(true, axis=(1, 2))
    return errors


def himalaya_seconds(K: Array, y: Array, lams: Array) -> float | None:
    """The time in which himalaya chooses among ``lams``, without distillation; None if it is not installed."""
    try:
        from himalaya.kernel_ridge import KernelRidgeCV
    except ImportError:
        return None
    return seconds(lambda: KernelRidgeCV(lams, kernel="precomputed", cv=5).fit(K, y))[0]


def fitted(spectrum: krr.Spectrum, y: Array, lam: float, alpha: float, steps: list[float]) -> Array:
    """Fitted values (steps, n, m)."""
    return krr.fitted_values(spectrum, y, krr.diagonals(spectrum.d, lam, alpha, steps))


def in_fresh_process(function: Callable[..., Any], *values: Any) -> Any:
    """``function(*values)`` in a new process, whose peak of memory is that of this call alone."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, values)


def main() -> None:
    """Measure, write the JSON file, print a table."""
    parser = Parser("kernel_large", __doc__)
    parser.add_argument("part", choices=["features", "lanczos"])
    parser.add_argument("--rounds", type=positive, default=3, help="rounds of each comparison [default: %(default)s]")
    parser.add_argument("--data-dir", help="folder with train/ and test/ of CIFAR-10 as images")
    parser.add_argument("--sizes", type=positive, nargs="+", default=[5000, 10_000, 50_000], help="numbers of points")
    parser.add_argument("--device", help="also compute the map in float64 on this torch device, such as cuda")
    parser.add_argument("--output", type=Path, help="JSON file [default: in benchmarks/results]")
    args = parser.parse_args()
    if args.part == "features":
        disk = features_from_disk()
        results: Any = {"from disk": disk, "map": features_map(args.rounds)}
        rows = [[f"{key}: {name}", f"{value}"] for key, part in results.items() for name, value in part.items()]
    else:
        if not args.data_dir:
            parser.error("lanczos needs --data-dir")
        results = [in_fresh_process(lanczos_map, args.data_dir, n, args.device) for n in args.sizes]
        rows = [[f"{row['n']:,}: {name}", f"{value}"] for row in results for name, value in row.items()]
    output = args.output or common.RESULTS / f"kernel-large-{args.part}.json"
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps({"hardware": hardware(), "results": results}, indent=1, default=float) + "\n")
    print(common.markdown(["what", "value"], rows))


if __name__ == "__main__":
    main()

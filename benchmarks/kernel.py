"""The kernel side against scikit-learn's KernelRidge, and against LAPACK.

    python -m benchmarks.kernel            # (a) to (e), about two minutes on 2 cores
    python -m benchmarks.kernel --large    # and n = 10,000, about three more

Each comparison is paired: its two sides are timed in turn within a round, and the ratio is the median over rounds. A
map by refits would take hours, so refits are timed on a sample of its cells and scaled to all of them. Prints Markdown
tables, and writes the numbers with hardware and versions as JSON.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import scipy.linalg
import sklearn
from numpy.typing import NDArray
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import rbf_kernel
from threadpoolctl import threadpool_info

from benchmarks import common
from benchmarks.options import Parser, positive
from distill import krr
from distill.estimator import SelfDistilledKernelRidge
from distill.kernel.linalg import cholesky

N = 2000
N_VAL = 1000
FEATURES = 10
GAMMA = 1 / FEATURES
MAPS = {  # alphas, lams, steps
    "a": (np.linspace(0, 1, 20), np.geomspace(1e-3, 10, 10), range(1, 11)),
    "b": (np.linspace(0, 1, 50), np.geomspace(1e-3, 10, 50), range(1, 21)),
}
TARGETS = {"a": 200, "b": 5000, "c": 5, "d": 1.5}
Array = NDArray[np.float64]


def problem(n: int = N, n_val: int = N_VAL) -> tuple[Array, Array, Array, Array]:
    """X (n, FEATURES), y (n,), X_val (n_val, FEATURES), y_val (n_val,): a noisy smooth function."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n + n_val, FEATURES))
    y = np.sin(X @ rng.standard_normal(FEATURES)) + 0.5 * rng.standard_normal(n + n_val)
    return X[:n], y[:n], X[n:], y[n:]


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds that a call takes, and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def refit(X: Array, X_val: Array, lam: float, target: Array) -> tuple[Array, Array]:
    """One cell by scikit-learn: a fit, and its predictions at X (the next fit's target) and at X_val (the risk)."""
    model = KernelRidge(alpha=lam, kernel="rbf", gamma=GAMMA).fit(X, target)
    return model.predict(X), model.predict(X_val)


def refit_chain(X: Array, y: Array, X_val: Array, lam: float, alpha: float, n_steps: int) -> Array:
    """Predictions at X_val of a chain of ``n_steps`` refits."""
    target = y
    for _ in range(n_steps):
        fitted, predicted = refit(X, X_val, lam, target)
        target = alpha * y + (1 - alpha) * fitted
    return predicted


def estimator(**options: Any) -> SelfDistilledKernelRidge:
    """Our estimator with this benchmark's kernel."""
    return SelfDistilledKernelRidge(kernel="rbf", gamma=GAMMA, **options)


def map_against_refits(name: str, rounds: int, cells: int) -> dict:
    """(a), (b): a map from inputs to risks, kernel matrix included, against a refit for each of its cells."""
    X, y, X_val, y_val = problem()
    alphas, lams, steps = MAPS[name]
    rng = np.random.default_rng(1)
    ours, refits = [], []
    for _ in range(rounds):
        taken, risks = seconds(lambda: estimator().path(X, y, alphas, lams, steps, X_val, y_val))
        per_cell = [seconds(lambda lam=lam: refit(X, X_val, lam, y))[0] for lam in rng.choice(lams, cells)]
        ours.append(taken)
        refits.append(statistics.mean(per_cell) * risks.size)
    i, j, step = len(alphas) // 3, len(lams) // 2, 3
    theirs = refit_chain(X, y, X_val, lams[j], alphas[i], step)
    difference = abs(np.mean((theirs - y_val) ** 2) - risks[i, j, step - 1])
    return summary(ours, refits) | {"cells": risks.size, "sampled": rounds * cells, "risk_difference": difference}


def chain_against_refits(rounds: int) -> dict:
    """(c): a chain of 10 fits and its predictions, against 10 refits."""
    X, y, X_val, _ = problem()
    ours, refits = [], []
    for _ in range(rounds):
        taken, mine = seconds(lambda: estimator(alpha=0.35, lam=0.2, n_steps=10).fit(X, y).predict(X_val))
        ours.append(taken)
        taken, theirs = seconds(lambda: refit_chain(X, y, X_val, 0.2, 0.35, 10))
        refits.append(taken)
    return summary(ours, refits) | {"prediction_difference": np.abs(mine - theirs).max()}


def over_floor(job: Callable[[], object], n_lams: int, rounds: int, K: Array) -> dict:
    """(d): our seconds over the floor's, which is given the kernel matrix too.

    The floor is LAPACK's time for one eigendecomposition or for a Cholesky factorisation per lam, whichever is less.
    """
    ours, floors, eigen, factor = [], [], [], []
    for _ in range(rounds):
        ours.append(seconds(job)[0])
        eigen.append(seconds(lambda: scipy.linalg.eigh(K, driver="evd", check_finite=False))[0])
        factor.append(seconds(lambda: cholesky(K, 0.2))[0])
        floors.append(min(eigen[-1], n_lams * factor[-1]))
    return {
        "ours_s": statistics.median(ours),
        "floor_s": statistics.median(floors),
        **common.paired_ratio(ours, floors),
        "eigh_s": statistics.median(eigen),
        "cholesky_s": statistics.median(factor),
    }


def summary(ours: list[float], others: list[float]) -> dict:
    """Medians over rounds of both sides' seconds and of others / ours, with the ratio's range."""
    medians = {"ours_s": statistics.median(ours), "other_s": statistics.median(others)}
    return medians | common.paired_ratio(others, ours) | {"rounds": len(ours)}


def grow(n: int, job: str) -> dict:
    """(e), in a process of its own: seconds, and the peak of resident memory in bytes (Linux)."""
    X, y, X_val, y_val = problem(n, 500)
    if job == "chain":
        taken, _ = seconds(lambda: estimator(alpha=0.35, lam=0.2, n_steps=10).fit(X, y).predict(X_val))
    else:
        taken, _ = seconds(lambda: estimator().path(X, y, *MAPS["a"], X_val, y_val))
    # Not getrusage's maximum, which a child process inherits from its parent.
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
    return {"n": n, "job": job, "seconds": taken, "peak_bytes": peak}


def growth(sizes: list[int]) -> list[dict]:
    """(e): time and memory over n; the peak of a process with n = 10 is subtracted."""
    rows = []
    for job in ("chain", "map"):
        smallest, *results = [_grow_elsewhere(n, job) for n in (10, *sizes)]
        for row in results:
            row["arrays"] = (row["peak_bytes"] - smallest["peak_bytes"]) / (8 * row["n"] ** 2)
            rows.append(row)
    return rows


def _grow_elsewhere(n: int, job: str) -> dict:
    """``grow`` in a new process."""
    command = [sys.executable, "-m", "benchmarks.kernel", "--grow", str(n), job]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def hardware() -> dict:
    """Hardware and versions that the numbers depend on."""
    blas = [f"{lib['internal_api']} {lib['version']}, {lib['num_threads']} threads" for lib in threadpool_info()]
    return common.machine() | {
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "scikit-learn": sklearn.__version__,
        "blas": sorted(set(blas)),
    }


def tables(results: dict) -> str:
    """The results as two Markdown tables: comparisons, and growth with n."""
    rows = []
    for key in ("a", "b"):
        row = results[key]
        shape = " × ".join(str(len(axis)) for axis in MAPS[key])
        other = f"{row['other_s']:,.0f} s, {row['cells']:,} refits, from {row['sampled']} timed"
        target = f"≥ {TARGETS[key]:,}"
        rows.append(_comparison(key, f"map of {shape}", row, other, target, row["ratio"] >= TARGETS[key]))
    row = results["c"]
    other = f"{row['other_s']:.3g} s, 10 refits"
    rows.append(_comparison("c", "chain of 10 fits", row, other, "≥ 5", row["ratio"] >= TARGETS["c"]))
    for name, row in results["d"].items():
        other = f"{row['floor_s']:.3g} s, LAPACK"
        rows.append(_comparison("d", f"{name} over its floor", row, other, "≤ 1.5", row["ratio"] <= TARGETS["d"]))
    head = ["", "what", "ours", "compared with", "ratio, median (range)", "target", "reached"]
    comparisons = common.markdown(head, rows)
    grown = [[f"{r['n']:,}", r["job"], f"{r['seconds']:.3g}", f"{r['arrays']:.2f}"] for r in results["e"]]
    return f"{comparisons}\n\n{common.markdown(['n', 'job', 'seconds', 'n × n arrays at the peak'], grown)}"


def _comparison(key: str, what: str, row: dict, other: str, target: str, reached: bool) -> list[str]:
    """The cells of a row of the first table."""
    ratio = f"{row['ratio']:,.3g} ({row['ratio_min']:,.3g} to {row['ratio_max']:,.3g})"
    return [key, what, f"{row['ours_s']:.3g} s", other, ratio, target, "yes" if reached else "**no**"]


def measure(rounds: int, large: bool) -> dict:
    """All comparisons, by the letters of the tables."""
    X, y, X_val, y_val = problem()
    K = rbf_kernel(X, gamma=GAMMA)
    K_val = rbf_kernel(X_val, X, gamma=GAMMA)
    map_against_refits("a", 1, 1)  # warm-up: LAPACK's threads start and its buffers are allocated

    def chain() -> Array:
        # An RBF kernel matrix is positive semidefinite: trusted, as by the estimator.
        return krr.predict(K_val, krr.chain(K, y, 0.2, 0.35, [10], trusted=True).coefficients)

    against_refits = {
        "a": map_against_refits("a", rounds, 5),
        "b": map_against_refits("b", rounds, 5),
        "c": chain_against_refits(rounds),
    }
    floors = {}
    for name, axes in MAPS.items():
        job = partial(krr.risk_map, K, y, K_val, y_val, *axes)
        floors[f"map ({name})"] = over_floor(job, len(axes[1]), rounds, K)
    floors["chain (c)"] = over_floor(chain, 1, rounds, K)
    sizes = [500, 1000, 2000, 4000]
    if large:
        sizes.append(10_000)
    return against_refits | {"d": floors, "e": growth(sizes)}


def main() -> None:
    """Measure, write the JSON file, print the tables."""
    parser = Parser("kernel", __doc__)
    parser.add_argument("--rounds", type=positive, default=7, help="rounds of each comparison [default: %(default)s]")
    parser.add_argument("--large", action="store_true", help="also n = 10,000")
    default = common.RESULTS / "kernel-2cores.json"
    parser.add_argument("--output", type=Path, default=default, help="JSON file [default: %(default)s]")
    parser.add_argument("--grow", nargs=2, metavar=("N", "JOB"), help="one row of (e), as JSON")
    args = parser.parse_args()
    if args.grow:
        n, job = args.grow
        if not n.isdecimal() or int(n) < 1 or job not in ("chain", "map"):
            parser.error(f"--grow wants a number of points and chain or map, not {n} {job}")
        print(json.dumps(grow(int(n), job)))
        return
    results = measure(args.rounds, args.large)
    args.output.parent.mkdir(exist_ok=True)
    record = {"hardware": hardware(), "n": N, "n_val": N_VAL, "features": FEATURES, "results": results}
    args.output.write_text(json.dumps(record, indent=1, default=float) + "\n")
    print(tables(results))


if __name__ == "__main__":
    main()

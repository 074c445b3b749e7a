"""The kernel side against scikit-learn's KernelRidge, and against LAPACK.

    python -m benchmarks.kernel            # (a) to (e), some two minutes on 2 cores
    python -m benchmarks.kernel --large    # and n = 10,000, some three more

Each comparison is paired: its two sides are timed in turn within a round, and the ratio is the median over
rounds. A map by refits would take hours, so refits are timed on a sample of its cells and scaled to all of
them. Prints a Markdown table, and writes the figures with hardware and versions as JSON.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import scipy
import scipy.linalg
import sklearn
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import rbf_kernel
from threadpoolctl import threadpool_info

from benchmarks.options import Parser, positive
from distill import krr
from distill.estimator import SelfDistilledKernelRidge
from distill.kernel.linalg import cholesky

N, N_VAL, FEATURES = 2000, 1000, 10
GAMMA = 1 / FEATURES
MAPS = {  # alphas, lams, steps
    "a": (np.linspace(0, 1, 20), np.geomspace(1e-3, 10, 10), range(1, 11)),
    "b": (np.linspace(0, 1, 50), np.geomspace(1e-3, 10, 50), range(1, 21)),
}
TARGETS = {"a": 200, "b": 5000, "c": 5, "d": 1.5}


def problem(n=N, n_val=N_VAL):
    """X (n, FEATURES), y (n,), X_val (n_val, FEATURES), y_val (n_val,): a noisy smooth function."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n + n_val, FEATURES))
    y = np.sin(X @ rng.standard_normal(FEATURES)) + 0.5 * rng.standard_normal(n + n_val)
    return X[:n], y[:n], X[n:], y[n:]


def seconds(function):
    """(seconds taken, result)."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def refit(X, y, X_val, lam, target):
    """One cell by scikit-learn: fit, and predict where the next fit's target and the risk need it."""
    model = KernelRidge(alpha=lam, kernel="rbf", gamma=GAMMA).fit(X, target)
    return model.predict(X), model.predict(X_val)


def refit_chain(X, y, X_val, lam, alpha, n_steps):
    """Predictions at X_val of a chain of `n_steps` refits."""
    target = y
    for _ in range(n_steps):
        fitted, predicted = refit(X, y, X_val, lam, target)
        target = alpha * y + (1 - alpha) * fitted
    return predicted


def estimator(**options):
    return SelfDistilledKernelRidge(kernel="rbf", gamma=GAMMA, **options)


def map_against_refits(name, rounds, cells):
    """(a), (b): a map from inputs to risks, kernel matrix included, against a refit for each of its cells."""
    X, y, X_val, y_val = problem()
    alphas, lams, steps = MAPS[name]
    rng, rows = np.random.default_rng(1), []
    for _ in range(rounds):
        ours, risks = seconds(lambda: estimator().path(X, y, alphas, lams, steps, X_val, y_val))
        per_cell = [seconds(lambda lam=lam: refit(X, y, X_val, lam, y))[0] for lam in rng.choice(lams, cells)]
        rows.append((ours, statistics.mean(per_cell) * risks.size))
    i, j, step = len(alphas) // 3, len(lams) // 2, 3
    theirs = refit_chain(X, y, X_val, lams[j], alphas[i], step)
    difference = abs(np.mean((theirs - y_val) ** 2) - risks[i, j, step - 1])
    return summary(rows) | {"cells": risks.size, "sampled": rounds * cells, "risk_difference": difference}


def chain_against_refits(rounds):
    """(c): a chain of 10 fits and its predictions, against 10 refits."""
    X, y, X_val, _ = problem()
    rows = []
    for _ in range(rounds):
        ours, mine = seconds(lambda: estimator(alpha=0.35, lam=0.2, n_steps=10).fit(X, y).predict(X_val))
        refits, theirs = seconds(lambda: refit_chain(X, y, X_val, 0.2, 0.35, 10))
        rows.append((ours, refits))
    return summary(rows) | {"prediction_difference": np.abs(mine - theirs).max()}


def floor(K, n_lams):
    """Seconds of the smaller of one LAPACK eigendecomposition and one Cholesky factorisation per lam."""
    eigh, _ = seconds(lambda: scipy.linalg.eigh(K, driver="evd", check_finite=False))
    one, _ = seconds(lambda: cholesky(K, 0.2))
    return min(eigh, n_lams * one), eigh, one


def over_floor(job, n_lams, rounds, K):
    """(d): our seconds over the floor's, K given to both."""
    rows, parts = [], []
    for _ in range(rounds):
        ours, _ = seconds(job)
        least, *both = floor(K, n_lams)
        rows.append((least, ours))  # the ratio is ours over the floor
        parts.append(both)
    eigh, one = np.median(parts, axis=0)
    result = summary(rows)
    return {
        "ours_s": result["other_s"],
        "floor_s": result["ours_s"],
        "ratio": result["ratio"],
        "ratio_range": result["ratio_range"],
        "eigh_s": eigh,
        "cholesky_s": one,
    }


def summary(rows):
    """Medians of (ours, other) in seconds and of other / ours, with the ratio's range over rounds."""
    ours, other = np.array(rows).T
    ratio = other / ours
    return {
        "ours_s": np.median(ours),
        "other_s": np.median(other),
        "ratio": np.median(ratio),
        "ratio_range": [ratio.min(), ratio.max()],
        "rounds": len(rows),
    }


def grow(n, job):
    """(e), in a process of its own: seconds, and its peak of resident memory (Linux)."""
    X, y, X_val, y_val = problem(n, 500)
    if job == "chain":
        taken, _ = seconds(lambda: estimator(alpha=0.35, lam=0.2, n_steps=10).fit(X, y).predict(X_val))
    else:
        taken, _ = seconds(lambda: estimator().path(X, y, *MAPS["a"], X_val, y_val))
    # Not getrusage's maximum, which a child process inherits from its parent.
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
    return {"n": n, "job": job, "seconds": taken, "peak_bytes": peak}


def growth(sizes):
    """(e): time and memory over n. The peak of a process with n = 10 is taken off as what is there anyway."""
    rows = []
    for job in ("chain", "map"):
        results = [
            json.loads(
                subprocess.run(
                    [sys.executable, "-m", "benchmarks.kernel", "--grow", str(n), job],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
            )
            for n in (10, *sizes)
        ]
        for row in results[1:]:
            row["arrays"] = (row["peak_bytes"] - results[0]["peak_bytes"]) / (8 * row["n"] ** 2)
            rows.append(row)
    return rows


def hardware():
    """What the figures depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor()
    blas = [f"{lib['internal_api']} {lib['version']}, {lib['num_threads']} threads" for lib in threadpool_info()]
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "scikit-learn": sklearn.__version__,
        "blas": sorted(set(blas)),
        "date": datetime.now(UTC).date().isoformat(),
    }


def table(results):
    """The figures as Markdown."""
    yes = {True: "yes", False: "**no**"}
    lines = [
        "| | what | ours | compared with | ratio, median (range) | target | reached |",
        "|---|---|---|---|---|---|---|",
    ]

    def line(key, what, ours, other, row, target, reached):
        low, high = row["ratio_range"]
        ratio = f"{row['ratio']:,.3g} ({low:,.3g} to {high:,.3g})"
        lines.append(f"| {key} | {what} | {ours:.3g} s | {other} | {ratio} | {target} | {yes[reached]} |")

    for key in ("a", "b"):
        row, shape = results[key], " × ".join(str(len(axis)) for axis in MAPS[key])
        other = f"{row['other_s']:,.0f} s, {row['cells']:,} refits, from {row['sampled']} timed"
        reached = row["ratio"] >= TARGETS[key]
        line(key, f"map of {shape}", row["ours_s"], other, row, f"≥ {TARGETS[key]:,}", reached)
    row = results["c"]
    other = f"{row['other_s']:.3g} s, 10 refits"
    line("c", "chain of 10 fits", row["ours_s"], other, row, "≥ 5", row["ratio"] >= TARGETS["c"])
    for key, row in results["d"].items():
        other = f"{row['floor_s']:.3g} s, LAPACK"
        line("d", f"{key} over its floor", row["ours_s"], other, row, "≤ 1.5", row["ratio"] <= TARGETS["d"])
    lines += ["", "| n | job | seconds | n × n arrays at the peak |", "|---|---|---|---|"]
    for row in results["e"]:
        lines.append(f"| {row['n']:,} | {row['job']} | {row['seconds']:.3g} | {row['arrays']:.2f} |")
    return "\n".join(lines)


def main():
    parser = Parser("kernel", __doc__)
    parser.add_argument("--rounds", type=positive, default=7, help="of each comparison [default: %(default)s]")
    parser.add_argument("--large", action="store_true", help="also n = 10,000")
    default = Path(__file__).parent / "results" / "kernel-2cores.json"
    parser.add_argument("--output", type=Path, default=default, help="JSON file [default: %(default)s]")
    parser.add_argument("--grow", nargs=2, metavar=("N", "JOB"), help="one row of (e), as JSON")
    args = parser.parse_args()
    if args.grow:
        n, job = args.grow
        if not n.isdecimal() or int(n) < 1 or job not in ("chain", "map"):
            parser.error(f"--grow wants a number of points and chain or map, not {n} {job}")
        print(json.dumps(grow(int(n), job)))
        return
    X, y, X_val, y_val = problem()
    K, K_val = rbf_kernel(X, gamma=GAMMA), rbf_kernel(X_val, X, gamma=GAMMA)
    map_against_refits("a", 1, 1)  # LAPACK's threads start and its buffers are allocated
    results = {
        "a": map_against_refits("a", args.rounds, 5),
        "b": map_against_refits("b", args.rounds, 5),
        "c": chain_against_refits(args.rounds),
        "d": {
            f"map ({name})": over_floor(
                lambda axes=axes: krr.risk_map(K, y, K_val, y_val, *axes), len(axes[1]), args.rounds, K
            )
            for name, axes in MAPS.items()
        }
        | {
            # K is an RBF kernel's: trusted, as the estimator does.
            "chain (c)": over_floor(
                lambda: krr.predict(K_val, krr.chain(K, y, 0.2, 0.35, [10], trusted=True).coefficients),
                1,
                args.rounds,
                K,
            )
        },
        "e": growth([500, 1000, 2000, 4000, *([10_000] if args.large else [])]),
    }
    args.output.parent.mkdir(exist_ok=True)
    record = {"hardware": hardware(), "n": N, "n_val": N_VAL, "features": FEATURES, "results": results}
    args.output.write_text(json.dumps(record, indent=1, default=float) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()

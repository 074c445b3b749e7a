"""Results of the Python interface, as hashes: ``tests.same_results`` runs this file in two checkouts.

``python -P tests/python_results.py PART FOLDER`` writes FOLDER/answers.json. The checkout is the current folder, and
PYTHONPATH names it.
"""

import hashlib
import json
import math
import sys
from pathlib import Path

import numpy as np


def hash_array(array) -> str:
    """Data type, shape and SHA-256 of the bytes of an array or number."""
    array = np.asarray(array)
    return f"{array.dtype}{array.shape} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]}"


def run_from_python(out: Path) -> dict[str, str]:
    """A chain on arrays with a network that the configuration does not know."""
    import torch
    from torch import nn

    import distill

    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (400, 12, 12), np.uint8)
    y = np.arange(400) % 4
    x[:, :6] //= 1 + y[:, None, None].astype(np.uint8)

    def network() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)
        )

    config = distill.Config(
        train=distill.TrainConfig(max_epochs=2, batch_size=32, lr=1e-2),
        chain=distill.ChainConfig(alpha=(0.3, 0.6), distillation_steps=2),
        run=distill.RunConfig(output=str(out / "run"), device="cpu", threads=1),
    )
    source = distill.from_arrays(x[:300], y[:300], x[300:], y[300:], classes=["a", "b", "c", "d"])
    results = distill.run(config, source, network)
    model = distill.load_model(out / "run" / "seed_1" / "alpha_0.6" / "step_2", network)
    logits = model(torch.from_numpy(x[:5, None]))
    return {"accuracies": str([result.test_acc for result in results]), "logits": hash_array(logits.detach().numpy())}


def problem(n: int = 60, q: int = 25):
    """A seeded kernel problem: K (n, n), y (n,), Y (n, 2), K_new (q, n) and the targets there."""
    rng = np.random.default_rng(11)
    X, Z = rng.normal(size=(n, 3)), rng.normal(size=(q, 3))

    def kernel(A, B):
        return np.exp(-0.4 * ((A[:, None] - B) ** 2).sum(-1))

    def truth(A):
        return np.sin(A[:, 0]) + A[:, 1] * A[:, 2]

    y = truth(X) + 0.3 * rng.normal(size=n)
    return kernel(X, X), y, np.column_stack([y, y**2]), kernel(Z, X), truth(Z)


def functions(_: Path) -> dict[str, str]:
    """The functions of ``distill.krr``."""
    from distill import krr

    K, y, Y, K_new, target = problem()
    spectrum = krr.decompose(K)
    steps = [1, 2, 5, 10**6, math.inf]
    B = krr.diagonals(spectrum.d, 0.2, 0.35, steps)
    duals = krr.dual_coefficients(spectrum, Y, 0.2, [0.2, 0.4, 0.6], [1, 2, 3])
    powers = krr.power_coefficients(spectrum, y, 0.2, 5)
    residuals = target - krr.predict(K_new, powers)
    arrays = {
        "eigenvalues": spectrum.d,
        "eigenvectors": spectrum.V,
        "diagonals": B,
        "diagonals at alpha 0": krr.diagonals(spectrum.d, 0.01, 0.0, [1, 3, 9]),
        "diagonals by recursion": krr.diagonals_by_recursion(spectrum.d, [0.2, 0.1], [0.3, 0.6], 6),
        "limit diagonal": krr.limit_diagonal(spectrum.d, 0.2, 0.35),
        "convergence bound": krr.convergence_bound(spectrum.d, 0.2, 0.35, [1, 2, 9]),
        "fitted values": krr.fitted_values(spectrum, Y, B),
        "dual coefficients": duals,
        "predictions": krr.predict(K_new, duals),
        "ratios": krr.sparsification_ratios(B),
        "degrees of freedom": krr.degrees_of_freedom(B),
        "cross-validation": krr.generalised_cross_validation(spectrum, y, B),
        "power coefficients": powers,
        "gcv residuals": krr.gcv_residuals(spectrum, y, 0.2, 4),
        "joint weights": krr.joint_weights(residuals)[0],
        "joint risk": krr.joint_weights(residuals)[1],
    }
    arrays |= {f"greedy {name}": a for name, a in zip(("alphas", "risks"), krr.greedy_alphas(residuals), strict=True)}
    for solver in ("auto", "eigh", "cholesky"):
        arrays[f"chain by {solver}"] = krr.chain(K, Y, 0.2, [0.2, 0.5], [1, 2, 4], solver=solver).coefficients
        arrays[f"limit by {solver}"] = krr.chain(K, y, 0.2, 0.5, [3, math.inf], solver=solver).coefficients
    for solver in ("auto", "eigh", "cholesky", "tridiagonal"):
        arrays[f"risk map by {solver}"] = krr.risk_map(
            K, y, K_new, target, [0.0, 0.3, 1.0], [0.01, 0.2, 3.0], [1, 2, 6], solver=solver
        )
    return {name: hash_array(array) for name, array in arrays.items()}


def estimators(_: Path) -> dict[str, str]:
    """The scikit-learn estimators."""
    from distill.estimator import SelfDistilledKernelRidge, SelfDistilledKernelRidgeClassifier

    rng = np.random.default_rng(3)
    X, Z = rng.normal(size=(80, 4)), rng.normal(size=(20, 4))
    y = np.sin(X[:, 0]) + 0.3 * rng.normal(size=80)
    settings = (
        {"alpha": 0.35, "lam": 0.2, "n_steps": 6, "kernel": "rbf", "gamma": 2.0},
        {"alpha": [0.2, 0.6], "lam": 0.2, "n_steps": 3, "kernel": "laplacian"},
        {"alpha": 0.5, "lam": 0.2, "n_steps": math.inf, "kernel": "rbf"},
        {"alpha": "auto", "lam": 2.0, "n_steps": 3, "kernel": "rbf"},
        {"alpha": "auto", "lam": 0.5, "n_steps": 3, "validation_fraction": 0.25, "random_state": 1},
    )
    answers = {}
    for number, options in enumerate(settings):
        model = SelfDistilledKernelRidge(**options).fit(X, y)
        answers[f"regression {number}"] = hash_array(model.predict(Z))
        classifier = SelfDistilledKernelRidgeClassifier(**options).fit(X, (y > 0) + (y > 0.7))
        answers[f"classification {number}"] = hash_array(classifier.decision_function(Z))
    weighted = SelfDistilledKernelRidge(alpha=0.3, n_steps=3, kernel="rbf").fit(X, y, sample_weight=np.arange(80) % 3)
    staged = np.array(list(weighted.staged_predict(Z)))
    risk = SelfDistilledKernelRidge(kernel="rbf").path(X, y, [0.0, 0.5], [0.1, 1.0], [1, 2, 3], Z, np.sin(Z[:, 0]))
    return {**answers, "weighted, staged": hash_array(staged), "path": hash_array(risk)}


def twin(_: Path) -> dict[str, str]:
    """The forecasts of the kernel twin."""
    try:
        from distill.kernel.twin import forecast, make_twin

        teacher_argument = "teacher_outputs"
    except ImportError:  # in 2e86658
        from distill.twin import forecast, make_twin

        teacher_argument = "teacher"

    rng = np.random.default_rng(4)
    X, Z = rng.normal(size=(70, 6)), rng.normal(size=(30, 6))
    truth = np.eye(3)[(Z[:, 0] > 0).astype(int) + (Z[:, 1] > 0.5)]
    given = np.eye(3)[(X[:, 0] > 0).astype(int) + (X[:, 1] > 0.5)]
    given[::5] = np.roll(given[::5], 1, axis=1)
    teacher = 0.6 * given + 0.4 / 3
    answers = {}
    cases = (("linear", {}), ("rbf", {}), ("rbf", {teacher_argument: teacher}), ("rbf", {"lam": 0.3}))
    for number, (kernel, options) in enumerate(cases):
        seen = forecast(make_twin(kernel, X, given, Z, truth, **options), 4)
        arrays = {"lam": seen.twin.lam, "error": seen.error, "accuracy": seen.accuracy, "freedom": seen.freedom}
        for name, schedule in seen.schedules.items():
            arrays |= {f"{name} alphas": schedule.alphas, f"{name} error": schedule.error}
        answers |= {f"{number} {name}": hash_array(array) for name, array in arrays.items()}
    return answers


def main() -> None:
    """Compute the part with the checkout that is imported, and write hashes to answers.json."""
    import distill

    if Path.cwd() != Path(distill.__file__).parents[1]:
        sys.exit(f"imported {distill.__file__}, not the checkout in {Path.cwd()}")
    parts = {"run": run_from_python, "functions": functions, "estimators": estimators, "twin": twin}
    folder = Path(sys.argv[2])
    (folder / "answers.json").write_text(json.dumps(parts[sys.argv[1]](folder)))


if __name__ == "__main__":
    main()

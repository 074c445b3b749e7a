"""Compare the results of two checkouts, bit for bit: ``python -m tests.same_results REFERENCE_CHECKOUT``.

Each case is a small run of a few seconds. Both checkouts run it in processes of their own, with one thread, and leave
models, CSV files, labels and estimates that must be equal. Seconds, and columns that only the new checkout has, may
differ. A line per case is printed; the exit status is 1 if any case differs. ``--cache DIR`` keeps the reference's
results for the next time.
"""

import argparse
import csv
import fnmatch
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from tests.python_results import hash_array

HERE = Path(__file__).resolve().parents[1]
PYTHON_RESULTS = HERE / "tests" / "python_results.py"
OLD_RUN = HERE / "tests" / "fixtures" / "run-2e86658"

TINY = (
    "--resnet 8 --width 2 --max-epochs 2 --batch-size 20 --lr 1e-2 --distillation-steps 2 --threads 1 --device cpu "
    "--output {out}"
)
DIGITS = f"self_distiller.py --dataset digits --train-size 120 --val-size 60 --test-size 60 {TINY}"
CIFAR = f"self_distiller.py --dataset cifar10 --data-dir {{cifar}} {TINY}"
TORCHVISION = (
    "self_distiller.py --dataset cifar10 --data-dir {cifar} --train-size 40 --test-size 20 --max-epochs 1 "
    "--batch-size 20 --distillation-steps 1 --threads 1 --device cpu --output {out}"
)
TOY = "krr_toy.py --no-figures --csv {out}/losses.csv"

# The commands of each case, run one after the other. Words in braces are paths.
CASES: dict[str, tuple[str, ...]] = {
    "teacher": (f"{DIGITS} --distillation-steps 0",),
    "grid": (f"{DIGITS} --alpha 0 0.3 1 --seed 1 2 --val-size 0",),
    "auto": (f"{DIGITS} --alpha auto 0.3 --seed 1 2 --alpha-schedule 0.3 auto",),
    "schedule": (f"{DIGITS} --alpha-schedule 0.2 0.6 --alpha-schedule 0.2 0.9 --alpha 0.2",),
    "preview": (
        f"{DIGITS} --alpha preview",
        f"{DIGITS} --alpha 0.5 auto",
        "-m distill.preview {out} --size 80",
        "-m distill.preview {out} --lam 0.1",
    ),
    "jobs": (f"{DIGITS} --alpha 0 0.5 auto --seed 1 2 --jobs 2",),
    "teacher-ckpt": (
        f"{DIGITS} --distillation-steps 0",
        f"{DIGITS} --teacher-ckpt {{out}}/seed_1/step_0/model.pt --teacher-step 3 --output {{out}}-more",
    ),
    "teacher-best": (f"{DIGITS} --teacher-select best --max-epochs 4 --alpha 0 auto",),
    "noise-symmetric": (f"{DIGITS} --label-noise 0.4 --alpha 0 auto",),
    "noise-pairflip": (f"{DIGITS} --label-noise 0.3 --label-noise-kind pairflip --seed 7",),
    "ce": (f"{DIGITS} --loss ce --optimizer adamw --weight-decay 0.01 --lr-schedule cosine --warmup-epochs 1",),
    "ce-temperature": (f"{DIGITS} --loss ce --temperature 2.5 --reg l2 --alpha 0.3 auto",),
    "kl": (f"{DIGITS} --loss kl --optimizer sgd --lr-schedule onecycle --reg none --alpha 0 0.4",),
    "kl-temperature": (f"{DIGITS} --loss kl --temperature 4 --optimizer sgd --momentum 0 --lr-schedule cosine",),
    "sgd": (f"{DIGITS} --optimizer sgd --weight-decay 1e-3 --reg l2 --reg-coef 1e-3",),
    "bf16": (f"{DIGITS} --precision bf16",),
    "deterministic": (f"{DIGITS} --deterministic --alpha 1 0",),
    "quickstart": ("self_distiller.py --config configs/quickstart.toml --fast-dev-run --threads 1 --output {out}",),
    "cifar": (f"{CIFAR} --width 4 --val-size 50 --label-noise 0.2",),
    "cifar-no-augment": (f"{CIFAR} --resnet 14 --no-augment --distillation-steps 1",),
    "resnet-18-imagenet": (f"{TORCHVISION} --resnet 18",),
    "resnet-18-cifar": (f"{TORCHVISION} --resnet 18 --stem cifar --optimizer sgd",),
    "resnet-18-bf16": (f"{TORCHVISION} --resnet 18 --stem cifar --precision bf16 --distillation-steps 0",),
    "resnet-50": (f"{TORCHVISION} --resnet 50 --fast-dev-run --batch-size 8 --distillation-steps 0",),
    "paper": (
        "self_distiller.py --data-dir {cifar} --seed 1 --deterministic --max_epochs 75 --batch-size 4 --alpha 0.6 "
        "--distillation-steps 1 --resnet 18 --lr 1e-4 --fast-dev-run --threads 1 --output {out}",
    ),
    "imagefolder": (
        f"self_distiller.py --dataset imagefolder --data-dir {{folder}} --image-size 12 {TINY} --batch-size 6",
    ),
    "resume-old": ("cp -r {old_run} {out}/run", "self_distiller.py --resume {out}/run"),
    "python": ("{python} run {out}",),
    "functions": ("{python} functions {out}",),
    "estimators": ("{python} estimators {out}",),
    "twin": ("{python} twin {out}",),
    "krr": (f"{TOY}",),
    "krr-auto": (f"{TOY} --alpha auto 0.35 -0.6 --alpha-schedule 0.2 0.4 --distillation-steps 7",),
    "krr-million": (f"{TOY} --distillation-steps 1000000 --lam 0.01",),
    "krr-matern": (f"{TOY} --kernel matern32 --gamma 20 --noise 0.3 --n 50 --seed 1 --alpha auto 0.5",),
    "krr-others": tuple(
        f"krr_toy.py --no-figures --csv {{out}}/{kernel.split()[0]}.csv --kernel {kernel} --lam 0.05"
        for kernel in ("linear", *(f"{name} --gamma 2" for name in ("laplacian", "matern12", "matern52", "polynomial")))
    ),
    "krr-data": (f"{TOY} --data {{points}} --lam 0.05 --alpha auto 0.3 1",),
    "krr-held-out": (f"{TOY} --data {{many}} --lam 0.05 --alpha auto 0.3 1 --seed 3",),
    "krr-figures": ("krr_toy.py --output {out}/figures --csv {out}/losses.csv --dpi 40",),
}

Outcome = dict[str, str]  # "seed_1/step_0/metrics.csv: row 1, lr": "0.01"; tensors and arrays by their SHA-256


def write_data(root: Path) -> dict[str, str]:
    """Write the data sets under ``root``; return the paths by the words that stand for them in ``CASES``."""
    import numpy as np

    from tests.conftest import write_tiny_cifar10, write_tiny_imagefolder

    write_tiny_cifar10(root / "cifar")
    write_tiny_imagefolder(root / "folder")
    rng = np.random.default_rng(5)
    for name, n in (("points", 30), ("many", 240)):
        x = rng.uniform(-1, 1, n)
        y = np.sin(4 * x) + 0.3 * rng.normal(size=n)
        lines = ["x,y", *(f"{a!r},{b!r}" for a, b in zip(x.tolist(), y.tolist(), strict=True))]
        (root / f"{name}.csv").write_text("\n".join(lines) + "\n")
    paths = {"cifar": "cifar", "folder": "folder", "points": "points.csv", "many": "many.csv"}
    found = {word: str(root / path) for word, path in paths.items()}
    return {**found, "python": str(PYTHON_RESULTS), "old_run": str(OLD_RUN)}


# ---- running a case and reading what it leaves


def run_case(checkout: Path, commands: tuple[str, ...], paths: Mapping[str, str], out: Path) -> Outcome:
    """Run the commands in a checkout and read what they leave in ``out``. Raises RuntimeError if one fails."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = os.environ | one_thread | {"MPLBACKEND": "Agg", "PYTHONPATH": str(checkout)}
    outcome = {}
    out.mkdir(parents=True)
    for number, command in enumerate(commands):
        words = [word.format(out=out, **paths) for word in command.split()]
        if words[0] == "cp":
            subprocess.run(words, check=True)
            continue
        safe = ["-P"] if words[0] == paths["python"] else []  # else tests/ would be the first place to import from
        if words[0] == "self_distiller.py" and number == 0:
            out.rmdir()
        done = subprocess.run(
            [sys.executable, *safe, *words], cwd=checkout, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
        if words[0] == "krr_toy.py":
            outcome |= {f"table {number}, line {i}": line for i, line in enumerate(table_lines(done.stdout))}
        if words[:2] == ["-m", "distill.preview"]:
            printed = re.findall(r"-?\d+\.\d+", done.stdout.replace(str(out), ""))
            outcome |= {f"page {number}, number {i}": text for i, text in enumerate(printed)}
    folders = (out, out.with_name(f"{out.name}-more"))
    return outcome | {key: value for folder in folders for key, value in read_folder(folder).items()}


def table_lines(text: str) -> list[str]:
    """The lines of krr_toy.py's table that begin with a fit's number or the sign of the limit."""
    return [line for line in text.splitlines() if re.match(r"\s*(\d[\d,]*|∞)\s{2,}", line)]


def read_folder(folder: Path) -> Outcome:
    """Everything in a folder that must be equal."""
    readers = {
        "model.pt": read_model,
        "result.json": read_result,
        "labels.npz": read_arrays,
        "answers.json": lambda file: json.loads(file.read_text()),
    }
    found = {}
    for file in sorted(folder.rglob("*")):
        reader = read_table if file.suffix == ".csv" else readers.get(file.name)
        if reader is not None:
            name = f"{folder.name}/{file.relative_to(folder)}"
            found |= {f"{name}: {key}": str(value) for key, value in reader(file).items()}
    return found


def read_model(file: Path) -> Outcome:
    """The SHA-256 of the file, and of each tensor in it, to tell which one differs."""
    import torch

    tensors = torch.load(file, map_location="cpu", weights_only=True)
    hashes = {name: hash_array(tensor.numpy()) for name, tensor in tensors.items()}
    return {**hashes, "whole file": hashlib.sha256(file.read_bytes()).hexdigest()}


def read_result(file: Path) -> Outcome:
    """A model's lineage, calibration and estimate; its metrics are in results.csv."""
    content = json.loads(file.read_text())
    parent = (content["parent"] or {}).get("sha256")
    kept = {key: json.dumps(content.get(key)) for key in ("auto", "selected_epoch", "reliability", "model_sha256")}
    return {**kept, "parent": str(parent)}


def read_table(file: Path) -> Outcome:
    """The fields of a CSV file, as they are written."""
    with open(file, newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    fields = {
        f"row {number}, {column}": text
        for number, row in enumerate(rows, 1)
        for column, text in row.items()
        if column != "seconds"
    }
    return {**fields, "rows": str(len(rows))}


def read_arrays(file: Path) -> Outcome:
    """The SHA-256 of each array in an npz file."""
    import numpy as np

    with np.load(file) as arrays:
        return {name: hash_array(arrays[name]) for name in arrays.files}


def differences(reference: Outcome, here: Outcome) -> list[str]:
    """What differs, a line each: values of the reference that are other ones here, and models that only one has."""
    found = [
        f"{key}: {value} is {here.get(key, 'missing')}" for key, value in reference.items() if here.get(key) != value
    ]
    models = [key for key in here if key.endswith("model.pt: whole file") and key not in reference]
    return found + [f"{key}: only here" for key in models]


# ---- the program


def cached(cache: Path | None, key: str, make: Callable[[], Outcome]) -> Outcome:
    """The outcome under this key, or a new one, which is kept."""
    if cache is None:
        return make()
    file = cache / f"{key}.json"
    if not file.exists():
        outcome = make()
        cache.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(outcome, indent=1))
        temporary.replace(file)
    return json.loads(file.read_text())


def key_of(reference: Path, name: str, data: Path) -> str:
    """Case, commands, data, the reference's commit, versions and processor: what a cached outcome depends on."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=reference, capture_output=True, text=True, check=True)
    versions = [version(package) for package in ("torch", "torchvision", "numpy", "scipy", "scikit-learn")]
    files = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(data.rglob("*")) if file.is_file()]
    if "{python}" in CASES[name][0]:
        files.append(hashlib.sha256(PYTHON_RESULTS.read_bytes()).hexdigest())
    if "{old_run}" in CASES[name][0]:
        files += [
            hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(OLD_RUN.rglob("*")) if file.is_file()
        ]
    facts = [CASES[name], commit.stdout, versions, platform.processor(), platform.node(), files]
    return f"{name}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"


def compare(name: str, reference: Path, cache: Path | None, paths: Mapping[str, str], root: Path) -> list[str]:
    """Run one case in both checkouts; return what differs."""

    def run(checkout: Path, folder: str) -> Outcome:
        out = root / folder / name
        try:
            return run_case(checkout, CASES[name], paths, out)
        finally:
            shutil.rmtree(root / folder, ignore_errors=True)

    try:
        before = cached(cache, key_of(reference, name, Path(paths["cifar"]).parent), lambda: run(reference, "before"))
        return differences(before, run(HERE, "here"))
    except RuntimeError as error:
        return [str(error)]


def main() -> int:
    """Compare this checkout with the reference; returns 1 if a case differs."""
    parser = argparse.ArgumentParser("tests.same_results", description=__doc__.splitlines()[0])
    parser.add_argument("reference", type=Path, metavar="REFERENCE_CHECKOUT")
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="NAME", help=f"cases (* allowed): {', '.join(CASES)}"
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder for the reference's results")
    args = parser.parse_args()
    names = [name for name in CASES if any(fnmatch.fnmatch(name, pattern) for pattern in args.only)]
    failures = 0
    with tempfile.TemporaryDirectory() as root:
        paths = write_data(Path(root) / "data")
        for name in names:
            start = time.perf_counter()
            found = compare(name, args.reference.resolve(), args.cache, paths, Path(root))
            failures += bool(found)
            print(f"{'differs' if found else 'same':8}{name}  ({time.perf_counter() - start:.0f} s)", flush=True)
            for line in found[:5]:
                print(f"        {line}", flush=True)
            if len(found) > 5:
                print(f"        and {len(found) - 5} more", flush=True)
    print(f"{len(names) - failures} of {len(names)} cases are the same")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())

"""What sharing a run directory costs and gains: seconds of a grid of small models, started in several ways in turn.

    python -m benchmarks.sharing                                # 40 models of about a second
    python -m benchmarks.sharing --models 200 --reference DIR   # also as another checkout trains it

One process is compared with the other checkout (what claims cost), and two commands on one directory with ``--jobs 2``.
``--work`` and ``--status`` are timed on a finished directory. Leave the machine alone meanwhile.
"""

import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.options import Parser, positive

ROOT = Path(__file__).parents[1]
GRID = "--dataset digits --resnet 8 --width 4 --batch-size 32 --lr 0.01 --distillation-steps 1 --device cpu --threads 1"


def seconds(checkout: Path, *commands: list[str]) -> float:
    """The time until the last of several commands, which begin together, has ended."""
    started = time.perf_counter()
    running = [
        subprocess.Popen([sys.executable, "self_distiller.py", *words], cwd=checkout, stdout=subprocess.DEVNULL)
        for words in commands
    ]
    if any(process.wait() for process in running):
        raise SystemExit("a command failed")
    return time.perf_counter() - started


def main() -> None:
    """Print the median seconds of each way, and the ratios of those that are compared."""
    parser = Parser("sharing", __doc__)
    parser.add_argument("--models", type=positive, default=40, help="models of the grid [default: 40]")
    parser.add_argument("--epochs", type=positive, default=8, help="epochs of each [default: 8, about a second]")
    parser.add_argument("--rounds", type=positive, default=3, help="rounds [default: 3]")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="another checkout")
    options = parser.parse_args()
    alphas = [str(i / options.models) for i in range(options.models)]
    words = [*shlex.split(GRID), "--max-epochs", str(options.epochs), "--alpha", *alphas]
    times: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            out = {name: [*words, "--output", f"{folder}/{name}"] for name in ("reference", "one", "jobs", "two")}
            if options.reference is not None:
                times.setdefault("reference", []).append(seconds(options.reference, out["reference"]))
            times.setdefault("one process", []).append(seconds(ROOT, out["one"]))
            times.setdefault("--jobs 2", []).append(seconds(ROOT, [*out["jobs"], "--jobs", "2"]))
            times.setdefault("two commands", []).append(seconds(ROOT, out["two"], out["two"]))
            times.setdefault("--work, finished", []).append(seconds(ROOT, ["--work", f"{folder}/one"]))
            times.setdefault("--status", []).append(seconds(ROOT, ["--status", f"{folder}/one"]))
    for name, found in times.items():
        print(f"{name:18}{statistics.median(found):8.2f} s ({min(found):.2f} to {max(found):.2f})")
    for name, other in (("one process", "reference"), ("two commands", "--jobs 2")):
        if other in times:
            ratios = [a / b for a, b in zip(times[name], times[other], strict=True)]
            print(f"{name} / {other}: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()

"""The runs that are disturbed, each of about a second, and the faults that are tried in them."""

import random
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.crash.inject.sitecustomize import READ

ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EROFS", "ESTALE")
DIGITS = (
    "--dataset digits --train-size 40 --test-size 40 --resnet 8 --width 2 --max-epochs 2 --batch-size 8 --lr 0.01 "
    "--distillation-steps 1 --device cpu --threads 1 --output {out}"
)


@dataclass(frozen=True)
class Scenario:
    """A program and its options; ``{out}`` stands for the folder that it writes to."""

    script: str
    options: str
    workers: bool = False  # it starts processes

    def words(self, out: Path) -> list[str]:
        """The script and its options."""
        return [self.script, *(word.format(out=out) for word in shlex.split(self.options))]


SCENARIOS = {
    "grid": Scenario("self_distiller.py", f"{DIGITS} --alpha 0 0.5 --seed 1 2"),
    "auto": Scenario("self_distiller.py", f"{DIGITS} --alpha auto --val-size 20 --label-noise 0.25"),
    "best": Scenario("self_distiller.py", f"{DIGITS} --teacher-select best --val-size 20 --max-epochs 3 --alpha 0.3"),
    "jobs": Scenario("self_distiller.py", f"{DIGITS} --alpha 0 0.5 --seed 1 2 --jobs 2", workers=True),
    "kernel": Scenario("krr_toy.py", "--output {out}/figures --csv {out}/losses.csv --dpi 40"),
}


def plans(scenario: Scenario, calls: list[str], seconds: float, seed: int) -> list[tuple[str, ...]]:
    """What to try, in passes, each in a random order: a kill at every change and an error at every call of the run.

    Each pass takes another kind of kill and of error for a call, until all have been tried. ``calls`` are those of an
    undisturbed run, which takes ``seconds``. A plan holds the fault of the first run of the command, that of the
    second, ... A fault is ``ACTION:COUNT``, or ``after:SECONDS`` for a kill of all processes then.
    """
    draw = random.Random(seed)
    actions = ("kill", "worker", "parent", "group", "power") if scenario.workers else ("kill", "power")
    changes = [count for count, call in enumerate(calls, start=1) if call.split()[1] != READ]
    found = []
    for turn in range(len(ERRORS)):
        kills = [f"{actions[(count + turn) % len(actions)]}:{count}" for count in changes if turn < len(actions)]
        errors = [f"{ERRORS[(count + turn) % len(ERRORS)]}:{count}" for count in range(1, len(calls) + 1)]
        again = [(draw.choice(kills), draw.choice(kills + errors)) for _ in range(len(kills) // 3)]
        timed = [(f"after:{draw.uniform(0, seconds):.3f}",) for _ in range(len(kills) // 6)]
        one_pass = [(fault,) for fault in kills + errors] + again + timed
        draw.shuffle(one_pass)
        found += one_pass
    return found

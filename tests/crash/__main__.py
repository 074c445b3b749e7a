"""Stop programs at every file operation, repeat the command, compare: ``python -m tests.crash --trials 100``.

Each trial disturbs one run: a kill -9, a power cut or an error of the disk at a given open, write, fsync, rename, link,
unlink or mkdir, an error at an open for reading, or a kill at a random time; of a worker, the parent alone or all. Then
the same command runs again. The results must equal those of an undisturbed run to the bit, without a stray file, a
finished model that is written again, a half-written file in between or a process left behind; an error of the disk is
one line and status 2, or a note.

Prints a line per scenario, then each failure with the command that repeats it. Exit status 1 if there is one. Most
trials fork this process, which has loaded torch; every tenth starts a new interpreter. Linux only.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # pytest adds it too

from tiny import contents

from distill.reporting.verify import verify
from tests.crash import checks
from tests.crash.processes import preload, run_program
from tests.crash.scenarios import SCENARIOS, plans


class Reference:
    """An undisturbed run of a scenario, whose results all others must have."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.scenario = SCENARIOS[name]
        self.root = root
        out = self.out("reference")
        started = time.monotonic()
        outcome = run_program(self.scenario.words(out), out.parent, "", forked=True)
        self.seconds = time.monotonic() - started
        if outcome.status != 0:
            raise RuntimeError(f"{name} ends with {outcome.status} without any fault: {outcome.err}")
        self.calls = outcome.calls
        self.contents = self.read(out)
        self.files = checks.files(out)

    def out(self, trial: str) -> Path:
        """The folder that a trial writes to."""
        folder = self.root / f"{self.name}-{trial}"
        folder.mkdir(parents=True)
        return folder / "run"

    def call(self, fault: str) -> str:
        """The call at which a fault happens, if the calls are those of the undisturbed run."""
        count = fault.partition(":")[2]
        return self.calls[int(count) - 1] if count.isdigit() and int(count) <= len(self.calls) else ""

    def read(self, out: Path) -> dict[str, object]:
        """The contents of all files that must be equal: forks draw no figures."""
        return {name: content for name, content in contents(out).items() if not name.endswith((".pdf", ".png", ".svg"))}

    def verified(self, out: Path) -> list[str]:
        """What --verify finds: a line per problem."""
        if self.scenario.script == "krr_toy.py" or not (out / "config.toml").exists():
            return []
        return [f"--verify: {line}" for line in verify(out)[0].splitlines()[:-1]]

    def trial(self, name: str, faults: tuple[str, ...], forked: bool) -> list[str]:
        """Disturb one run, then repeat its command until it ends; returns what is wrong."""
        out = self.out(name)
        words = self.scenario.words(out)
        found = []
        finished: dict[str, checks.Stamp] = {}
        for fault in [*faults, ""]:
            action, _, value = fault.partition(":")
            timed = action == "after"
            before = frozenset(checks.files(out.parent))
            outcome = run_program(words, out.parent, "" if timed else fault, forked, float(value) if timed else None)
            found += checks.how_it_ended(fault, outcome, self.scenario.workers, before)
            found += checks.half_written(out)
            now = checks.finished_models(out)
            found += checks.trained_again(finished, now)
            finished = now
            found += [line for line in self.verified(out) if not line.startswith("--verify: missing: ")]
            if outcome.status == 0 and not fault:
                found += checks.differences(self.contents, self.read(out), self.files, checks.files(out))
                found += self.verified(out)
                found += [f"{entry} is outside" for entry in checks.files(out.parent) if entry.split("/")[0] != "run"]
                return found
            if not fault and outcome.status != 0:
                return [*found, f"repeated, it ends with {outcome.status}"]
        return found


def disturb(reference: Reference, chosen: list[tuple[str, ...]], keep: bool, fresh: bool) -> list[str]:
    """Run trials of a scenario and print a line; returns the failures, a text of several lines each."""
    failures = []
    counts = Counter(fault.partition(":")[0] for plan in chosen for fault in plan)
    started = time.monotonic()
    for number, faults in enumerate(chosen):
        forked = not (fresh or number % 10 == 9)
        found = reference.trial(str(number), faults, forked)
        if found:
            command = f"python -m tests.crash --scenario {reference.name} --faults {' '.join(faults)}"
            failures.append("\n    ".join([f"{command}    {reference.call(faults[0])}", *found[:6]]))
            print(f"FAILED  {failures[-1]}", file=sys.stderr, flush=True)
        if not (keep and found):
            for path in reference.root.glob(f"{reference.name}-{number}*"):  # with its logs
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    print(
        f"{reference.name:8}{len(chosen)} trials of {len(reference.calls)} calls ({kinds}), {len(failures)} failed, "
        f"{time.monotonic() - started:.0f} s",
        flush=True,
    )
    return failures


def main(argv: list[str] | None = None) -> int:
    """Run the chosen trials; returns the exit status."""
    parser = argparse.ArgumentParser("tests.crash", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="per scenario, 0 for all [default: 20]")
    parser.add_argument("--scenario", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--seed", type=int, default=0, help="of the order of the trials [default: 0]")
    parser.add_argument("--faults", nargs="+", metavar="FAULT", help="one trial with these, such as kill:37 EIO:4")
    parser.add_argument("--fresh", action="store_true", help="a new interpreter for every run")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the folders of failed trials here")
    options = parser.parse_args(argv)
    preload()
    failures = []
    with tempfile.TemporaryDirectory() as temporary:
        root = options.keep or Path(temporary)
        for name in options.scenario:
            reference = Reference(name, root)
            if options.faults:
                chosen = [tuple(options.faults)]
            else:
                every = plans(reference.scenario, reference.calls, reference.seconds, options.seed)
                chosen = every[: options.trials or len(every)]
            failures += disturb(reference, chosen, options.keep is not None, options.fresh)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

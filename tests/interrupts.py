"""Trials of signals at random moments: ``python -m tests.interrupts --trials 60``. None may hang or leave a process."""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAINING = ["--dataset", "digits", "--train-size", "200", "--test-size", "100", "--resnet", "8", "--width", "4"]
TRAINING += ["--max-epochs", "1000", "--batch-size", "50", "--threads", "1", "--distillation-steps", "1"]
TRAINING += ["--alpha", "0", "0.5", "--jobs", "2", "--device", "cpu"]
PROGRAMS = {
    "self_distiller": [sys.executable, "self_distiller.py", *TRAINING, "--output"],
    "krr_toy": [sys.executable, "krr_toy.py", "--dpi", "300", "--output"],
    "preview": [sys.executable, "-m", "distill.preview"],
}


def processes_of(session: int) -> list[int]:
    """The living processes of a session, by /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, its_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:  # it has ended
                continue
            if int(its_session) == session and state != "Z":
                found.append(int(entry.name))
    return found


def interrupt(program: str, output: Path, delay: float, signals: list[tuple[float, int]], group: bool) -> str | None:
    """Start a program, send it signals (seconds after the last one, number); returns what went wrong, if anything."""
    with subprocess.Popen(
        [*PROGRAMS[program], str(output)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a background shell ignores it
    ) as process:
        time.sleep(delay)
        for pause, number in signals:
            time.sleep(pause)
            if process.poll() is None:
                (os.killpg if group else os.kill)(process.pid, number)
        try:
            said = process.communicate(timeout=30)[1]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return "it hangs"
    time.sleep(0.3)  # workers end after their parent
    left = processes_of(process.pid)
    if left:
        os.killpg(process.pid, signal.SIGKILL)
        return f"it left the processes {left}"
    if "Traceback" in said and not re.search(rf'"{ROOT}/.*", line [1-9]', said):
        return None  # the interpreter itself was starting
    early = {-signal.SIGTERM, -signal.SIGHUP}  # before modules are loaded
    expected = {128 + number for _, number in signals} | early | {0, 2}
    if process.returncode not in expected or "Traceback" in said or said.count("\n") > 1:
        return f"status {process.returncode}: {said}"
    return None


def main() -> int:
    """Run the trials; returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    failures = 0
    for trial in range(args.trials):
        program = rng.choice([*["self_distiller"] * 4, "krr_toy", "preview"])
        delay = rng.choice([rng.uniform(0.03, 0.5), rng.uniform(0.5, 8)])
        numbers = rng.choice(
            [
                [signal.SIGINT] * 2,
                [signal.SIGINT] * 3,
                [signal.SIGTERM],
                [signal.SIGHUP] * 2,
                [signal.SIGINT, signal.SIGTERM],
            ]
        )
        signals = [(rng.choice([0.0, 0.0005, 0.01, 0.2]), int(number)) for number in numbers]
        group = rng.random() < 0.5
        with tempfile.TemporaryDirectory() as folder:
            wrong = interrupt(program, Path(folder, "run"), delay, signals, group)
        failures += wrong is not None
        print(f"{trial}: {program} after {delay:.3f} s, {signals}{' to all' * group}: {wrong or 'good'}", flush=True)
    print(f"{failures} of {args.trials} trials failed")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())

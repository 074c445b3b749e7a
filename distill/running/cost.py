"""The cost of a run on this machine, estimated from short bursts of its training, and its remaining cost."""

import itertools
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from distill.arms import TEACHER, Arm, Estimated, Student, disjoint_groups, students
from distill.chains.model_training import epochs_on_disk
from distill.config import Config
from distill.running.experiment import Experiment, job_count
from distill.running.trial import trial_of
from distill.store.rundir import RunDir, is_finished

Done = Mapping[tuple[int, Student | None], float]  # (seed, student or None for the teacher) to the trained fraction


@dataclass(frozen=True)
class Cost:
    """Measured times, and the cost of a configuration computed from them, all in seconds."""

    config: Config
    updates: int  # per epoch
    train: int  # images
    held_out: int  # images
    test: int  # images
    teacher: float  # one update of a teacher, the median over bursts
    student: float  # one update of a student, with its teacher's forward pass, the median over bursts
    evaluation: float  # of one image
    checkpoint: float  # one per epoch
    scatter: float = 1.0  # time of the slowest burst over that of the fastest, of teachers or students
    notes: tuple[str, ...] = ()  # reported by the measured training

    def model(self, with_teacher: bool) -> float:
        """Seconds of one model: its epochs, each with an evaluation and a checkpoint, and the final evaluation."""
        update = self.student if with_teacher else self.teacher
        epoch = self.updates * update + self.held_out * self.evaluation + self.checkpoint
        return self.config.train.epochs * epoch + (self.train + self.held_out + self.test) * self.evaluation

    def training(self, student: Student | None) -> float:
        """Seconds of one model of the grid. None is a seed's teacher, which costs nothing if it is given."""
        if student is None:
            return self.model(with_teacher=False) if self.config.chain.teacher_ckpt is None else 0.0
        return student.target.trainings * self.model(with_teacher=student.target.uses_teacher)

    def seconds(self, seed: int, arms: Iterable[Arm], done: Done) -> float:
        """Seconds that remain for a seed's teacher and the students of ``arms``; shared students count once."""
        models = [None, *students(arms)]
        return sum((1 - done.get((seed, model), 0.0)) * self.training(model) for model in models)

    @property
    def chain(self) -> float:
        """Seconds of the longest chain."""
        return max(self.seconds(0, [arm], {}) for arm in self.config.chain.arms or [TEACHER])

    @property
    def grid(self) -> float:
        """Seconds of all chains, if jobs do not slow one another down."""
        return self.left({})

    def left(self, done: Done) -> float:
        """Seconds that remain for the grid."""
        seeds = self.config.chain.seed
        arms = self.config.chain.arms
        total = sum(self.seconds(seed, arms, done) for seed in seeds)
        longest = max(self.seconds(seed, group, done) for seed in seeds for group in disjoint_groups(arms) or [()])
        return max(total / job_count(self.config), longest)


def measure(experiment: Experiment) -> Cost:
    """Measure an experiment's training in bursts, as a single job with as many threads as each job of the run has."""
    trial = trial_of(experiment)
    bursts = list(zip(*trial.update_seconds(), strict=True))
    teacher, student = map(statistics.median, bursts)
    return Cost(
        experiment.config,
        trial.updates,
        train=len(trial.data.train),
        held_out=0 if trial.data.val is None else len(trial.data.val),
        test=len(trial.data.test),
        teacher=teacher,
        student=student,
        evaluation=trial.evaluation(),
        checkpoint=trial.checkpoint(),
        scatter=max(max(times) / min(times) for times in bursts),
        notes=tuple(dict.fromkeys(trial.listener.notes)),
    )


def done_in(config: Config) -> dict[tuple[int, Student | None], float]:
    """For each model begun in the run directory, by seed and student, the fraction of its training that is done.

    Raises ConfigError if a training state is damaged.
    """
    rundir = RunDir(config.output)
    chain = config.chain

    def share(folder: Path, estimated: bool) -> float:
        if is_finished(folder):
            return 1.0
        trained = epochs_on_disk(folder) / config.train.epochs
        return (trained + share(folder / "probe", estimated=False)) / 2 if estimated else trained

    found: dict[tuple[int, Student | None], float] = {}
    for seed, student in itertools.product(chain.seed, [None, *students(chain.arms)]):
        if student is None:
            found[seed, student] = share(rundir.model(seed, None, chain.first_step), estimated=False)
            continue
        folder = rundir.model(seed, student.arm, chain.first_step + student.position)
        found[seed, student] = share(folder, estimated=isinstance(student.target, Estimated))
    return {model: part for model, part in found.items() if part}

"""The units of a run: what one process trains at a time. Imports no torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distill.arms import TEACHER, Arm, arm_folder, arm_name, arm_title, disjoint_groups, students
from distill.config import Config
from distill.store.rundir import RunDir, is_finished


@dataclass(frozen=True)
class Unit:
    """A part of a run that one call trains. No model is trained by two units."""

    seed: int
    arms: tuple[str, ...] = ()  # as in folder names; empty: the seed's teacher


@dataclass(frozen=True)
class Task:
    """A unit of a run directory."""

    config: Config
    unit: Unit
    claim: str  # the name of its claim
    models: tuple[Path, ...]  # the folders of its models; a probe's is in that of its student
    teacher: Path  # the folder of the teacher of its seed

    def __str__(self) -> str:
        arms = " and ".join(arm_title(arm) for arm in self.unit.arms)
        setting = f"{self.run.name}, " if (self.run.parent / "config.toml").exists() else ""  # of a study
        return f"{setting}seed {self.unit.seed}, {arms or arm_title(None)}"

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.config.output

    @property
    def group(self) -> tuple[Path, int]:
        """The run and the seed: tasks that share images."""
        return self.run, self.unit.seed

    @property
    def is_finished(self) -> bool:
        """Whether all its models are."""
        return all(is_finished(folder) for folder in self.models)

    @property
    def can_start(self) -> bool:
        """Whether its teacher is finished, or it is the teacher."""
        return not self.unit.arms or is_finished(self.teacher)


def tasks(config: Config) -> Iterator[Task]:
    """The units of a run by seed: its teacher, then the groups of arms that share students."""
    run = RunDir(config.output)
    first = config.chain.first_step
    groups = []
    for arms in disjoint_groups(config.chain.arms):
        names = tuple(str(arm_name(arm)) for arm in arms)
        groups.append((arms, names, [(each.arm, first + each.position) for each in students(arms)]))
    for seed in config.chain.seed:
        teacher = run.model(seed, None, first)
        yield Task(config, Unit(seed), claim_name(seed), (teacher,), teacher)
        for arms, names, steps in groups:
            models = tuple(run.model(seed, arm, step) for arm, step in steps)
            yield Task(config, Unit(seed, names), claim_name(seed, arms[0]), models, teacher)


def claim_name(seed: int, arm: Arm = TEACHER) -> str:
    """The name of the claim of a unit: that of the students that begin as ``arm``, whatever other arms the run has."""
    return f"seed_{seed}" + (f"-{arm_folder(arm[0].name)}" if arm else "")

"""The section [chain]: the grid of chains. Illegal values and combinations are refused here."""

from dataclasses import dataclass
from typing import Any

from distill import arms
from distill.arguments import Range
from distill.arms import Arm
from distill.options import Section, option, require

LARGEST_GRID = 10_000  # models
PREVIEW = "preview"  # an "alpha" without students: train the teacher and forecast its chain


@dataclass(frozen=True)
class ChainConfig(Section):
    """The chain: teacher, student, student, ...; several alphas or seeds make a grid of chains."""

    section = "chain"

    alpha: tuple[float | str, ...] | None = option(
        None,
        "weight of the given labels in [0, 1]; the teacher gets 1 - alpha; several values make a grid. "
        + "".join(f"{word}: {kind.help}. " for word, kind in arms.ALPHA_WORDS.items())
        + "preview: the same as --preview [default: 0.6]",
        Range(0.0, 1.0),
        words=(*arms.ALPHA_WORDS, PREVIEW),
    )
    alpha_schedule: tuple[tuple[float | str, ...], ...] = option(
        (),
        f"an alpha (or {' or '.join(arms.ALPHA_WORDS)}) for each student in turn; the last one repeats. Repeat the "
        "option for several schedules; those that begin alike share models",
        Range(0.0, 1.0),
        words=tuple(arms.ALPHA_WORDS),
    )
    seed: tuple[int, ...] = option(
        (1,),
        "seed of splits, label noise, initial parameters and batches; several values make a grid",
        Range(0, 2**63 - 1),
    )
    distillation_steps: int = option(5, "number of students after the teacher", Range(0, LARGEST_GRID))
    teacher_select: str = option(
        "last",
        "which epoch's model teaches: the last, or the one most accurate on the held-out images (needs --val-size)",
        choices=("last", "best"),
    )
    teacher_ckpt: str | None = option(None, "continue from this model.pt instead of training a teacher", path=True)
    teacher_step: int | None = option(
        None,
        "step of the model in --teacher-ckpt; its first student has the next step [default: 0]",
        Range(0, 10**6),
    )

    def resolved(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        if self.alpha is None or (self.alpha == () and self.alpha_schedule):
            values["alpha"] = () if self.alpha_schedule else (0.6,)
        if self.teacher_ckpt is not None and self.teacher_step is None:
            values["teacher_step"] = 0
        return values

    def check(self) -> None:
        self._check_alphas()
        if self.teacher_ckpt is None:
            require(self.teacher_step is None, "teacher_step needs --teacher-ckpt FILE")
        else:
            require(self.distillation_steps >= 1, "a given teacher needs at least one distillation step")
        self._check_size()
        seen: set[Arm] = set()
        for arm in self.arms:
            name = arms.arm_name(arm) or ""
            require(len(name) <= 200, f"too many alphas for the name of a folder: alpha {name[:50]}...")
            require(arm not in seen, f"two chains of the grid are the same: alpha {name}")
            seen.add(arm)

    def _check_size(self) -> None:
        """Refuse a grid that is too large to be meant, before anything is made of it."""
        chains = len(self.alphas) + len(self.alpha_schedule)
        models = len(self.seed) * (1 + chains * self.distillation_steps)
        require(
            models <= LARGEST_GRID,
            f"the grid is too large: {len(self.seed):,} seeds, {chains:,} alphas and {self.distillation_steps:,} steps "
            f"make up to {models:,} models, and a run has {LARGEST_GRID:,} at most",
        )

    def _check_alphas(self) -> None:
        for name in ("alpha", "seed"):
            values = getattr(self, name)
            require(values or (name == "alpha" and self.alpha_schedule), f"{name} needs at least one value")
            require(len(set(values)) == len(values), f"{name} has a value twice: {' '.join(map(str, values))}")
        for schedule in self.alpha_schedule:
            require(schedule, "alpha_schedule needs at least one value")
            require(
                len(schedule) <= max(self.distillation_steps, 1),
                f"alpha_schedule has {len(schedule)} alphas for {self.distillation_steps} students",
            )
        require(
            PREVIEW not in self.alphas or (len(self.alphas) == 1 and not self.alpha_schedule),
            "alpha preview trains no student and must be the only alpha; give other alphas in a second command",
        )

    @property
    def alphas(self) -> tuple[float | str, ...]:
        """The values of ``alpha``, never None."""
        return self.alpha or ()

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Every chain of the grid, as the target of each of its students; empty without students."""
        n = self.distillation_steps
        if n < 1:
            return ()
        schedules = [(alpha,) for alpha in self.alphas if alpha != PREVIEW] + list(self.alpha_schedule)
        return tuple(self._arm(schedule, n) for schedule in schedules)

    @staticmethod
    def _arm(schedule: tuple[float | str, ...], n: int) -> Arm:
        """``n`` targets; the last alpha of the schedule repeats."""
        targets = [arms.target(alpha) for alpha in schedule[:n]]
        return (*targets, *targets[-1:] * (n - len(targets)))

    @property
    def estimates_alpha(self) -> bool:
        """Whether any alpha is estimated."""
        return arms.estimates_alpha(self.arms)

    @property
    def first_step(self) -> int:
        """The teacher's step: 0 unless the chain continues from a given model."""
        return self.teacher_step or 0

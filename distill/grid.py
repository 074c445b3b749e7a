"""The section [chain]: the grid of chains. Illegal values and combinations are refused here."""

from dataclasses import dataclass
from typing import Any

from distill import arms, losses
from distill.arguments import Range
from distill.arms import Arm, Fixed
from distill.options import Section, option, require

LARGEST_GRID = 100_000  # models, without --yes
ALPHA = Range(-100.0, 100.0)
PREVIEW = "preview"  # an "alpha" without students: train the teacher and forecast its chain
GRID = ("target", "alpha", "alpha_schedule", "seed", "distillation_steps")  # values that may be added to a run


@dataclass(frozen=True)
class ChainConfig(Section):
    """The chain: teacher, student, student, ...; several alphas or seeds make a grid of chains."""

    section = "chain"

    target: tuple[str, ...] = option(
        ("soft",),
        "what the teacher teaches; several make a grid. "
        + "; ".join(f"{name}: {kind.help}" for name, kind in arms.TARGETS.items()),
        choices=tuple(arms.TARGETS),
    )
    alpha: tuple[float | str, ...] | None = option(
        None,
        "weight of the given labels; the teacher gets 1 - alpha; several values make a grid. It is in [0, 1], but any "
        f"number with --loss {losses.with_any_alpha()}. "
        + "".join(f"{word}: {kind.help}. " for word, kind in arms.ALPHA_WORDS.items())
        + "preview: the same as --preview [default: 0.6]",
        ALPHA,
        words=(*arms.ALPHA_WORDS, PREVIEW),
    )
    alpha_schedule: tuple[tuple[float | str, ...], ...] = option(
        (),
        f"an alpha (or {' or '.join(arms.ALPHA_WORDS)}) for each student in turn; the last one repeats. Repeat the "
        "option for several schedules; those that begin alike share models",
        ALPHA,
        words=tuple(arms.ALPHA_WORDS),
    )
    alpha_range: tuple[float, ...] = option(
        (0.0, 1.0), "lowest and highest alpha that auto may choose; 0, the probe's, must be within", ALPHA
    )
    student_init: str = option(
        "fresh",
        "initial parameters of a student: fresh ones, its teacher's, or the same as those of step 0",
        choices=("fresh", "teacher", "same"),
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
            values["alpha"] = () if self.alpha_schedule or not self._takes_alpha else (0.6,)
        if self.teacher_ckpt is not None and self.teacher_step is None:
            values["teacher_step"] = 0
        return values

    def check(self) -> None:
        self._check_values()
        self._check_alphas()
        if self.teacher_ckpt is None:
            require(self.teacher_step is None, "teacher_step needs --teacher-ckpt FILE")
        else:
            require(self.distillation_steps >= 1, "a given teacher needs at least one distillation step")
        self._check_size()
        for kind in self.target:
            seen: set[Arm] = set()
            for arm in self._arms(kind):
                name = arms.arm_name(arm) or ""
                require(len(name) <= 200, f"too many alphas for the name of a folder: alpha {name[:50]}...")
                require(arm not in seen, f"two chains of the grid are the same: alpha {name}")
                seen.add(arm)

    def _check_size(self) -> None:
        """Refuse a chain or a number of arms that is too large to be meant, before anything is made of it."""
        require(
            1 + self._chains * self.distillation_steps <= LARGEST_GRID,
            f"the grid is too large: {self._chains:,} alphas and {self.distillation_steps:,} steps make more than "
            f"{LARGEST_GRID:,} models of one seed",
        )

    @property
    def _chains(self) -> int:
        alphas = len(self.alphas) + len(self.alpha_schedule)
        return sum(alphas if arms.TARGETS[kind].only_alpha is None else 1 for kind in self.target)

    @property
    def models(self) -> int:
        """The models of the grid, at most: those that arms share count for each."""
        return len(self.seed) * (1 + self._chains * self.distillation_steps)

    def _check_values(self) -> None:
        """Refuse options without a value, and values that are given twice."""
        for name in ("target", "alpha", "seed"):
            values = getattr(self, name)
            optional = name == "alpha" and (self.alpha_schedule or not self._takes_alpha)
            require(values or optional, f"{name} needs at least one value")
            require(len(set(values)) == len(values), f"{name} has a value twice: {' '.join(map(str, values))}")
        for schedule in self.alpha_schedule:
            require(schedule, "alpha_schedule needs at least one value")
            require(
                len(schedule) <= max(self.distillation_steps, 1),
                f"alpha_schedule has {len(schedule)} alphas for {self.distillation_steps} students",
            )

    def _check_alphas(self) -> None:
        targets = " and ".join(self.target)
        require(
            self._takes_alpha or not (self.alphas or self.alpha_schedule),
            f"target {targets} takes no alpha; leave --alpha out",
        )
        require(
            PREVIEW not in self.alphas or (len(self.alphas) == 1 and not self.alpha_schedule),
            "alpha preview trains no student and must be the only alpha; give other alphas in a second command",
        )
        require(
            self.target == ("soft",) or (self.distillation_steps > 0 and PREVIEW not in self.alphas),
            f"target {targets} is for students, and this run trains none: leave --target out",
        )
        require(
            self.distillation_steps > 0 or self.student_init == "fresh",
            f"student_init {self.student_init} is for students, and this run trains none: leave it out",
        )
        require(
            len(self.alpha_range) == 2 and self.alpha_range[0] <= 0 < self.alpha_range[1],
            f"alpha_range must be two numbers, LOW <= 0 < HIGH, not {' '.join(f'{x:g}' for x in self.alpha_range)}",
        )
        require(
            self.estimates_alpha or self.alpha_range == (0, 1), "alpha_range is for --alpha auto, which is not given"
        )

    @property
    def _takes_alpha(self) -> bool:
        """Whether any kind of target takes an alpha."""
        return any(arms.TARGETS[kind].only_alpha is None for kind in self.target)

    @property
    def alphas(self) -> tuple[float | str, ...]:
        """The values of ``alpha``, never None."""
        return self.alpha or ()

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Every chain of the grid, as the target of each of its students; empty without students."""
        return tuple(dict.fromkeys(arm for kind in self.target for arm in self._arms(kind)))

    def _arms(self, kind: str) -> list[Arm]:
        """The chains with a kind of target."""
        n = self.distillation_steps
        if n < 1:
            return []
        target = arms.TARGETS[kind]
        if target.only_alpha is not None:
            return [(target(target.only_alpha),) * n]
        schedules = [(alpha,) for alpha in self.alphas if alpha != PREVIEW] + list(self.alpha_schedule)
        return [self._arm(schedule, n, target) for schedule in schedules]

    @staticmethod
    def _arm(schedule: tuple[float | str, ...], n: int, kind: type[Fixed]) -> Arm:
        """``n`` targets; the last alpha of the schedule repeats."""
        targets = [arms.target(alpha, kind) for alpha in schedule[:n]]
        return (*targets, *targets[-1:] * (n - len(targets)))

    @property
    def estimates_alpha(self) -> bool:
        """Whether any alpha is estimated."""
        return arms.estimates_alpha(self.arms)

    @property
    def outside(self) -> list[float]:
        """The alphas outside [0, 1]: those that are given, and the limits of those that are estimated."""
        given = (*self.alphas, *(alpha for schedule in self.alpha_schedule for alpha in schedule), *self.alpha_range)
        return [alpha for alpha in given if not isinstance(alpha, str) and not 0 <= alpha <= 1]

    @property
    def first_step(self) -> int:
        """The teacher's step: 0 unless the chain continues from a given model."""
        return self.teacher_step or 0

"""Arms: the chains of a grid. An arm lists the target of each of its students in turn.

Each kind of student target is a small class here. To add one, write the class and, if the command line should name it,
give it an entry in ``ALPHA_WORDS``. Names, order, counts and shared students follow from it. Loads no other module.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

if typing.TYPE_CHECKING:
    from torch import Tensor

PROBE = " probe"  # ends the name of the arm that a probe belongs to


@dataclass(frozen=True)
class Fixed:
    """A student fitted to ``alpha * given + (1 - alpha) * teacher_target(teacher's probabilities)``.

    Other kinds whose alpha is known in advance are subclasses with another ``name``, ``help`` and ``teacher_target``.
    A name has no dash, which separates the alphas of a schedule.
    """

    help: ClassVar[str] = ""  # for --help, of a kind that is in ALPHA_WORDS

    alpha: float  # weight of the given labels, in [0, 1]

    @property
    def name(self) -> str:
        """The name in tables and folders: ``0.6``, ``1``."""
        return repr(float(self.alpha)).removesuffix(".0")

    @property
    def uses_teacher(self) -> bool:
        """Whether the teacher has any weight."""
        return self.alpha < 1

    @property
    def trainings(self) -> int:
        """Models to train for this student, at most."""
        return 1

    def teacher_target(self, soft: Tensor) -> Tensor:
        """The teacher's part of the target, (m, classes), from its probabilities ``soft`` (m, classes)."""
        return soft


@dataclass(frozen=True)
class Estimated:
    """A student whose alpha Algorithm 1 estimates on held-out images when its step is reached."""

    name = "auto"
    help = "estimated at each step on held-out images (needs --val-size)"
    uses_teacher = True
    trainings = 2  # the probe, and the student unless the probe is taken


Target = Fixed | Estimated
Arm = tuple[Target, ...]
TEACHER: Arm = ()  # the arm of the teacher that all arms of a seed share

# The words that ``--alpha`` and ``--alpha-schedule`` take besides numbers.
ALPHA_WORDS: dict[str, Target] = {"auto": Estimated()}


def target(value: float | str) -> Target:
    """The target that a number, or a word of ``ALPHA_WORDS``, stands for."""
    return ALPHA_WORDS[value] if isinstance(value, str) else Fixed(value)


class Student(NamedTuple):
    """A student of an arm. In arms that begin alike it is the same one, and equal."""

    arm: str  # the name of the arm up to it
    position: int  # from 1, the teacher's own student
    target: Target


def students_of(arm: Arm) -> Iterator[Student]:
    """The students of an arm in turn. Takes memory for one at a time, however long the arm is."""
    name = ""
    for position, target in enumerate(arm, start=1):
        if position == 1 or target != arm[position - 2]:  # a target that repeats adds nothing to the name
            name = "-".join(each.name for each in arm[:position])
        yield Student(name, position, target)


def students(arms: Iterable[Arm]) -> dict[Student, None]:
    """All students of some arms, those of an arm in turn. A student that arms share appears once."""
    return dict.fromkeys(student for arm in arms for student in students_of(arm))


def disjoint_groups(arms: Iterable[Arm]) -> list[tuple[Arm, ...]]:
    """The arms in groups that share no student: arms whose first targets are equal stay together."""
    groups: dict[Target, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(arm[0], []).append(arm)
    return [tuple(group) for group in groups.values()]


def trainings(arms: Iterable[Arm]) -> int:
    """Students to train for some arms, at most; shared ones count once."""
    return sum(student.target.trainings for student in students(arms))


def estimates_alpha(arms: Iterable[Arm]) -> bool:
    """Whether Algorithm 1 estimates an alpha of any student."""
    return any(isinstance(target, Estimated) for arm in arms for target in arm)


def arm_name(arm: Arm) -> str | None:
    """The name of an arm: ``0.6``; ``0.2-0.4`` for 0.2 and then 0.4 throughout; ``auto``; None for the teacher.

    A model's arm is the arm up to it, so arms that begin alike name the same models.
    """
    if not arm:
        return None
    last = len(arm)
    while last > 1 and arm[last - 1] == arm[last - 2]:
        last -= 1
    return "-".join(target.name for target in arm[:last])


def arm_title(name: str | None) -> str:
    """How figures and tables call an arm: ``alpha = 0.6``, ``auto``, ``teacher``."""
    if name is None:
        return "teacher"
    return name if name in ALPHA_WORDS else f"alpha = {name}"


def sort_key(name: str | None) -> list[tuple[int, float, str]]:
    """A key that sorts arms by name: the teacher first, then by alpha, words last."""
    parts = [] if name is None else re.split(r"(?<!e)-", name)  # the minus of 1e-05 separates nothing
    return [_part_key(part.removesuffix(PROBE)) for part in parts]


def _part_key(part: str) -> tuple[int, float, str]:
    try:
        return (0, float(part), "")
    except ValueError:
        return (1, 0.0, part)

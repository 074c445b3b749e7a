"""Arms: the chains of a grid. An arm lists the target of each of its students in turn.

Each kind of student target is a small class here. To add one, write the class and its entry in ``TARGETS``. Names,
order, counts and shared students follow from it. Loads no other module.
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
DASH = re.compile(r"(?<=[^e_-])-")  # between the targets of a schedule; other dashes are signs: 1e-05, -0.5, hard_-0.5


@dataclass(frozen=True)
class Fixed:
    """A student fitted to ``alpha * given + (1 - alpha) * teacher_target(teacher's probabilities)``.

    The other kinds of ``--target`` are subclasses, with an entry in ``TARGETS``. A name has no dash, which separates
    the targets of a schedule.
    """

    kind: ClassVar[str] = ""  # begins the names, but for soft targets
    help: ClassVar[str] = "the teacher's probabilities"
    only_alpha: ClassVar[float | None] = None  # of a kind that takes no other
    loss: ClassVar[str | None] = None  # the only loss that it is for
    fewest_classes: ClassVar[int] = 2

    alpha: float  # weight of the given labels; the teacher gets 1 - alpha

    @property
    def name(self) -> str:
        """The name in tables and folders: ``0.6``, ``1``, ``hard_0.6``, ``top2``."""
        value = repr(float(self.alpha)).removesuffix(".0") if self.only_alpha is None else ""
        return "_".join(filter(None, (self.kind, value)))

    @property
    def uses_teacher(self) -> bool:
        """Whether the teacher's part of the target has any weight."""
        return self.alpha != 1

    @property
    def trainings(self) -> int:
        """Models to train for this student, at most."""
        return 1

    def teacher_target(self, soft: Tensor) -> Tensor:
        """The teacher's part of the target, (m, classes), from its probabilities ``soft`` (m, classes)."""
        return soft

    def keeps(self, predicted: Tensor, given: Tensor) -> Tensor | None:
        """Which training images to train on, (n,) bool, from the teacher's classes and the given labels; None: all."""
        return None

    def diagnose(self, logits: Tensor, given: Tensor, true: Tensor) -> dict[str, float]:
        """Numbers for result.json, from the teacher's logits (n, classes) on the training images and their labels."""
        return {}


@dataclass(frozen=True)
class Hard(Fixed):
    """A student fitted to ``alpha * given + (1 - alpha) *`` the teacher's most probable class."""

    kind = "hard"
    help = "the teacher's most probable class"

    def teacher_target(self, soft: Tensor) -> Tensor:
        return soft.new_zeros(soft.shape).scatter_(1, soft.argmax(1, keepdim=True), 1)

    def diagnose(self, logits: Tensor, given: Tensor, true: Tensor) -> dict[str, float]:
        return {"right": _share(logits.argmax(1) == true)}


@dataclass(frozen=True)
class Consensus(Fixed):
    """A student trained on the images whose given label is the teacher's most probable class.

    Das et al., ICML 2025, arXiv 2406.11206.
    """

    kind = "consensus"
    help = "only images whose given label is the teacher's most probable class"
    only_alpha = 1.0

    def keeps(self, predicted: Tensor, given: Tensor) -> Tensor | None:
        return predicted == given

    def diagnose(self, logits: Tensor, given: Tensor, true: Tensor) -> dict[str, float]:
        kept = logits.argmax(1) == given
        return {"kept": int(kept.sum()), "right": _share((given == true)[kept])}


@dataclass(frozen=True)
class Top2(Fixed):
    """A student fitted to one half for each of the teacher's two most probable classes.

    Jeong & Chung, ICLR 2025, arXiv 2402.10482.
    """

    kind = "top2"
    help = "one half for each of the teacher's two most probable classes (needs --loss gce)"
    only_alpha = 0.0
    loss = "gce"
    fewest_classes = 3

    def teacher_target(self, soft: Tensor) -> Tensor:
        return soft.new_zeros(soft.shape).scatter_(1, soft.topk(2).indices, 0.5)

    def diagnose(self, logits: Tensor, given: Tensor, true: Tensor) -> dict[str, float]:
        return {"right": _share((logits.topk(2).indices == true[:, None]).any(1))}


def _share(right: Tensor) -> float:
    return right.double().mean().item() if len(right) else 0.0


TARGETS: dict[str, type[Fixed]] = {"soft": Fixed, "hard": Hard, "consensus": Consensus, "top2": Top2}


@dataclass(frozen=True)
class Estimated:
    """A student whose alpha Algorithm 1 estimates on held-out images when its step is reached."""

    help: ClassVar[str] = "estimated at each step on held-out images (needs --val-size)"
    uses_teacher: ClassVar[bool] = True
    trainings: ClassVar[int] = 2  # the probe, and the student unless the probe is taken

    of: type[Fixed] = Fixed  # the kind of its target

    @property
    def name(self) -> str:
        """The name in tables and folders: ``auto``, ``hard_auto``."""
        return "_".join(filter(None, (self.of.kind, "auto")))


Target = Fixed | Estimated
Arm = tuple[Target, ...]
TEACHER: Arm = ()  # the arm of the teacher that all arms of a seed share

# The words that ``--alpha`` and ``--alpha-schedule`` take besides numbers.
ALPHA_WORDS: dict[str, type[Estimated]] = {"auto": Estimated}


def target(value: float | str, kind: type[Fixed] = Fixed) -> Target:
    """The target of a kind with an alpha: a number, or a word of ``ALPHA_WORDS``.

    At alpha = 1 all kinds that take an alpha are the same: the given labels.
    """
    if isinstance(value, str):
        return ALPHA_WORDS[value](kind)
    return Fixed(value) if value == 1 else kind(value)


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
    """The name of an arm in figures and tables.

    Such as ``alpha = 0.6``, ``alpha = 0.6 then 0.1``, ``auto``, ``hard, alpha = 0.6``, ``top2`` and ``teacher``.
    """
    if name is None:
        return "teacher"
    for kind in TARGETS:
        if f"{kind}_" in name:
            return f"{kind}, {arm_title(name.replace(f'{kind}_', ''))}"
    if name in (*ALPHA_WORDS, *TARGETS):
        return name
    return f"alpha = {DASH.sub(' then ', name)}"


def arm_folder(name: str) -> str:
    """The name of an arm's folder in a seed's: ``alpha_0.6``, ``alpha_auto``, ``hard_0.6``, ``top2``."""
    return name if name.partition("_")[0] in TARGETS else f"alpha_{name}"


def sort_key(name: str | None) -> list[tuple[str, int, float, str]]:
    """A key that sorts arms by name: the teacher first, then by kind of target and alpha, words last."""
    parts = [] if name is None else DASH.split(name)
    return [_part_key(part.removesuffix(PROBE)) for part in parts]


def _part_key(part: str) -> tuple[str, int, float, str]:
    kind, _, alpha = part.rpartition("_")
    try:
        return (kind, 0, float(alpha), "")
    except ValueError:
        return (kind, 1, 0.0, alpha)

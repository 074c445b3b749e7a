"""What a run is, as frozen dataclasses, one per concern. TOML in and out; illegal combinations are refused here.

Each field carries its help text; ``cli.py`` makes the command-line options from them. A field marked ``where`` says
where the work is done: it may change between a run and its continuation (which tells of another device or number of
threads, since these decide the last bits).
"""

import hashlib
import itertools
import json
import math
import os
import tomllib
import typing
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from distill import losses, noise
from distill.errors import ConfigError, nearest

TORCHVISION_RESNETS = (18, 34, 50, 101)
CIFAR_RESNETS = (8, 14, 20, 32, 44, 56, 110)
CUSTOM_MODEL = 0  # `resnet` of a run whose network came from a Python function
CUSTOM_DATA = "custom"  # `dataset` of a run whose images came from Python arrays
AUTO = "auto"  # a weight that is estimated when its step is reached
PREVIEW = "preview"  # no students: the teacher's kernel twin says what they would do

Arm = tuple[float | str, ...]  # the weight of the ground truth, or AUTO, for each student of a chain in turn


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _option(default, help: str, *, choices: tuple = (), words: tuple = (), where: bool = False):
    """``words`` are taken where the type is a number."""
    return field(default=default, metadata={"help": help, "choices": choices, "words": words, "where": where})


class _Section:
    """A section of the configuration: every value is checked, wherever it came from, when the section is made."""

    def __post_init__(self):
        section = next(name for name, cls in SECTIONS.items() if cls is type(self))
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None or f.default is not None:
                object.__setattr__(self, f.name, _checked(section, f.name, value))
        self._check()

    def _check(self) -> None:
        """Refuse illegal values and combinations, and resolve what depends on other fields."""


@dataclass(frozen=True)
class DataConfig(_Section):
    """Which images, how many, and what is done to their labels."""

    dataset: str = _option(
        "cifar10",
        "where the images come from; imagefolder reads DIR/train/<class>/* and DIR/test/<class>/*; "
        "package.module:function is called with the data folder and returns distill.from_arrays(...)",
        choices=("cifar10", "cifar100", "digits", "imagefolder"),
    )
    data_dir: str = _option("data", "folder of the data set (downloads go here)", where=True)
    image_size: int | None = _option(None, "resize every image of an imagefolder to this many pixels square")
    train_size: int | None = _option(None, "train on a class-balanced subset of this many images")
    test_size: int | None = _option(None, "test on a class-balanced subset of this many images")
    val_size: int = _option(0, "images held out of the training set, class-balanced, clean labels")
    label_noise: float = _option(0.0, "fraction of the training labels to corrupt, in [0, 1]")
    label_noise_kind: str = _option(
        "symmetric",
        "; ".join(f"{name}: {kind.help}" for name, kind in noise.KINDS.items()),
        choices=tuple(noise.KINDS),
    )
    augment: bool = _option(True, "random crops (zero padding of an eighth of the width) and, except for digits, flips")

    def _check(self) -> None:
        for name in ("image_size", "train_size", "test_size"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"{name} must be at least 1, not {value}")
        _require(self.val_size >= 0, f"val_size must be at least 0, not {self.val_size}")
        _require(0 <= self.label_noise <= 1, f"label_noise must be in [0, 1], not {self.label_noise}")
        _require(
            self.image_size is None or self.dataset == "imagefolder",
            f"image_size is for --dataset imagefolder; {self.dataset} has a size of its own",
        )


@dataclass(frozen=True)
class ModelConfig(_Section):
    """Which residual network."""

    resnet: int = _option(
        50,
        "depth: 18, 34, 50, 101 are torchvision's; the others the 6n+2 family for CIFAR (He et al. 2016, section 4.2)",
        choices=tuple(sorted(CIFAR_RESNETS + TORCHVISION_RESNETS)),
    )
    stem: str | None = _option(
        None,
        "first layers of a torchvision ResNet: imagenet (7x7, stride 2, max-pool) or cifar (3x3, stride 1) "
        "[default: imagenet]",
        choices=("imagenet", "cifar"),
    )
    width: int | None = _option(None, "channels of the first stage of the 6n+2 family [default: 16]")
    pretrained: bool = _option(False, "start every model from torchvision's ImageNet weights, with a new head")

    def _check(self) -> None:
        small = self.resnet in CIFAR_RESNETS
        if small:
            _require(
                self.stem in (None, "cifar"), f"resnet {self.resnet} has a CIFAR stem; --stem is for 18, 34, 50, 101"
            )
            _require(
                not self.pretrained, f"there are no pretrained weights for resnet {self.resnet}; use 18, 34, 50 or 101"
            )
            _require(self.width is None or self.width > 0, f"width must be at least 1, not {self.width}")
        else:
            _require(self.width is None, "width is for the 6n+2 family (8, 14, 20, 32, 44, 56, 110)")
        # Resolved here, so that what is written to config.toml leaves nothing to a later default.
        if self.resnet != CUSTOM_MODEL:
            object.__setattr__(self, "stem", "cifar" if small else self.stem or "imagenet")
        object.__setattr__(self, "width", (self.width or 16) if small else None)


@dataclass(frozen=True)
class TrainConfig(_Section):
    """How one model is fitted to its targets."""

    max_epochs: int = _option(75, "epochs per model")
    batch_size: int = _option(16, "images per update")
    loss: str = _option("mse", "; ".join(f"{name}: {loss.help}" for name, loss in losses.LOSSES.items()))
    temperature: float = _option(
        1.0,
        f"softens teacher and student in the distillation term of {losses.with_temperature()} (Hinton et al. 2015)",
    )
    reg: str = _option(
        "norm",
        "regulariser over all parameter tensors: norm: sum of L2 norms; l2: sum of squared L2 norms; none",
        choices=("norm", "l2", "none"),
    )
    reg_coef: float = _option(1e-4, "weight of the regulariser")
    optimizer: str = _option("adam", "torch.optim's", choices=("adam", "adamw", "sgd"))
    lr: float = _option(1e-4, "learning rate (the highest one, under a schedule)")
    momentum: float | None = _option(None, "momentum of sgd [default: 0.9]")
    weight_decay: float = _option(0.0, "the optimiser's own weight decay")
    lr_schedule: str = _option("constant", "learning rate over the updates", choices=("constant", "cosine", "onecycle"))
    warmup_epochs: int = _option(0, "epochs of linear warm-up before the schedule")
    precision: str = _option(
        "fp32",
        "fp32; tf32: tensor-core products of float32 (CUDA); bf16: autocast, with float32 weights and losses",
        choices=("fp32", "tf32", "bf16"),
    )
    deterministic: bool = _option(False, "bit-for-bit repeatable on a GPU too (slower there; a CPU always is)")
    compile: bool = _option(
        False,
        "torch.compile for the network's forward and backward pass: costs minutes of compiling in every process, and "
        "was slower in every case measured on a CPU",
    )
    graph: bool = _option(
        True,
        "on a CUDA device, capture the update as a CUDA graph and replay it (to look for an error: off)",
        where=True,
    )
    fast_dev_run: bool = _option(False, "two batches of everything and one epoch per model: does it run at all?")

    def _check(self) -> None:
        _require(self.max_epochs >= 1, f"max_epochs must be at least 1, not {self.max_epochs}")
        _require(self.batch_size >= 2, f"batch_size must be at least 2 (batch normalisation), not {self.batch_size}")
        for name in ("lr", "temperature"):
            value = getattr(self, name)
            _require(0 < value < math.inf, f"{name} must be a positive number, not {value}")
        for name in ("reg_coef", "weight_decay"):
            value = getattr(self, name)
            _require(0 <= value < math.inf, f"{name} must be a number >= 0, not {value}")
        object.__setattr__(self, "loss", losses.canonical(self.loss))
        _require(
            self.temperature == 1 or losses.parse(self.loss)[0].takes_temperature,
            f"temperature is for --loss {losses.with_temperature()}, not {self.loss}",
        )
        _require(
            self.momentum is None or self.optimizer == "sgd", f"momentum is for --optimizer sgd, not {self.optimizer}"
        )
        _require(self.momentum is None or 0 <= self.momentum < 1, f"momentum must be in [0, 1), not {self.momentum}")
        _require(
            0 <= self.warmup_epochs < self.max_epochs,
            f"warmup_epochs must be in [0, max_epochs), not {self.warmup_epochs} of {self.max_epochs}",
        )
        _require(self.lr_schedule != "onecycle" or self.warmup_epochs == 0, "onecycle has a warm-up of its own")
        if self.optimizer == "sgd" and self.momentum is None:
            object.__setattr__(self, "momentum", 0.9)

    @property
    def epochs(self) -> int:
        """Epochs that are run: ``max_epochs``, or 1 in a fast development run."""
        return 1 if self.fast_dev_run else self.max_epochs


@dataclass(frozen=True)
class ChainConfig(_Section):
    """The chain: teacher, student, student, ...; several alphas or seeds make a grid of chains."""

    alpha: tuple[float | str, ...] | None = _option(
        None,
        "weight of the ground truth, that of the teacher being 1 - alpha; in [0, 1], several for a grid. "
        "auto: estimated at each step on held-out images (needs val_size). "
        "preview: train no student; show what a kernel model of the teacher's features predicts [default: 0.6]",
        words=(AUTO, PREVIEW),
    )
    alpha_schedule: tuple[tuple[float | str, ...], ...] = _option(
        (),
        "an alpha (or auto) for each student in turn, the last one repeating; may be given several times, "
        "equal prefixes share their models",
        words=(AUTO,),
    )
    seed: tuple[int, ...] = _option(
        (1,), "seed of splits, label noise, initial weights and batches; several for a grid"
    )
    distillation_steps: int = _option(5, "students after the teacher")
    teacher_select: str = _option(
        "last",
        "which epoch's model teaches: the last, or the one most accurate on the held-out images (needs val_size)",
        choices=("last", "best"),
    )
    teacher_ckpt: str | None = _option(None, "continue from this model.pt instead of training a teacher")
    teacher_step: int | None = _option(
        None, "step that teacher_ckpt stands at; its first student is the next [default: 0]"
    )

    def _check(self) -> None:
        if self.alpha is None or (self.alpha == () and self.alpha_schedule):
            object.__setattr__(self, "alpha", () if self.alpha_schedule else (0.6,))
        for name in ("alpha", "seed"):
            values = getattr(self, name)
            _require(len(values) > 0 or (name == "alpha" and self.alpha_schedule), f"{name} needs at least one value")
            _require(len(set(values)) == len(values), f"{name} has a value twice: {' '.join(map(str, values))}")
        for schedule in self.alpha_schedule:
            _require(len(schedule) > 0, "alpha_schedule needs at least one value")
            _require(
                len(schedule) <= max(self.distillation_steps, 1),
                f"alpha_schedule has {len(schedule)} weights for {self.distillation_steps} students",
            )
        for alpha in (*self.alpha, *itertools.chain(*self.alpha_schedule)):
            _require(isinstance(alpha, str) or 0 <= alpha <= 1, f"alpha must be a number in [0, 1], not {alpha}")
        _require(
            PREVIEW not in self.alpha or (len(self.alpha) == 1 and not self.alpha_schedule),
            "alpha preview trains no student and stands alone; give other alphas in a second command",
        )
        for seed in self.seed:
            _require(seed >= 0, f"seed must be at least 0, not {seed}")
        _require(self.distillation_steps >= 0, f"distillation_steps must be at least 0, not {self.distillation_steps}")
        if self.teacher_ckpt is None:
            _require(self.teacher_step is None, "teacher_step needs --teacher-ckpt FILE")
        else:
            _require(self.distillation_steps >= 1, "a given teacher needs at least one distillation step")
            object.__setattr__(self, "teacher_step", self.teacher_step or 0)
            _require(self.teacher_step >= 0, f"teacher_step must be at least 0, not {self.teacher_step}")
        for arm in self.arms:
            name = arm_name(arm)
            _require(len(name) <= 200, f"too many weights for the name of a folder: alpha {name[:50]}...")
            _require(self.arms.count(arm) == 1, f"two chains of the grid are the same: alpha {arm_name(arm)}")
        _require(
            not (self.first_step and (self.uses_auto or PREVIEW in self.alpha)),
            f"alpha {AUTO if self.uses_auto else PREVIEW} needs the teacher of step 0, trained on the ground truth: "
            "leave --teacher-step out",
        )

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Every chain of the grid, as the weight (or "auto") of each of its students; empty where there is none."""
        if (n := self.distillation_steps) < 1:
            return ()
        schedules = [(alpha,) for alpha in self.alpha if alpha != PREVIEW] + list(self.alpha_schedule)
        return tuple((*schedule, *[schedule[-1]] * n)[:n] for schedule in schedules)

    @property
    def uses_auto(self) -> bool:
        """Is any weight estimated?"""
        return any(AUTO in arm for arm in self.arms)

    @property
    def first_step(self) -> int:
        """The teacher's step: 0 unless the chain continues from a given one."""
        return self.teacher_step or 0


@dataclass(frozen=True)
class RunConfig(_Section):
    """Where the work is done and kept."""

    output: str | None = _option(
        None, "run directory [default: runs/<dataset>-resnet<depth>-<hash of the configuration>]", where=True
    )
    device: str = _option("auto", "auto, cpu, cuda, cuda:<i> or mps", where=True)
    threads: int | None = _option(
        None, "CPU threads per process [default: the cores, shared among the jobs]", where=True
    )
    jobs: int | str = _option(
        1,
        "chains trained side by side, each in a process of its own, on a CUDA device in a thread with a stream of its "
        "own; auto: as many as pay here",
        where=True,
        words=("auto",),
    )

    def _check(self) -> None:
        kind, _, index = self.device.partition(":")
        legal = kind in ("auto", "cpu", "cuda", "mps") and (
            ":" not in self.device or (kind == "cuda" and index.isdigit())
        )
        _require(legal, f"device must be auto, cpu, cuda, cuda:<i> or mps, not {self.device}")
        _require(self.threads is None or 1 <= self.threads <= 1024, f"threads must be 1 to 1024, not {self.threads}")
        _require(self.jobs == "auto" or self.jobs >= 1, f"jobs must be at least 1, or auto, not {self.jobs}")


@dataclass(frozen=True)
class Config:
    """A whole run. Sections may be left out: ``Config(train=TrainConfig(max_epochs=3))``."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    chain: ChainConfig = field(default_factory=ChainConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self):
        _require(
            self.chain.teacher_select == "last" or self.data.val_size > 0,
            "teacher_select best needs held-out images: give --val-size",
        )
        for word, wanted in ((AUTO, self.chain.uses_auto), (PREVIEW, PREVIEW in self.chain.alpha)):
            _require(not wanted or self.data.val_size > 0, f"alpha {word} needs held-out images: give --val-size")

    @property
    def identity(self) -> dict:
        """What decides the results, as ``{"data.dataset": "cifar10", ...}``: all but the ``where`` fields."""
        return {
            f"{section}.{f.name}": getattr(getattr(self, section), f.name)
            for section, cls in SECTIONS.items()
            for f in fields(cls)
            if not f.metadata["where"]
        }

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits of the identity's SHA-256."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def output(self) -> Path:
        """The run directory."""
        default = f"runs/{self.data.dataset}-resnet{self.model.resnet}-{self.digest}"
        return Path(self.run.output or default)

    def differences(self, other: "Config", free: tuple[str, ...] = ()) -> str:
        """The options that decide the results and differ, as ``--lr 0.1 instead of 0.01``; "" where there are none.

        Those named in ``free``, as in ``identity``, may differ.
        """

        def show(value) -> str:
            if value == ():
                return "(none)"
            if isinstance(value, tuple) and isinstance(value[0], tuple):
                return " and ".join(map(show, value))
            return " ".join(str(v).removesuffix(".0") for v in (value if isinstance(value, tuple) else (value,)))

        pairs = zip(self.identity.items(), other.identity.values(), strict=True)
        return ", ".join(
            f"--{name.partition('.')[2].replace('_', '-')} {show(mine)} instead of {show(theirs)}"
            for (name, mine), theirs in pairs
            if mine != theirs and name not in free
        )


SECTIONS: dict[str, type] = {f.name: typing.get_type_hints(Config)[f.name] for f in fields(Config)}
SECTION_OF = {f.name: section for section, cls in SECTIONS.items() for f in fields(cls)}
_HINTS = {section: typing.get_type_hints(cls) for section, cls in SECTIONS.items()}


def field_type(section: str, name: str) -> tuple[type, int]:
    """The scalar type of a field and how it is nested: 0 a value, 1 several, 2 several of several.

    ``("chain", "seed") -> (int, 1)``. Of a union, as ``int | None``, the first.
    """
    hint, depth = _HINTS[section][name], 0
    while (origin := typing.get_origin(hint)) is not None:
        depth += origin is tuple
        hint = typing.get_args(hint)[0]
    return hint, depth


def from_dict(values: dict[str, dict]) -> Config:
    """A Config from ``{"train": {"lr": 0.1}, ...}``.

    Raises ConfigError for an unknown section or key (naming the nearest), a wrong type or an illegal value.
    """
    sections = {}
    for section, given in values.items():
        _require(section in SECTIONS, f"unknown section [{section}]{nearest(section, SECTIONS)}")
        _require(isinstance(given, dict), f"{section} must be a section: write [{section}] on a line of its own")
        names = [f.name for f in fields(SECTIONS[section])]
        for name in given:
            if name not in names:
                hint = f" (it belongs in [{SECTION_OF[name]}])" if name in SECTION_OF else nearest(name, names)
                raise ConfigError(f"unknown key {section}.{name}{hint}")
        sections[section] = SECTIONS[section](**given)
    return Config(**sections)


def _checked(section: str, name: str, value):
    kind, depth = field_type(section, name)
    if depth == 2 and isinstance(value, list | tuple) and not any(isinstance(v, list | tuple) for v in value):
        value = [value] if value else []  # a single schedule
    return _nested(section, name, value, kind, depth)


def _nested(section: str, name: str, value, kind: type, depth: int):
    if depth == 0:
        return _scalar(section, name, value, kind)
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(_nested(section, name, v, kind, depth - 1) for v in values)


def _scalar(section: str, name: str, value, kind: type):
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        value = float(value) + 0.0  # no -0.0: it would have a name of its own
    if kind is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    metadata = SECTIONS[section].__dataclass_fields__[name].metadata
    choices, words = metadata["choices"], metadata["words"]
    legal = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    or_words = "".join(f" or {word}" for word in words)
    _require(legal or value in words, f"{section}.{name} must be of type {kind.__name__}{or_words}, not {value!r}")
    custom = (name, value) in (("dataset", CUSTOM_DATA), ("resnet", CUSTOM_MODEL)) or (
        name == "dataset" and ":" in str(value)  # package.module:function
    )
    _require(
        not choices or value in choices or custom, f"{name} must be one of {', '.join(map(str, choices))}, not {value}"
    )
    return value


def prefixes(arm: Arm) -> list[Arm]:
    """The chain up to each of its students, step by step."""
    return [arm[:k] for k in range(1, len(arm) + 1)]


def students(arms: Iterable[Arm]) -> set[Arm]:
    """All students of some arms, each by the chain up to it: what arms share is there once."""
    return {prefix for arm in arms for prefix in prefixes(arm)}


def arm_name(arm: Arm) -> str:
    """What a chain is called: ``0.6``; ``0.2-0.4`` for 0.2 and then 0.4 throughout; ``auto``.

    That of a model is its chain's up to it, so that chains with equal prefixes name the same models.
    """
    arm = list(arm)
    while len(arm) > 1 and arm[-1] == arm[-2]:
        arm.pop()
    return "-".join(weight if isinstance(weight, str) else repr(float(weight)).removesuffix(".0") for weight in arm)


def read_toml(path: Path) -> dict[str, dict]:
    """The sections of a TOML file. Raises ConfigError where it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def read_config(path: Path) -> Config:
    """The configuration in a TOML file. Raises ConfigError that names the file."""
    sections = read_toml(path)
    try:
        return from_dict(sections)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def to_toml(config: Config) -> str:
    """The configuration as TOML that ``read_toml`` and ``from_dict`` take back. Fields that are None are left out."""
    import tomli_w

    sections = {
        section: {name: _lists(v) for name, v in values.items() if v is not None}
        for section, values in asdict(config).items()
    }
    sections["run"].pop("output", None)  # so that the file, run again elsewhere, does not write over this run
    return tomli_w.dumps(sections)


def _lists(value):
    return [_lists(v) for v in value] if isinstance(value, tuple) else value

"""The five sections of a configuration, as frozen dataclasses. Illegal values and combinations are refused here."""

import re
from dataclasses import dataclass
from typing import Any

from distill import arms, losses, noise
from distill.arguments import Range
from distill.arms import Arm
from distill.options import Section, option, require

TORCHVISION_RESNETS = (18, 34, 50, 101)
CIFAR_RESNETS = (8, 14, 20, 32, 44, 56, 110)
CUSTOM_MODEL = 0  # `resnet` of a run with another network: the one that `network` names, or a Python function's
DATASETS = ("cifar10", "cifar100", "digits", "imagefolder")
CUSTOM_DATA = "custom"  # `dataset` of a run on Python arrays
SIZE = Range(1, 10**9)  # of a data set or a batch
POSITIVE = Range(0.0, 1e38, without="low")  # as a float32 can hold
NOT_NEGATIVE = Range(0.0, 1e38)
LARGEST_GRID = 10_000  # models
PREVIEW = "preview"  # an "alpha" without students: train the teacher and forecast its chain


@dataclass(frozen=True)
class DataConfig(Section):
    """Which images, how many, and what is done to their labels."""

    section = "data"

    dataset: str = option(
        "cifar10",
        f"where the images come from: {', '.join(DATASETS)}, or package.module:function for your own; "
        "imagefolder reads DIR/train/<class>/* and DIR/test/<class>/*",
    )
    data_dir: str = option("data", "folder of the data set (downloads go here)", identity=False, path=True)
    data_sha256: str | None = option(
        None, "refuse to run unless the data have this SHA-256, as in data.sha256 of an earlier run", identity=False
    )
    image_size: int | None = option(
        None, "resize the images of an imagefolder to squares of this many pixels", Range(1, 2**16)
    )
    train_size: int | None = option(None, "train on a class-balanced subset of this many images", SIZE)
    test_size: int | None = option(None, "test on a class-balanced subset of this many images", SIZE)
    val_size: int = option(
        0, "hold out this many training images, class-balanced; their labels stay true", Range(0, 10**9)
    )
    label_noise: float = option(0.0, "fraction of the training labels to corrupt, in [0, 1]", Range(0.0, 1.0))
    label_noise_kind: str = option(
        "symmetric",
        "; ".join(f"{name}: {kind.help}" for name, kind in noise.NOISE_KINDS.items()),
        choices=tuple(noise.NOISE_KINDS),
    )
    augment: bool = option(
        True, "random crops (zero padding of an eighth of the width) and flips (no flips for digits)"
    )

    def check(self) -> None:
        require(
            self.dataset in (*DATASETS, CUSTOM_DATA) or ":" in self.dataset,
            f"dataset must be one of {', '.join(DATASETS)} or package.module:function, not {self.dataset}",
        )
        require(
            self.data_sha256 is None or re.fullmatch("[0-9a-f]{64}", self.data_sha256) is not None,
            f"data_sha256 must be 64 hexadecimal digits, not {self.data_sha256}",
        )
        require(
            self.image_size is None or self.dataset == "imagefolder",
            f"image_size is for --dataset imagefolder; the images of {self.dataset} have one size already",
        )


@dataclass(frozen=True)
class ModelConfig(Section):
    """Which network."""

    section = "model"

    resnet: int = option(
        50,
        "depth of a ResNet: 18, 34, 50 and 101 are torchvision's, the others are of the 6n+2 family for CIFAR "
        "(He et al. 2016, section 4.2)",
        choices=tuple(sorted(CIFAR_RESNETS + TORCHVISION_RESNETS)),
        also=(CUSTOM_MODEL,),
    )
    stem: str | None = option(
        None,
        "first layers of a torchvision ResNet: imagenet (7x7, stride 2, max-pool) or cifar (3x3, stride 1) "
        "[default: imagenet]",
        choices=("imagenet", "cifar"),
    )
    width: int | None = option(None, "channels of the first stage of the 6n+2 family [default: 16]", Range(1, 4096))
    pretrained: bool = option(False, "start every model from torchvision's ImageNet parameters, with a new last layer")
    network: str | None = option(
        None,
        "package.module:function that returns your own network when called with (channels, classes), in the place of "
        "--resnet",
    )

    @property
    def is_small(self) -> bool:
        """Whether it is of the 6n+2 family."""
        return self.resnet in CIFAR_RESNETS and self.network is None

    @property
    def is_python(self) -> bool:
        """Whether the network came from a Python function that the configuration does not name."""
        return self.resnet == CUSTOM_MODEL and self.network is None

    @property
    def name(self) -> str:
        """The name in messages: ``ResNet-50``, ``my_nets:wide``."""
        if self.network is not None:
            return self.network
        return "a custom network" if self.is_python else f"ResNet-{self.resnet}"

    @property
    def folder_name(self) -> str:
        """The name in the default run directory: ``resnet50``, ``wide``."""
        return f"resnet{self.resnet}" if self.network is None else self.network.rpartition(":")[2]

    def resolved(self) -> dict[str, Any]:
        if self.network is not None:
            return {"resnet": CUSTOM_MODEL}
        if self.is_small:
            return {"stem": self.stem or "cifar", "width": 16 if self.width is None else self.width}
        return {} if self.is_python else {"stem": self.stem or "imagenet"}

    def check(self) -> None:
        if self.network is not None:
            require(":" in self.network, f"network must be package.module:function, not {self.network}")
            for name in ("stem", "width", "pretrained"):
                require(not getattr(self, name), f"{name} is for the ResNets; leave it out with --network")
        elif self.is_small:
            require(self.stem == "cifar", f"resnet {self.resnet} has a CIFAR stem; --stem is for 18, 34, 50, 101")
            require(
                not self.pretrained, f"there are no pretrained weights for resnet {self.resnet}; use 18, 34, 50 or 101"
            )
        else:
            require(self.width is None, "width is for the 6n+2 family (8, 14, 20, 32, 44, 56, 110)")


@dataclass(frozen=True)
class TrainConfig(Section):
    """How one model is trained."""

    section = "train"

    max_epochs: int = option(75, "epochs per model", Range(1, 10**6))
    batch_size: int = option(16, "images per update, at least 2 (batch normalisation needs it)", Range(2, 10**9))
    loss: str = option("mse", "; ".join(f"{name}: {loss.help}" for name, loss in losses.LOSSES.items()))
    temperature: float = option(
        1.0,
        f"temperature of teacher and student in the teacher's term of {losses.with_temperature()} (Hinton et al. 2015)",
        Range(0.0, 1e18, without="low"),  # its square is in the loss
    )
    reg: str = option(
        "norm",
        "regulariser over all parameter tensors: norm: sum of L2 norms; l2: sum of squared L2 norms; or none",
        choices=("norm", "l2", "none"),
    )
    reg_coef: float = option(1e-4, "coefficient of the regulariser", NOT_NEGATIVE)
    optimizer: str = option("adam", "algorithm of the updates", choices=("adam", "adamw", "sgd"))
    lr: float = option(1e-4, "learning rate; with a schedule, the highest", POSITIVE)
    momentum: float | None = option(None, "momentum of sgd [default: 0.9]", Range(0.0, 1.0, without="high"))
    weight_decay: float = option(0.0, "weight decay of the optimiser", NOT_NEGATIVE)
    lr_schedule: str = option("constant", "schedule of the learning rate", choices=("constant", "cosine", "onecycle"))
    warmup_epochs: int = option(0, "epochs of linear warm-up before the schedule", Range(0, 10**6))
    precision: str = option(
        "fp32",
        "fp32: float32 throughout; tf32: float32 products on tensor cores (CUDA); bf16: autocast, with float32 "
        "parameters and losses",
        choices=("fp32", "tf32", "bf16"),
    )
    deterministic: bool = option(
        False, "bit-identical repetition on a GPU too, which is slower (on a CPU it always is)"
    )
    compile: bool = option(
        False,
        "use torch.compile for the forward and backward pass: takes minutes in every process, and was slower in every "
        "case measured on a CPU",
    )
    graph: bool = option(
        True,
        "on a CUDA device, capture the update as a CUDA graph and replay it (turn off for debugging)",
        identity=False,
    )
    fast_dev_run: bool = option(False, "one epoch of two batches per model, to see whether it runs")

    def resolved(self) -> dict[str, Any]:
        momentum = 0.9 if self.optimizer == "sgd" and self.momentum is None else self.momentum
        return {"loss": losses.canonical(self.loss), "momentum": momentum}

    def check(self) -> None:
        require(
            self.temperature == 1 or losses.parse(self.loss)[0].takes_temperature,
            f"temperature is for --loss {losses.with_temperature()}, not {self.loss}",
        )
        require(
            self.momentum is None or self.optimizer == "sgd", f"momentum is for --optimizer sgd, not {self.optimizer}"
        )
        require(
            self.warmup_epochs < self.max_epochs,
            f"warmup_epochs must be in [0, max_epochs), not {self.warmup_epochs} of {self.max_epochs}",
        )
        require(
            self.lr_schedule != "onecycle" or self.warmup_epochs == 0,
            "onecycle has its own warm-up; leave --warmup-epochs out",
        )

    @property
    def epochs(self) -> int:
        """Epochs that are run: ``max_epochs``, or 1 in a fast development run."""
        return 1 if self.fast_dev_run else self.max_epochs


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


@dataclass(frozen=True)
class RunConfig(Section):
    """Where to run, and where results are kept."""

    section = "run"

    output: str | None = option(
        None, "run directory [default: runs/<dataset>-<network>-<hash of the options>]", identity=False, path=True
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:<i> or mps", identity=False)
    threads: int | None = option(
        None, "CPU threads per process [default: cores / jobs]", Range(1, 1024), identity=False
    )
    jobs: int | str = option(
        1,
        "chains to train at the same time, each in a separate process, or on a CUDA device in a thread with its own "
        "stream; auto: the number that trains fastest here",
        Range(1, 1024),
        identity=False,
        words=("auto",),
    )

    def check(self) -> None:
        kind, _, index = self.device.partition(":")
        legal = kind in ("auto", "cpu", "cuda", "mps") and (
            ":" not in self.device or (kind == "cuda" and index.isdigit())
        )
        require(legal, f"device must be auto, cpu, cuda, cuda:<i> or mps, not {self.device}")

# ruff: noqa: I001 - "name as name" marks a public name; the import sorter would give each its own statement
"""A whole run as one frozen dataclass of five sections, and its identity."""

import hashlib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from distill import losses
from distill.arms import TARGETS
from distill.grid import (
    GRID as GRID,
    LARGEST_GRID as LARGEST_GRID,
    PREVIEW as PREVIEW,
    ChainConfig as ChainConfig,
)
from distill.options import Section, flag, require, require_type
from distill.sections import (
    CIFAR_RESNETS as CIFAR_RESNETS,
    CUSTOM_DATA as CUSTOM_DATA,
    CUSTOM_MODEL as CUSTOM_MODEL,
    DATASETS as DATASETS,
    TORCHVISION_RESNETS as TORCHVISION_RESNETS,
    DataConfig as DataConfig,
    ModelConfig as ModelConfig,
    RunConfig as RunConfig,
    TrainConfig as TrainConfig,
)


@dataclass(frozen=True)
class Config:
    """A whole run. Sections may be left out: ``Config(train=TrainConfig(max_epochs=3))``."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    chain: ChainConfig = field(default_factory=ChainConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        for name, section in SECTIONS.items():
            require_type(name, getattr(self, name), section, f"a distill.{section.__name__}")
        models = self.chain.models
        require(
            self.run.yes or models <= LARGEST_GRID,
            f"the grid is too large: {len(self.chain.seed):,} seeds make up to {models:,} models, more than "
            f"{LARGEST_GRID:,}: give --yes if you mean it",
        )
        require(
            self.chain.teacher_select == "last" or self.data.val_size > 0,
            "teacher_select best needs held-out images: give --val-size",
        )
        require(
            self.data.dataset != "features"
            or self.model.hidden is not None
            or self.model.is_function
            or self.model.is_python,
            "dataset features holds vectors: give --network linear, mlp or your own",
        )
        self._check_targets()
        if self.chain.estimates_alpha:
            self.require_held_out("alpha auto")
        if PREVIEW in self.chain.alphas:
            self.require_held_out("alpha preview")

    def _check_targets(self) -> None:
        """Refuse targets that do not fit the loss."""
        loss = self.train.loss.partition(":")[0]
        for name in self.chain.target:
            needed = TARGETS[name].loss
            require(needed in (None, loss), f"target {name} needs --loss {needed}, not {loss}")
            require(
                name == "soft" or self.train.temperature == 1,
                f"temperature softens the teacher's probabilities, of which target {name} takes only the order",
            )
        if self.chain.outside:
            require(
                losses.LOSSES[loss].takes_any_alpha,
                f"alpha {self.chain.outside[0]:g} is outside [0, 1], which needs --loss {losses.with_any_alpha()}: "
                f"{loss} may be unbounded below with a negative target",
            )

    def require_preview(self) -> None:
        """Raise ConfigError unless the chains can be forecast."""
        self.require_held_out("--preview")
        require(self.chain.target == ("soft",), "--preview forecasts chains of soft targets only: leave --target out")

    def require_held_out(self, name: str) -> None:
        """Raise ConfigError if this run has no held-out images or no teacher of step 0, which ``name`` needs."""
        require(self.data.val_size > 0, f"{name} needs held-out images: give --val-size")
        require(
            self.chain.first_step == 0,
            f"{name} needs the teacher of step 0, trained on the given labels: leave --teacher-step out",
        )

    def check_ranks(self, ranks: int, mode: str) -> None:
        """Raise ConfigError if torchrun's ranks cannot train this run together."""
        batch = self.train.batch_size
        require(mode != "estimate", "--estimate measures one process: leave torchrun out")
        for name, value in (("jobs", 1), ("devices", None), ("executor", "local")):
            given = getattr(self.run, name)
            require(given == value, f"--{name} {given}: all ranks of torchrun train one model at a time; leave it out")
        require(
            self.run.device in ("auto", "cpu", "cuda"),
            f"--device {self.run.device}: torchrun gives each rank its device; choose auto, cpu or cuda",
        )
        require(batch % ranks == 0, f"--batch-size {batch} cannot be divided by the {ranks} ranks of torchrun")
        require(
            batch >= 2 * ranks or self.train.sync_batchnorm,
            f"--batch-size {batch} leaves one image to each of {ranks} ranks, which has no variance: "
            "raise it, or give --sync-batchnorm",
        )

    @property
    def identity(self) -> dict[str, Any]:
        """The options that affect results, as ``{"data.dataset": "cifar10", ...}``.

        Options added since version 0.1 appear only if they differ from their default, so that adding one renames no
        run directory. Those of version 0.1 always appear: a changed default is then another run.
        """
        return {
            name: value
            for name, (value, default) in self._values_and_defaults().items()
            if name in ALWAYS_IN_IDENTITY or value != default
        }

    def _values_and_defaults(self) -> dict[str, tuple[Any, Any]]:
        """The value and the default of every option that affects results."""
        return {
            f"{section}.{f.name}": (getattr(getattr(self, section), f.name), f.default)
            for section, cls in SECTIONS.items()
            for f in fields(cls)
            if f.metadata["identity"]
        }

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits of the identity's SHA-256."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def output(self) -> Path:
        """The run directory."""
        data = self.data.dataset.rpartition(":")[2]
        return Path(self.run.output or f"runs/{data}-{self.model.folder_name}-{self.digest}")

    def differences(self, other: "Config", ignore: tuple[str, ...] = ()) -> str:
        """The options that affect results and differ, as ``--lr 0.1 instead of 0.01``; an empty text if none do.

        Options named in ``ignore``, such as ``chain.alpha``, may differ.
        """
        mine = self._values_and_defaults()
        theirs = other._values_and_defaults()
        if mine["model.network"] != theirs["model.network"]:
            ignore += ("model.resnet", "model.stem", "model.width")  # they follow from it
        return ", ".join(
            f"{flag(name.partition('.')[2])} {_shown(value)} instead of {_shown(theirs[name][0])}"
            for name, (value, _) in mine.items()
            if value != theirs[name][0] and name not in ignore
        )


def _shown(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value == ():
        return "(none)"
    if isinstance(value, tuple) and isinstance(value[0], tuple):
        return " and ".join(map(_shown, value))
    values = value if isinstance(value, tuple) else (value,)
    return " ".join(str(v).removesuffix(".0") for v in values)


SECTIONS: dict[str, type[Section]] = {
    cls.section: cls for cls in (DataConfig, ModelConfig, TrainConfig, ChainConfig, RunConfig)
}
SECTION_OF = {f.name: section for section, cls in SECTIONS.items() for f in fields(cls)}

# The options of version 0.1 that affect results: see Config.identity. Do not edit: every default directory would move.
ALWAYS_IN_IDENTITY = frozenset(
    f"{section}.{name}"
    for section, names in {
        "data": "dataset image_size train_size test_size val_size label_noise label_noise_kind augment",
        "model": "resnet stem width pretrained",
        "train": "max_epochs batch_size loss temperature reg reg_coef optimizer lr momentum weight_decay lr_schedule "
        "warmup_epochs precision deterministic compile fast_dev_run",
        "chain": "alpha alpha_schedule seed distillation_steps teacher_select teacher_ckpt teacher_step",
    }.items()
    for name in names.split()
)

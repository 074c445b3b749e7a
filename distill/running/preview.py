"""The kernel twin of a trained network: a forecast of a run's chains, compared with its finished students.

Kernel ridge chains (``distill.kernel.twin``) replace the students of a trained teacher. Without training, in seconds,
they give held-out error and accuracy by alpha and step, the best alphas, and degrees of freedom. There are three twins:

  linear, rbf  on the teacher's features, the input of its last layer. These were learned from the given labels, wrong
               ones included, and stay fixed, while each student of a network learns its own. Therefore these twins
               understate the effect of a chain. Their ridge is the best by generalised cross-validation on the given
               labels.
  images       the rbf kernel on the images themselves. Its ridge is the one whose first fit is closest to the teacher's
               outputs at the training images.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional

from distill.arms import Estimated, Fixed, arm_name, students_of
from distill.chains.checkpoints import load_model
from distill.config import CUSTOM_DATA, Config, TrainConfig
from distill.data.source import Source
from distill.errors import ConfigError, printable
from distill.kernel.twin import Forecast, forecast, make_twin
from distill.pages.style import draw
from distill.randomness import generator
from distill.reporting import preview_page
from distill.reporting.preview_page import Outcome
from distill.running.experiment import Experiment, prepare
from distill.store.results import Result, read_record
from distill.store.rundir import RunDir, is_finished
from distill.training.batches import ImageStore, make_image_store
from distill.training.device import place, torch_defaults
from distill.training.predict import predict_all

Array = NDArray[np.float64]

SIZE = 2000  # training images
SIDE = 32  # pixels, of the images that the twin ``images`` uses


@torch_defaults()
def page(
    run: str | Path,
    seed: int | None = None,
    *,
    size: int = SIZE,
    lam: float | None = None,
    source: Source | None = None,
    network: Callable[[], nn.Module] | None = None,
) -> str:
    """Preview one seed (the first by default) of a run: write seed_S/preview.png, .svg and .pdf, return the tables.

    At most ``size`` training images are used; ``lam`` as in ``preview``. ``source`` and ``network`` are those given to
    ``distill.run``. Raises UserError.
    """
    if size < 2:
        raise ConfigError(f"--size must be at least 2 images, not {size}")
    run = Path(run)
    experiment = _experiment(run, source, network)
    chain = experiment.config.chain
    if seed is None:
        seed = chain.seed[0]
    if seed not in chain.seed:
        raise ConfigError(f"{run} has no seed {seed}; it has {' '.join(map(str, chain.seed))}")
    teacher = _Teacher(experiment, run, seed)
    inputs = teacher.inputs(size)
    forecasts = preview(inputs, max(chain.distillation_steps, 1), lam)
    outcomes = outcomes_of(teacher, forecasts)
    title = f"{run}, seed {seed}: {inputs.features.shape[1]} features of {len(inputs.features):,} training images"
    stem = run / f"seed_{seed}" / "preview"
    draw(stem, preview_page.figure, printable(title), forecasts, outcomes)
    text = preview_page.tables(title, inputs.predicted, inputs.held_out_true, forecasts, outcomes)
    return f"{text}\n\n{stem}.png, .svg and .pdf show it as a figure"


@dataclass(frozen=True, eq=False)
class TwinInputs:
    """The data of the twins, for n training images and q held-out ones."""

    features: NDArray[np.float32]  # (n, p)
    images: NDArray[np.float32]  # (n, pixels)
    given: Array  # (n, classes) one-hot given labels, corrupted ones included
    fitted: Array  # (n, classes) the teacher's probabilities
    held_out_features: NDArray[np.float32]  # (q, p)
    held_out_images: NDArray[np.float32]  # (q, pixels)
    held_out_true: Array  # (q, classes) one-hot true labels
    predicted: Array  # (q, classes) the teacher's probabilities


def preview(inputs: TwinInputs, students: int, lam: float | None = None) -> list[Forecast]:
    """The forecast of each twin for chains of ``students`` students; ``lam`` > 0 is the ridge of all twins."""
    features = (inputs.features, inputs.given, inputs.held_out_features, inputs.held_out_true)
    images = (inputs.images, inputs.given, inputs.held_out_images, inputs.held_out_true)
    twins = [
        make_twin("linear", *features, lam=lam),
        make_twin("rbf", *features, lam=lam),
        make_twin("rbf", *images, lam=lam, teacher_outputs=inputs.fitted, name="images"),
    ]
    return [forecast(twin, students) for twin in twins]


def _experiment(run: Path, source: Source | None, network: Callable[[], nn.Module] | None) -> Experiment:
    """The run's experiment in float32 on this machine, which may lack the run's device and precision."""
    rundir = RunDir(run)
    config = rundir.config()
    _check(run, config, source, network)
    here = replace(config.run, device="auto", devices=None, executor="local", jobs=1)
    train = replace(config.train, precision="fp32")
    experiment = prepare(replace(config, run=here, train=train), source, network)
    rundir.check_data(experiment.source.fingerprint)
    return experiment


def _check(run: Path, config: Config, source: Source | None, network: Callable[[], nn.Module] | None) -> None:
    """Raise ConfigError if this run cannot be previewed."""
    missing = [
        *(["images"] if config.data.dataset == CUSTOM_DATA and source is None else []),
        *(["network"] if config.model.is_python and network is None else []),
    ]
    if missing:
        raise ConfigError(
            f"this run's {' and '.join(missing)} came from Python: "
            "call distill.preview.page(run, source=..., network=...) there"
        )
    if config.chain.first_step > 0:
        raise ConfigError(
            f"{run} begins at step {config.chain.first_step}: the twin's step 0 is trained on the given labels"
        )
    if config.data.val_size == 0:
        raise ConfigError(
            f"{run} held no images out, and alpha must not be chosen on test images: train with --val-size N"
        )


class _Teacher:
    """The trained teacher of one seed, with the images that the seed trains on and holds out."""

    def __init__(self, experiment: Experiment, run: Path, seed: int) -> None:
        self.chain = experiment.config.chain
        self.train = experiment.config.train
        self.device = experiment.device
        self.seed = seed
        self.rundir = RunDir(run)
        self.folder = self.rundir.model(seed, None, self.chain.first_step)
        if not is_finished(self.folder):
            raise ConfigError(f"{self.folder} holds no finished teacher: train it first (--preview)")
        self.data = experiment.dataset(seed)
        assert self.data.val is not None, "_check refuses a run without held-out images"
        self.val = self.data.val
        self.held_out_true = np.eye(len(self.data.classes))[self.val.true_labels]
        self.model = place(load_model(self.folder, experiment.make_network), self.train, self.device)

    def inputs(self, size: int) -> TwinInputs:
        """Features, images, labels and predictions for ``size`` training images and all held-out ones."""
        train = self.data.train
        part = train.take(balanced_subset(train.labels, size, generator(self.seed, "preview")))
        part_features, fitted = features(self.model, make_image_store(part, self.device), self.train)
        val_features, predicted = features(self.model, make_image_store(self.val, self.device), self.train)
        return TwinInputs(
            features=part_features,
            images=small(part.images),
            given=np.eye(len(self.data.classes))[part.labels],
            fitted=_probabilities(fitted),
            held_out_features=val_features,
            held_out_images=small(self.val.images),
            held_out_true=self.held_out_true,
            predicted=_probabilities(predicted),
        )


def balanced_subset(labels: NDArray[np.int64], size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Ascending positions (min(size, n),) in labels (n,), balanced over classes as far as there are images."""
    order = rng.permutation(len(labels))
    of_class = labels[order, None] == np.unique(labels)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = of_class.cumsum(0)[of_class]  # 1 for the first image of its class, 2 for the second, ...
    return np.sort(order[rank[order].argsort(kind="stable")][:size])


def features(model: nn.Module, images: ImageStore, train: TrainConfig) -> tuple[NDArray[np.float32], Tensor]:
    """The input of the last linear layer, (n, p), and the logits (n, classes), in eval mode, not augmented.

    Raises ConfigError for a network without a linear layer that receives one row per image.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError("the network has no linear layer whose input could be used as features")
    caught: list[Tensor] = []
    hook = linear[-1].register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0].float().cpu()))
    try:
        logits = predict_all(model, images, train)
    finally:
        hook.remove()
    found = torch.cat(caught) if caught else torch.empty(0, 0)
    if found.shape[:-1] != (len(images),):
        raise ConfigError("the network's last linear layer does not receive one row per image: it gives no features")
    return found.numpy(), logits


def small(images: ArrayLike) -> NDArray[np.float32]:
    """Images (n, c, h, w) as rows (n, pixels), averaged down to SIDE x SIDE if they are larger."""
    pixels = torch.from_numpy(np.asarray(images, dtype=np.float32))
    height, width = (min(length, SIDE) for length in pixels.shape[2:])
    return functional.adaptive_avg_pool2d(pixels, (height, width)).flatten(1).numpy()


def _probabilities(logits: Tensor) -> Array:
    return logits.double().softmax(1).numpy()


def score(folder: Path) -> tuple[float, float]:
    """Squared error (summed over classes) and accuracy of a finished model on the held-out images.

    Raises ConfigError if its result.json lacks them.
    """
    result = Result.of(read_record(folder))
    if result.val_brier is None or result.val_acc is None:
        raise ConfigError(f"{folder / 'result.json'} lacks the scores on the held-out images")
    return result.val_brier, result.val_acc


def outcomes_of(teacher: _Teacher, forecasts: list[Forecast]) -> list[Outcome]:
    """The changes on the held-out images along the finished part of each chain, with each twin's forecast."""
    outcomes: dict[str | None, Outcome] = {}  # by arm: unfinished chains may share all their finished students
    first = score(teacher.folder)
    for arm in teacher.chain.arms:
        if any(type(target) is not Fixed and target != Estimated() for target in arm):
            continue  # the twin knows no other targets
        folders = [teacher.rundir.model(teacher.seed, each.arm, each.position) for each in students_of(arm)]
        folders = list(takewhile(is_finished, folders))
        name = arm_name(arm[: len(folders)])
        longest = len(outcomes[name].alphas) if name in outcomes else 0
        if name is None or len(folders) <= longest:
            continue
        alphas = np.array([read_record(folder)["alpha"] for folder in folders])
        error, accuracy = (np.array([score(folder) for folder in folders]) - first).T
        expected = [np.array(each.twin.score(alphas, np.arange(len(alphas) + 1))) for each in forecasts]
        changes = np.array([values[:, 1:] - values[:, :1] for values in expected])
        outcomes[name] = Outcome(name, alphas, error, accuracy, changes)
    return list(outcomes.values())

"""The kernel twin of a trained network: what its chain should do, before it does it, and beside what it did.

``python -m distill.preview RUN`` fits kernel ridge chains (distill.twin) in the place of a trained teacher's students
and prints their held-out error and accuracy against alpha and step, their best weights and their degrees of freedom,
in seconds and without training. There are three twins:

  linear, rbf  on the features that the teacher hands to its last layer. These have learned from the labels already,
               wrong ones included, and stay as they are, where every student of a network learns its own: what a chain
               changes is understated. The ridge is the best by generalised cross-validation on the labels as given.
  images       the rbf kernel on the images themselves, which know of no label: all of the fitting is the twin's, and
               its ridge is the one that comes closest to the teacher's own outputs at the training images.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.arms import arm_name, prefixes
from distill.chains.checkpoints import load_model
from distill.config import CUSTOM_DATA, TrainConfig
from distill.configfile import read_config
from distill.data.source import Source
from distill.errors import ConfigError, UserError
from distill.kernel.twin import Forecast, Twin, forecast, make_twin
from distill.randomness import generator
from distill.reporting.preview_page import Outcome, draw, tables
from distill.running.experiment import Experiment, prepare
from distill.store.results import read_record
from distill.store.rundir import RunDir
from distill.training.batches import ImageStore, make_image_store
from distill.training.device import place
from distill.training.predict import predict_all

SIZE = 2000  # training images
SIDE = 32  # pixels, of images as the features of a kernel


def page(
    run: str | Path,
    seed: int | None = None,
    *,
    size: int = SIZE,
    lam: float | None = None,
    source: Source | None = None,
    network: Callable[[], nn.Module] | None = None,
) -> str:
    """Preview one seed (the first by default) of a run: leave seed_S/preview.png and .svg, return the tables.

    ``size`` training images at most, ``lam`` as in ``preview``; ``source`` and ``network`` as they were given to
    ``distill.run``. Raises UserError.
    """
    if size < 2:
        raise ConfigError(f"--size must be at least 2 images, not {size}")
    run = Path(run)
    lab = _lab(run, source, network)
    seed = lab.config.chain.seed[0] if seed is None else seed
    if seed not in lab.config.chain.seed:
        raise ConfigError(f"{run} has no seed {seed}; it has {' '.join(map(str, lab.config.chain.seed))}")
    teacher = _Teacher(lab, run, seed)
    students = max(lab.config.chain.distillation_steps, 1)
    seen = teacher.seen(size)
    forecasts = preview(seen, students, lam)
    outcomes = outcomes_of(teacher, forecasts)
    title = f"{run}, seed {seed}: {seen.features.shape[1]} features of {len(seen.features):,} training images"
    text = tables(title, seen, forecasts, outcomes)
    folder = run / f"seed_{seed}"
    draw(folder / "preview", title, forecasts, outcomes)
    return f"{text}\n\n{folder / 'preview.png'} and .svg have it as a figure"


@dataclass(frozen=True, eq=False)
class TwinInputs:
    """What the twins are made of, at n training images and q held-out ones: float32 features, float64 classes."""

    features: np.ndarray  # (n, p)
    images: np.ndarray  # (n, pixels)
    given: np.ndarray  # (n, classes) one-hot labels as given, corrupted ones among them
    fitted: np.ndarray  # (n, classes) the teacher's probabilities
    held_out_features: np.ndarray  # (q, p)
    held_out_images: np.ndarray  # (q, pixels)
    truth: np.ndarray  # (q, classes) one-hot true labels
    predicted: np.ndarray  # (q, classes) the teacher's probabilities


def preview(seen: TwinInputs, students: int, lam: float | None = None) -> list[Forecast]:
    """The forecast of each twin for chains of so many students, from arrays; ``lam`` > 0 is the ridge of all."""

    def twin(kernel: str, X, Z, **options) -> Twin:
        return make_twin(kernel, X, seen.given, Z, seen.truth, lam=lam, **options)

    features, images = (seen.features, seen.held_out_features), (seen.images, seen.held_out_images)
    twins = (
        twin("linear", *features),
        twin("rbf", *features),
        twin("rbf", *images, teacher_outputs=seen.fitted, name="images"),
    )
    return [forecast(each, students) for each in twins]


# ---- the teacher and what it sees


def _lab(run: Path, source: Source | None, network) -> Experiment:
    """The run's images and configuration, here: its device and precision may not exist on this machine."""
    if not (run / "config.toml").exists():
        raise ConfigError(f"{run} holds no run (no config.toml in it)")
    config = read_config(run / "config.toml")
    for given, missing, what in (
        (source, config.data.dataset == CUSTOM_DATA, "images"),
        (network, config.model.is_python, "network"),
    ):
        if missing and given is None:
            raise ConfigError(
                f"this run's {what} came from Python: call distill.preview.page(run, source=..., network=...) there"
            )
    if config.chain.first_step:
        raise ConfigError(f"{run} begins at step {config.chain.first_step}: the twin's step 0 is trained on the truth")
    if config.data.val_size == 0:
        raise ConfigError(
            f"{run} held no images out, and the test images are not for choosing: train with --val-size N"
        )
    here = replace(config.run, output=str(run), device="auto", jobs=1)
    lab = prepare(replace(config, run=here, train=replace(config.train, precision="fp32")), source, network)
    data = run / "data.sha256"
    if data.exists() and data.read_text().strip() != lab.source.fingerprint:
        raise ConfigError(f"{run} was trained on other images or labels than those found now")
    return lab


class _Teacher:
    """The trained teacher of one seed, and the images that the seed trains on and holds out."""

    def __init__(self, lab: Experiment, run: Path, seed: int):
        self.lab, self.rundir, self.seed = lab, RunDir(run), seed
        self.folder = self.rundir.model(seed, None, lab.config.chain.first_step)
        if not (self.folder / "result.json").exists():
            raise ConfigError(f"{self.folder} holds no finished teacher: train it first (--alpha 1 is enough)")
        self.data = lab.dataset(seed)
        self.val = make_image_store(self.data.val, lab.device)
        self.truth = np.eye(len(self.data.classes))[self.data.val.true_labels]
        self.model = place(load_model(self.folder, lab.network), lab.config.train, lab.device)

    def seen(self, size: int) -> TwinInputs:
        """Features at ``size`` training images and at all held-out ones, with what is known of their classes."""
        train = self.data.train
        rows = balanced_subset(train.labels, size, generator(self.seed, "preview"))
        part = train.take(rows)
        here, fitted = features(self.model, make_image_store(part, self.lab.device), self.lab.config.train)
        there, predicted = features(self.model, self.val, self.lab.config.train)
        return TwinInputs(
            features=here,
            images=small(part.images),
            given=np.eye(len(self.data.classes))[part.labels],
            fitted=_probabilities(fitted),
            held_out_features=there,
            held_out_images=small(self.data.val.images),
            truth=self.truth,
            predicted=_probabilities(predicted),
        )

    def score(self, folder: Path) -> tuple[float, float]:
        """Squared error (summed over classes) and accuracy of a finished model on the held-out images."""
        record = read_record(folder)
        return record["val_brier"], record["val_acc"]


def balanced_subset(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Ascending positions (min(size, n),) in labels (n,): as many of each class as there are, up to an equal share."""
    order = rng.permutation(len(labels))
    of_class = labels[order, None] == np.unique(labels)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = of_class.cumsum(0)[of_class]  # 1 for the first image of its class, 2 for the second, ...
    return np.sort(order[rank[order].argsort(kind="stable")][:size])


def features(model: nn.Module, pool: ImageStore, train: TrainConfig) -> tuple[np.ndarray, Tensor]:
    """What reaches the last linear layer, (n, p) float32, and the logits (n, classes), in eval mode, not augmented.

    Raises ConfigError for a network without a linear layer that sees each image once.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError("the network has no linear layer whose input could be taken as features")
    caught: list[Tensor] = []
    hook = linear[-1].register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0].float().cpu()))
    try:
        logits = predict_all(model, pool, train)
    finally:
        hook.remove()
    seen = torch.cat(caught) if caught else torch.empty(0, 0)
    if seen.shape[:-1] != (len(pool),):
        raise ConfigError("the network's last linear layer does not see each image once: it has no features to take")
    return seen.numpy(), logits


def small(images: np.ndarray) -> np.ndarray:
    """Images (n, c, h, w) uint8 as rows (n, pixels) float32, averaged down to SIDE x SIDE where they are larger."""
    side = tuple(min(length, SIDE) for length in images.shape[2:])
    return functional.adaptive_avg_pool2d(torch.from_numpy(images).float(), side).flatten(1).numpy()


def _probabilities(logits: Tensor) -> np.ndarray:
    return logits.double().softmax(1).numpy()


# ---- what a chain did


def outcomes_of(teacher: _Teacher, forecasts: list[Forecast]) -> list[Outcome]:
    """What came of each chain on the held-out images, as far as it is finished, beside what each twin expects."""
    outcomes: dict[str, Outcome] = {}  # by name: unfinished chains may have the same beginning
    first = teacher.score(teacher.folder)
    for arm in teacher.lab.config.chain.arms:
        folders = [teacher.rundir.model(teacher.seed, arm_name(prefix), k) for k, prefix in enumerate(prefixes(arm), 1)]
        folders = list(takewhile(lambda folder: (folder / "result.json").exists(), folders))
        name = arm_name(arm[: len(folders)])
        if len(folders) <= (len(outcomes[name].alphas) if name in outcomes else 0):
            continue
        alphas = np.array([read_record(folder)["alpha"] for folder in folders])
        error, accuracy = (np.array([teacher.score(folder) for folder in folders]) - first).T
        expected = [np.array(each.twin.score(alphas, np.arange(len(alphas) + 1))) for each in forecasts]
        changes = np.array([values[:, 1:] - values[:, :1] for values in expected])
        outcomes[name] = Outcome(name, alphas, error, accuracy, changes)
    return list(outcomes.values())


# ---- the command


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ConfigError(message)


def _positive(kind: type):
    def number(text: str):
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    number.__name__ = f"positive {kind.__name__}"  # argparse names it in its message
    return number


def build_parser() -> argparse.ArgumentParser:
    """The options of ``python -m distill.preview``."""
    parser = _Parser("distill.preview", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="a run's directory, with at least one trained teacher")
    parser.add_argument("--seed", type=int, metavar="S", help="which seed's teacher [default: the run's first]")
    parser.add_argument(
        "--size", type=_positive(int), default=SIZE, metavar="N", help=f"training images at most [default: {SIZE}]"
    )
    parser.add_argument(
        "--lam",
        type=_positive(float),
        metavar="L",
        help="ridge of all twins [default: as above]",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns the exit status: 0, or 2 for an error of the user's."""
    try:
        args = build_parser().parse_args(argv)
        print(page(args.run, args.seed, size=args.size, lam=args.lam))
        return 0
    except (MemoryError, torch.OutOfMemoryError) as error:
        message = f"out of memory, lower --size ({error})"
    except (UserError, OSError) as error:
        message = str(error)
    print(f"distill.preview: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

"""Files of features: the input of a network's last linear layer, or the pixels, for each image of a data set."""

import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from distill.chains.checkpoints import load_model, load_parameters
from distill.config import DataConfig, ModelConfig, TrainConfig
from distill.data.load import load_source
from distill.data.splits import Dataset, Split, make_dataset
from distill.errors import ConfigError
from distill.files import write_atomically
from distill.running.preview import features
from distill.training.batches import make_image_store
from distill.training.device import pick_device, place, torch_defaults
from distill.training.models import Classifier, build

AT_ONCE = 2048  # images
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation that torchvision's networks expect
CLASSES = 1000  # of ImageNet
Extract = Callable[[Split], np.ndarray]


@torch_defaults()
def make_features(
    output: Path, of: str, config: DataConfig, seed: int, device: str, weights: Path | None = None
) -> str:
    """Write a file of features, and return a line about it.

    The arrays are X, y, X_test, y_test and classes; X_val and y_val with held-out images; given with label noise. A
    name without ``.npz`` becomes a folder of NPY files. ``of`` is ``pixels``, ``torchvision:NAME`` (with the parameters
    in the file ``weights``, or torchvision's) or the folder of a finished model. Features (n, p) float32 are written in
    parts, never all in memory. Raises UserError.
    """
    if os.path.lexists(output):
        raise ConfigError(f"{output} exists: delete it, or name another file")
    source = load_source(config, progress=True)
    source.check_fingerprint(config.data_sha256)
    data = make_dataset(source, config, seed)
    extract = _extractor(of, data, device, weights)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name[:40]}.") as temporary:
        folder = Path(temporary) / "features"
        folder.mkdir()
        shape, dropped = _write(folder, data, extract)
        if output.suffix == ".npz":
            write_atomically(output, lambda file: _pack(folder, file))
        else:
            folder.rename(output)
    left_out = f"; {dropped:,} constant columns are left out" if dropped else ""
    return f"{shape[1]:,} features of {shape[0]:,} training and {len(data.test):,} test images in {output}{left_out}"


def _extractor(of: str, data: Dataset, device: str, weights: Path | None) -> Extract:
    """The function from images to features (n, p). Raises ConfigError."""
    size = data.train.images.shape[1:]
    if weights is not None and not of.startswith("torchvision:"):
        raise ConfigError(f"--weights is for --of torchvision:NAME, not {of}")
    if of == "pixels":
        return _pixels
    if of.startswith("torchvision:"):
        if size[0] != 3:
            raise ConfigError(f"--of {of} takes images of 3 channels, not {size[0]}")
        network = build(ModelConfig(network=of, pretrained=weights is None), 3, CLASSES)
        model = Classifier(network, *IMAGENET)
        if weights is not None:
            load_parameters(model, weights)
    elif ":" in of or not Path(of).exists():
        raise ConfigError(f"--of must be pixels, torchvision:NAME or the folder of a finished model, not {of}")
    else:
        model = load_model(of)
        if len(model.mean) != size[0] or model.size not in (None, size[1:]):
            own = (len(model.mean), *(model.size or size[1:]))
            here, there = ("x".join(map(str, shape)) for shape in (size, own))
            raise ConfigError(f"{of} was trained on images of {there}, not {here}")
    train = TrainConfig()
    where = pick_device(device)
    placed = place(model, train, where).eval()
    return lambda split: features(placed, make_image_store(split, where), train)[0]


def _pixels(split: Split) -> np.ndarray:
    images = np.asarray(split.images).reshape(len(split), -1)
    return images.astype(np.float32) / 255 if images.dtype == np.uint8 else images


def _write(folder: Path, data: Dataset, extract: Extract) -> tuple[tuple[int, int], int]:
    """Write the NPY files; returns the shape of X and the number of columns that were left out."""
    splits = {"": data.train, "_test": data.test} | ({} if data.val is None else {"_val": data.val})
    kept: np.ndarray = np.empty(0)
    columns = 0
    for part, split in splits.items():
        raw = folder / "raw.npy"
        mapped: np.ndarray | None = None
        for rows in _parts(len(split)):
            found = extract(split.take(rows))
            if mapped is None:
                columns = found.shape[1]
                mapped = np.lib.format.open_memmap(raw, "w+", np.float32, (len(split), columns))
            mapped[rows] = found
        assert mapped is not None
        if not part:
            kept = np.flatnonzero(mapped.max(0) != mapped.min(0))
            if not len(kept):
                raise ConfigError("all features are constant over the training images")
        final = np.lib.format.open_memmap(folder / f"X{part}.npy", "w+", np.float32, (len(split), len(kept)))
        for rows in _parts(len(split)):
            final[rows] = mapped[rows][:, kept]
        final.flush()
        del mapped, final
        raw.unlink()
        np.save(folder / f"y{part}.npy", split.true_labels)
    if data.noise_kind is not None:
        np.save(folder / "given.npy", data.train.labels)
    np.save(folder / "classes.npy", np.array(data.classes))
    return (len(data.train), len(kept)), columns - len(kept)


def _parts(n: int) -> Iterator[np.ndarray]:
    for start in range(0, n, AT_ONCE):
        yield np.arange(start, min(start + AT_ONCE, n))


def _pack(folder: Path, file: BinaryIO) -> None:
    """The NPY files of a folder as one NPZ file, not compressed."""
    with zipfile.ZipFile(file, "w") as parts:
        for each in sorted(folder.iterdir()):
            parts.write(each, each.name)

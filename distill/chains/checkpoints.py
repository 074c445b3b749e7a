"""Models on disk: files of plain tensors, read without running code. The result.json beside them describes them."""

import errno
import io
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.config import ModelConfig, TrainConfig
from distill.configfile import from_dict
from distill.errors import ConfigError, one_line
from distill.files import open_file, sha256, write_atomically
from distill.named import named_object
from distill.records import DamagedRecordError, digest_of_parts
from distill.store.results import read_record
from distill.training import models
from distill.training.device import place, torch_defaults

STATE_DICTS = (  # where training programs put the parameters
    *("state_dict", "model_state_dict", "model", "net", "network", "params", "weights"),
    *("state_dict_ema", "model_ema", "params_ema", "ema"),
)
OLD_SIZES = {"digits": 8, "cifar10": 32, "cifar100": 32}  # of images, which an older version did not record


def write_tensors(file: Path, content: dict) -> None:
    """Write tensors and plain values."""
    buffer = io.BytesIO()  # serialise in memory, so that a full disk is an ordinary OSError
    torch.save(content, buffer)
    write_atomically(file, buffer.getvalue())


def read_tensors(file: Path) -> dict:
    """A file of tensors and plain values, read without running any code in it.

    Raises ConfigError, and DamagedRecordError if it is damaged or no checkpoint.
    """
    try:
        with open_file(file) as content, warnings.catch_warnings(action="ignore"):
            if zipfile.is_zipfile(content):
                digest_of_parts(file)  # torch does not verify the checksums
            content.seek(0)
            return torch.load(content, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file") from None
    except (ConfigError, MemoryError):
        raise
    except Exception as error:  # for other files torch raises a dozen kinds of errors
        if isinstance(error, OSError) and (error.filename is not None or error.errno != errno.EINVAL):  # of a torn file
            raise ConfigError(f"{file} cannot be read ({error.strerror})") from None
        raise DamagedRecordError(
            f"{file} is damaged, or not a checkpoint of tensors; torch.save(model.state_dict(), FILE) writes one"
        ) from None


def check_hash(file: Path, expected: str) -> None:
    """Raise ConfigError if a finished model's file changed or disappeared."""
    if not file.exists() or sha256(file) != expected:
        raise ConfigError(f"{file} is not the model of its result.json; delete {file.parent} to retrain")


def load_parameters(model: models.Classifier, file: Path) -> None:
    """Load model.pt, or a state_dict of the network: bare, or under usual names in a checkpoint with other things.

    All names may have a beginning that a wrapper has added, such as ``module.`` of DataParallel, ``_orig_mod.`` of
    torch.compile, or both; counters of batches (``num_batches_tracked``) may be missing. Raises ConfigError for another
    architecture.
    """
    state = read_tensors(file)
    while isinstance(state, dict) and (inner := [n for n in STATE_DICTS if isinstance(state.get(n), dict)]):
        state = state[inner[0]]
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        found = f"; it holds {', '.join(map(str, list(state)[:5]))}" if isinstance(state, dict) else ""
        raise ConfigError(f"{file} does not hold model parameters (a dictionary of tensors by name){found}")
    own = _first_parts(model.network.state_dict())
    while len(first := _first_parts(state)) == 1 and not first & {*own, ""}:
        state = {name.partition(".")[2]: value for name, value in state.items()}
    target = model if {"mean", "std"} <= state.keys() and "network" in first else model.network
    expected = target.state_dict()
    counters = {name: value for name, value in expected.items() if name.endswith("num_batches_tracked")}
    state = counters | state
    for name in [*expected, *state]:
        here, there = (tuple(d[name].shape) if name in d else "nothing" for d in (expected, state))
        if here != there:
            raise ConfigError(f"{file} is of another architecture: {name} is {there} in the file and {here} here")
        value = state[name]
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not plain or value.is_floating_point() != expected[name].is_floating_point():
            kind = f"{value.dtype}, {value.layout}, on {value.device}"
            raise ConfigError(f"{file}: {name} is not a plain tensor of {expected[name].dtype}, but {kind}")
    target.load_state_dict(state)


def _first_parts(names: Iterable[str]) -> set[str]:
    """What comes before the first dot of each name; the empty text if a name has no dot."""
    return {name.rpartition(".")[0].partition(".")[0] for name in names}


@torch_defaults()
def load_model(path: str | Path, network: Callable[[], nn.Module] | None = None) -> models.Classifier:
    """A finished model from its model.pt or its folder, on the CPU in eval mode.

    ``model.predict`` takes images of any kind, see ``Classifier``. The model itself takes images (n, c, h, w), uint8 or
    floating point in [0, 1], and returns logits (n, classes). ``classes`` holds the class names, ``mean`` and ``std``
    the normalisation. Give ``network``, the function that makes the network, if the run's network came from Python.
    Parameters have channels-last strides, as in training, so that logits equal the scored ones to the last digit; for
    code that uses ``weight.view(-1)``, call ``.to(memory_format=torch.contiguous_format)``.
    """
    path = Path(path)
    if not path.exists() and path.suffix != ".pt":
        there = sorted(each.name for each in path.parent.glob("step_*"))
        raise ConfigError(f"{path} does not exist; {path.parent} has {', '.join(there) or 'no models'}")
    file = path / "model.pt" if path.is_dir() else path
    record = read_record(file.parent)
    check_hash(file, record["model_sha256"])
    if network is None:
        config = from_dict({"model": {k: v for k, v in record["model"].items() if v is not None}}).model
        if config.is_python:
            raise ConfigError(f"the network of {file} came from Python: call load_model(path, network=make_network)")
        network = network_factory(config, record["channels"], len(record["classes"]))
    zeros = torch.zeros(record["channels"])
    model = models.Classifier(network(), zeros, zeros)
    load_parameters(model, file)
    model.classes = tuple(record["classes"])
    model.size = _image_size(record)
    place(model, TrainConfig(), torch.device("cpu"))
    return model.eval()


def _image_size(record: dict[str, Any]) -> tuple[int, int] | None:
    """Height and width of the images that a model was trained on; None if an older version did not record them."""
    options = record.get("configuration", {})
    known = options.get("data.image_size") or OLD_SIZES.get(options.get("data.dataset"))
    height, width = record.get("size", (known, known))
    return (height, width) if height else None


def network_factory(config: ModelConfig, channels: int, classes: int) -> Callable[[], nn.Module]:
    """The function that makes the networks that ``config`` names. Raises ConfigError if it cannot be imported."""
    if config.network is None or not config.is_function:
        return lambda: models.build(config, channels, classes)
    name = config.network
    function = named_object(name, "--network")

    def make_network() -> nn.Module:
        try:
            network = function(channels, classes)
        except Exception as error:
            raise ConfigError(
                f"--network {name} failed when called with ({channels}, {classes}): {one_line(error)}"
            ) from error
        if not isinstance(network, nn.Module):
            raise ConfigError(f"--network {name} returned a {type(network).__name__}, not a torch.nn.Module")
        return network

    return make_network

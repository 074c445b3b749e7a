"""Fixtures: tiny data sets in the real on-disk formats, and a web server on this machine to download one from."""

import hashlib
import os
import pickle
import signal
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import hypothesis
import numpy as np
import pytest

# Before anything imports torch or matplotlib, here and in the programs that tests start.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    # One thread, or pytest-xdist's workers would fight for the cores; machines.py sets another number.
    os.environ[name] = os.environ.get("TEST_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
CACHE = tempfile.TemporaryDirectory()  # of decoded images
os.environ["XDG_CACHE_HOME"] = CACHE.name
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1"

# A shell's background jobs ignore SIGINT, and so would the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, so that a failure is the change's; `--hypothesis-profile=default` draws new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        import torch

        if not torch.cuda.is_available():
            for item in gpu:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def reset_captures():
    """A capture that failed in one test disables none in another."""
    if graph := sys.modules.get("distill.training.cuda_graph"):
        graph.GRAPHS.reset()


@pytest.fixture(autouse=True)
def no_drawing(request, monkeypatch):
    """Runs inside the tests' process write no report.html, and make figures without drawing them: that takes seconds.

    Tests marked ``page`` draw both.
    """
    is_page = request.node.get_closest_marker("page") is not None
    if not is_page and "distill.pages.style" in sys.modules:  # run_report loads it too
        monkeypatch.setattr("distill.reporting.run_report.write_page", lambda *_: True)
        monkeypatch.setattr("distill.reporting.study.write_page", lambda *_: True)
        monkeypatch.setattr("distill.pages.style.rendered", lambda figure, kind, *_: kind.encode())


def patterned_images(labels: np.ndarray, classes: int, size: int, seed: int) -> np.ndarray:
    """(n, 3, size, size) uint8 that a small network learns in a few epochs: a bright band whose height and colour
    tell the class, under noise. Mirroring and small shifts leave the class readable."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 100, (len(labels), 3, size, size))
    for image, label in zip(images, labels, strict=True):
        top = label * size // classes
        image[label % 3, top : top + max(2, size // classes)] += 120
    return images.astype(np.uint8)


def write_cifar_batch(path: Path, images: np.ndarray, labels: np.ndarray, label_key: str = "labels") -> None:
    """Images (n, 3, 32, 32) uint8 as a batch file of CIFAR's."""
    batch = {"batch_label": path.name, "data": images.reshape(len(images), -1), label_key: labels.tolist()}
    path.write_bytes(pickle.dumps(batch, protocol=2))


def write_tiny_cifar10(data_dir: Path) -> None:
    """Write 5 x 40 training and 60 test images in CIFAR-10's format into a data folder, the ten classes balanced."""
    folder = data_dir / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for seed, (name, n) in enumerate([*((f"data_batch_{i}", 40) for i in range(1, 6)), ("test_batch", 60)]):
        labels = np.random.default_rng(seed).permutation(np.arange(n) % 10)
        write_cifar_batch(folder / name, patterned_images(labels, 10, 32, seed), labels)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CLASSES)}, protocol=2))


@pytest.fixture(scope="session")
def tiny_cifar10(tmp_path_factory) -> Path:
    """A data folder with what ``write_tiny_cifar10`` writes."""
    data_dir = tmp_path_factory.mktemp("cifar10")
    write_tiny_cifar10(data_dir)
    return data_dir


@pytest.fixture(scope="session")
def tiny_cifar10_archive(tiny_cifar10, tmp_path_factory) -> tuple[Path, str]:
    """The same as cifar-10-python.tar.gz, in a folder of its own, and its MD5."""
    path = tmp_path_factory.mktemp("archive") / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tiny_cifar10 / "cifar-10-batches-py", "cifar-10-batches-py")
    return path, hashlib.md5(path.read_bytes()).hexdigest()


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="session")
def http_server() -> Iterator[Callable[[Path], str]]:
    """A function: ``http_server(folder)`` serves the folder and returns its address, http://127.0.0.1:<port>."""
    with ExitStack() as stack:

        def serve(folder: Path) -> str:
            server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(folder)))
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            return f"http://127.0.0.1:{server.server_port}"

        yield serve


def write_tiny_imagefolder(data_dir: Path) -> None:
    """Write train/ and test/ with three classes of 12 and 6 PNG images, 16x16."""
    from PIL import Image

    for seed, (part, each) in enumerate((("train", 12), ("test", 6))):
        labels = np.repeat(np.arange(3), each)
        for i, pixels in enumerate(patterned_images(labels, 3, 16, seed)):
            folder = data_dir / part / ("cat", "dog", "eel")[labels[i]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{i:04d}.png")


@pytest.fixture(scope="session")
def tiny_imagefolder(tmp_path_factory) -> Path:
    """A folder with what ``write_tiny_imagefolder`` writes."""
    data_dir = tmp_path_factory.mktemp("imagefolder")
    write_tiny_imagefolder(data_dir)
    return data_dir


@pytest.fixture
def stand_in(monkeypatch):
    """Graphs on the CPU, by the stand-in; chunks of eight images of 8x8, two batches each."""
    from tiny import StandIn

    from distill.training import cuda_graph as graph
    from distill.training import optim

    StandIn.made = []
    monkeypatch.setattr(graph, "Recording", StandIn)
    monkeypatch.setattr(graph.GraphCapture, "can_capture", staticmethod(lambda device: True))
    monkeypatch.setattr(optim, "can_fold", lambda *_: False)  # as on CUDA, also after the first step
    monkeypatch.setattr("distill.training.batches.CHUNK_PIXELS", 8 * 8 * 8)
    return StandIn


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of eight images of 8x8 (two batches of four), so that a small epoch has several."""
    monkeypatch.setattr("distill.training.batches.CHUNK_PIXELS", 8 * 8 * 8)


@pytest.fixture
def switches(monkeypatch):
    """torch's global switches, put back afterwards."""
    import torch

    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.allow_tf32, torch.get_float32_matmul_precision()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    yield
    torch.use_deterministic_algorithms(False)
    cudnn.benchmark, cudnn.allow_tf32, precision = before
    torch.set_float32_matmul_precision(precision)

"""A few runs and a short chain leave nothing in memory; the script of the full measurement notices what does."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.memory import Samples, growth, long_chain, many_runs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.parametrize("case", [many_runs, long_chain])
def test_nothing_grows(case, tmp_path):
    assert growth(case(tmp_path, 8).settled()) == []


@pytest.mark.parametrize(
    ("grows", "complaint"),
    [
        ({}, []),
        ({"objects": 300}, ["300.0 objects more each time"]),
        ({"handles": 1}, ["6 file descriptors more"]),
        ({"rss": 4 << 20}, ["20.0 MiB more"]),
    ],
)
def test_what_grows_is_named(grows, complaint):
    each = {"rss": 0, "handles": 0, "objects": 0} | grows
    samples = Samples(**{name: [1000 + step * i for i in range(10)] for name, step in each.items()})
    assert growth(samples.settled()) == complaint


LARGER_THAN_MEMORY = """
import resource
import sys
from pathlib import Path

import numpy as np
import torch

from distill import ChainConfig, Config, DataConfig, RunConfig, TrainConfig, from_arrays, run

folder = Path(sys.argv[1])
file = folder / "images.npy"
images = np.lib.format.open_memmap(file, "w+", np.uint8, (2400, 3, 256, 256))
images[::2, 0, :40] = 200
images.flush()
del images
labels = np.arange(2400) % 2
few = np.zeros((20, 3, 256, 256), np.uint8)


def network():
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 2))


torch.set_num_threads(1)
network()(torch.zeros(4, 3, 256, 256)).sum().backward()  # starts torch's threads
size = file.stat().st_size
held = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmData"))) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (held + size * 3 // 4,) * 2)
try:
    np.load(file)
    sys.exit("the whole set fits into memory")
except MemoryError:
    pass
source = from_arrays(np.load(file, mmap_mode="r"), labels, few, labels[:20])
config = Config(
    data=DataConfig(train_size=600, val_size=100, augment=False),
    train=TrainConfig(max_epochs=1, batch_size=4, lr=0.01),
    chain=ChainConfig(alpha=(0.5,), distillation_steps=1),
    run=RunConfig(output=str(folder / "run"), device="cpu", threads=1),
)
results = run(config, source, network)
assert all(result.val_acc > 0.9 for result in results), results
"""


def test_a_mapped_data_set_larger_than_memory_trains(tmp_path):
    command = [sys.executable, "-c", LARGER_THAN_MEMORY, str(tmp_path)]
    root = Path(__file__).parents[1]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr

"""device.py: the choice of a device, torch's switches and memory layouts."""

import pytest
import torch
from training_tools import CPU, classifier

from distill.config import TrainConfig
from distill.errors import ConfigError
from distill.training.device import channels_last, pick_device, place, set_up


def test_a_missing_device_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="--device cuda: no CUDA device here; try cpu"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # a driver too old for this build of torch
    with pytest.raises(ConfigError, match="no CUDA device here"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="--device cuda:2: only 2 CUDA devices here"):
        pick_device("cuda:2")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="--device mps: there is no such device here"):
        pick_device("mps")


@pytest.mark.parametrize(("cuda", "mps", "expected"), [(0, 0, "cpu"), (0, 1, "mps"), (1, 0, "cuda"), (1, 1, "cuda")])
def test_auto_chooses_cuda_then_mps_then_cpu(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(mps))
    assert pick_device("auto").type == expected


def test_tf32_needs_cuda():
    with pytest.raises(ConfigError, match="--precision tf32 needs a CUDA device, not cpu"):
        set_up(TrainConfig(precision="tf32"), CPU, None)


def test_set_up_switches_determinism_on_and_off(switches):
    set_up(TrainConfig(deterministic=True), CPU, None)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    set_up(TrainConfig(), CPU, None)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory  # as torch begins


@pytest.mark.parametrize(("name", "chosen"), [("cuda", []), ("cuda:0", [0]), ("cuda:1", [1])])
def test_set_up_makes_a_numbered_gpu_the_current_one(monkeypatch, switches, name, chosen):
    """``cuda`` without a number is the current device; torch.cuda.set_device refuses it."""
    numbers = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: numbers.append(device.index))
    set_up(TrainConfig(), torch.device(name), None)
    assert numbers == chosen


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_set_up_sets_the_precision_of_matrix_products(switches, precision):
    set_up(TrainConfig(precision=precision), torch.device("cuda"), None)
    for switch in (torch.backends.cuda.matmul, torch.backends.cudnn):
        assert switch.allow_tf32 == (precision == "tf32")  # which torch does not tell where its switches disagree
    assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == (precision == "tf32")


def test_set_up_sets_the_number_of_threads(switches):
    before = torch.get_num_threads()
    try:
        set_up(TrainConfig(), CPU, 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("device", ["cpu", "mps", "cuda", "cuda:1"])
def test_channels_last_on_a_cpu_and_for_tensor_cores(precision, device):
    last = channels_last(TrainConfig(precision=precision), torch.device(device))
    assert last == (device == "cpu" or (device.startswith("cuda") and precision != "fp32"))


def test_place_can_be_called_again(monkeypatch):
    model = place(classifier(), TrainConfig(), CPU)
    assert not model.network.blocks[0].conv1.weight.is_contiguous()
    monkeypatch.setattr("distill.training.device.channels_last", lambda train, device: False)
    assert place(model, TrainConfig(), CPU).network.blocks[0].conv1.weight.is_contiguous()

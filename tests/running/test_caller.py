"""distill.run in a program that has its own settings of torch: the same results, and the settings afterwards."""

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
import tiny
import torch

import distill


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain")
    distill.run(tiny.config(path, max_epochs=1), tiny.source())
    return tiny.contents(path)


def state() -> list:
    return [
        *(torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()),
        *(torch.is_inference_mode_enabled(), torch.get_deterministic_debug_mode(), torch.is_autocast_enabled("cpu")),
        *(torch.get_float32_matmul_precision(), torch.get_num_threads(), np.geterr()),
        *(torch.backends.cudnn.benchmark, torch.get_rng_state().tolist()),
    ]


@pytest.fixture
def torch_as_it_was() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    yield
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision(before[0])
    torch.set_num_threads(before[1])


@pytest.mark.parametrize(
    "enter",
    [
        lambda stack: stack.enter_context(torch.no_grad()),
        lambda stack: stack.enter_context(torch.inference_mode()),
        lambda stack: torch.set_default_dtype(torch.float64),
        lambda stack: torch.use_deterministic_algorithms(True, warn_only=True),
        lambda stack: stack.enter_context(torch.device("meta")),
        lambda stack: stack.enter_context(torch.autocast("cpu")),
        lambda stack: torch.set_float32_matmul_precision("medium"),
        lambda stack: torch.set_num_threads(2),
        lambda stack: stack.enter_context(np.errstate(all="raise")),
        lambda stack: torch.manual_seed(99),
    ],
    ids=[
        "no_grad",
        "inference",
        "float64",
        "deterministic",
        "meta",
        "autocast",
        "medium",
        "threads",
        "errstate",
        "seed",
    ],
)
@pytest.mark.usefixtures("torch_as_it_was")
def test_a_run_depends_on_no_setting_of_its_caller_and_changes_none(tmp_path, expected, enter):
    with ExitStack() as stack:
        enter(stack)
        before = state()
        results = distill.run(tiny.config(tmp_path, max_epochs=1), tiny.source())
        model = distill.load_model(tmp_path / "seed_1/step_0")
        assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())
        assert state() == before
    assert len(results) == 3
    assert tiny.contents(tmp_path) == expected

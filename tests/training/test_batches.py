"""batches.py: chunks hold every image once, and training depends neither on chunks nor on where images are kept."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from training_tools import (
    CPU,
    a_teacher,
    assert_same_bits,
    plan_of,
    pool_of,
    split_of,
    trained,
)

from distill.config import TrainConfig
from distill.data.splits import Split
from distill.training import augment
from distill.training.batches import CHUNK_PIXELS, ImageStore, _copy_stream, chunk_size, chunks, make_image_store
from distill.training.predict import predict_all


@pytest.mark.parametrize("size", [4, 8, 12, 100])
def test_chunks_hold_every_image_once_in_the_plans_order(size):
    pool, plan = pool_of(30), plan_of(30)
    images, labels = zip(*chunks(pool, plan, size), strict=True)
    assert [len(part) for part in images] == [min(size, 30 - i) for i in range(0, 30, size)]
    assert torch.equal(torch.cat(images), augment.apply(pool.images[plan.order], plan))
    assert torch.equal(torch.cat(labels), pool.labels[plan.order])


@pytest.mark.parametrize("batch", [2, 3, 16, 100, 2000])
@pytest.mark.parametrize("size", [8, 32, 224])
def test_a_chunk_is_a_whole_number_of_batches(batch, size):
    pool = SimpleNamespace(images=torch.empty(1, 3, size, size))
    chunk = chunk_size(pool, batch)
    assert chunk % batch == 0
    assert chunk == batch or chunk * size**2 <= CHUNK_PIXELS


def test_training_does_not_depend_on_the_chunks(monkeypatch):
    whole = trained(pool_of(30))
    monkeypatch.setattr("distill.training.batches.CHUNK_PIXELS", 64 * 8)
    assert_same_bits(whole, trained(pool_of(30)))


class OnHost:
    """Images on the host, as of a data set that is too large for the device."""

    device = torch.device("meta")

    def __init__(self, images: torch.Tensor):
        self.images, self.shape = images, images.shape

    def __getitem__(self, index):
        return self.images[index]


def test_streamed_images_train_the_same_model(monkeypatch, small_chunks):
    """Images that stay on the host, with stand-ins for CUDA streams."""
    resident = trained(pool_of(30), a_teacher())
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *args: stream)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    pool = pool_of(30)
    streamed = ImageStore(OnHost(pool.images), pool.labels, CPU)
    assert_same_bits(resident, trained(streamed, a_teacher()))


def test_each_thread_and_device_has_its_own_copy_stream(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: (device, object()))
    monkeypatch.setattr("distill.training.batches._per_thread", threading.local())
    devices = [torch.device("cuda", i) for i in (0, 1)]
    here = [_copy_stream(device) for device in devices]
    assert [stream[0] for stream in here] == devices
    assert [_copy_stream(device) for device in devices] == here
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(_copy_stream, devices[0]).result()
    assert there[0] == devices[0]
    assert there != here[0]


def test_strides_of_a_single_channel_do_not_change_the_bits():
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8)).astype(np.uint8)
    labels, index = np.arange(6) % 3, np.arange(6)
    as_stacked = np.lib.stride_tricks.as_strided(images, (6, 1, 8, 8), (64, 1, 8, 1))
    strides = {
        make_image_store(Split(layout, labels, labels, index), CPU).images.stride()
        for layout in (images[:, None], as_stacked)
    }
    assert strides == {(64, 64, 8, 1)}


@pytest.mark.parametrize("part", [False, True], ids=["whole", "part"])
def test_mapped_images_train_the_same_model(tmp_path, small_chunks, part):
    split = split_of(30)
    np.save(tmp_path / "images.npy", split.images)
    mapped = replace(split, images=np.load(tmp_path / "images.npy", mmap_mode="r"))
    if part:
        rows = np.array([0, 1, 5, *range(7, 29)])
        split, mapped = split.take(rows), mapped.take(rows)
    pools = [make_image_store(each, CPU) for each in (split, mapped)]
    assert np.shares_memory(pools[1].images.numpy(), getattr(mapped.images, "whole", mapped.images))
    assert_same_bits(*(trained(pool, a_teacher()) for pool in pools))
    predictions = [predict_all(a_teacher(), pool, TrainConfig(batch_size=4)) for pool in pools]
    assert torch.equal(*predictions)

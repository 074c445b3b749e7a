"""fit.py on a CUDA device."""

import pytest
import torch
from training_tools import a_teacher, assert_same_bits, classifier, pool_of, split_of, trained

from distill.config import TrainConfig
from distill.training.batches import make_image_store
from distill.training.device import set_up
from distill.training.predict import predict_all


def on_gpu(resident: bool | None = None) -> dict[str, torch.Tensor]:
    cuda = torch.device("cuda")
    train = TrainConfig(deterministic=True, optimizer="sgd")
    set_up(train, cuda, None)
    pool = make_image_store(split_of(30), cuda, resident)
    assert pool.images.is_cuda == (resident is not False)
    return trained(pool, a_teacher().to(cuda), deterministic=True, optimizer="sgd")


@pytest.mark.gpu
def test_gpu_and_cpu_train_the_same_model(switches, small_chunks):
    there, here = on_gpu(), trained(pool_of(30), a_teacher(), optimizer="sgd")
    for name, value in here.items():
        torch.testing.assert_close(there[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_training_twice_on_a_gpu_gives_the_same_bits(switches, small_chunks):
    assert_same_bits(on_gpu(), on_gpu())


@pytest.mark.gpu
def test_images_on_the_host_and_on_the_gpu_train_the_same_bits(switches, small_chunks):
    assert_same_bits(on_gpu(resident=True), on_gpu(resident=False))


@pytest.mark.gpu
def test_predictions_do_not_depend_on_where_the_images_are(switches, small_chunks):
    cuda, train = torch.device("cuda"), TrainConfig(batch_size=4)
    set_up(train, cuda, None)
    model = classifier().to(cuda)
    one, other = (predict_all(model, make_image_store(split_of(30), cuda, r), train) for r in (True, False))
    assert torch.equal(one, other)
    here = predict_all(classifier(), pool_of(30), train)
    torch.testing.assert_close(one, here, rtol=1e-4, atol=1e-4)

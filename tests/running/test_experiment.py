import pytest
import torch
from tiny import config, config_of, contents, rows, source

import distill
from distill.errors import UserError
from distill.running import experiment
from distill.running.experiment import count_models, prepare


def test_a_given_teacher_is_not_counted_as_a_model_to_train(tmp_path):
    c = config(tmp_path, alpha=[0, 1], seed=[1, 2, 3], teacher_ckpt="teacher.pt", distillation_steps=4)
    assert count_models(c) == 3 * 2 * 4


def test_several_jobs_refuse_a_network_or_images_from_python(tmp_path):
    with pytest.raises(UserError, match=r"package\.module:function"):
        distill.run(config(tmp_path / "run", jobs=2), source=source())
    assert not (tmp_path / "run").exists()


def test_more_jobs_than_a_device_has_streams_for_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "pick_device", lambda name: torch.device("cuda"))
    with pytest.raises(UserError, match="--jobs 17: at most 16 on a CUDA device"):
        prepare(config(tmp_path, jobs=17), source())


@pytest.mark.parametrize("options", [{"device": "cuda"}, {"devices": "all"}, {"precision": "tf32"}])
def test_a_process_that_submits_jobs_needs_no_gpu(tmp_path, options):
    options = {"device": "auto", "executor": "slurm", **options}
    assert prepare(config(tmp_path, **options), source()).device.type == "cpu"


def test_a_network_named_in_the_configuration_works_with_jobs(tmp_path, folder, monkeypatch):
    """Workers import it by its name."""
    module = (
        "from torch import nn\ndef make(channels, classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear({}))\n"
    )
    (tmp_path / "named_network.py").write_text(module.format("channels * 256, classes"))
    monkeypatch.syspath_prepend(tmp_path)
    options = {"network": "named_network:make", "max_epochs": 1, "batch_size": 8, "alpha": [0, 0.5], "device": "cpu"}
    options |= folder | {"distillation_steps": 1, "threads": 1}
    distill.run(config_of(output=str(tmp_path / "one"), **options))
    distill.run(config_of(output=str(tmp_path / "two"), jobs=2, **options))
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert len(rows(tmp_path / "one" / "results.csv")) == 3


def test_other_data_than_those_of_the_given_sha256_are_refused(tmp_path):
    right = source().fingerprint
    assert prepare(config(tmp_path, data_sha256=right), source()).config.data.data_sha256 == right
    with pytest.raises(UserError, match=f"not those of --data-sha256; theirs is {right}"):
        prepare(config(tmp_path, data_sha256="0" * 64), source())

"""Chains whose students learn from other targets than the teacher's probabilities, or begin elsewhere."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import config, contents, killed_at, refusal, source

import distill
from distill.chains.checkpoints import load_model
from distill.data.splits import make_dataset
from distill.errors import UserError
from distill.randomness import generator, torch_seed
from distill.training.models import CifarResNet

OPTIONS = {"label_noise": 0.2, "loss": "gce", "lr": 0.03, "max_epochs": 3}


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)


def record(folder):
    return json.loads((folder / "result.json").read_text())


def teacher_logits(run, options):
    """The first teacher's logits on the training images, and these images' given and true labels."""
    train = make_dataset(source(), options.data, seed=1).train
    with torch.no_grad():
        logits = load_model(run / "seed_1" / "step_0")(torch.from_numpy(train.images))
    return logits, torch.from_numpy(train.labels), torch.from_numpy(train.true_labels)


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A finished grid of all kinds of targets."""
    run = tmp_path_factory.mktemp("grid")
    options = config(run, target=["soft", "hard", "consensus", "top2"], alpha=[0.3, 1], **OPTIONS)
    results = distill.run(options, source=source())
    return run, options, results


def test_kinds_without_alpha_have_one_arm_and_alpha_one_is_shared(grid):
    run, _, results = grid
    folders = sorted(folder.name for folder in (run / "seed_1").iterdir() if folder.is_dir())
    assert folders == ["alpha_0.3", "alpha_1", "consensus", "hard_0.3", "step_0", "top2"]
    assert len(results) == 1 + 5 * 2
    assert (
        len({tuple(weights(run / "seed_1" / arm / "step_1")["network.fc.bias"].tolist()) for arm in folders[:4]}) == 4
    )


def test_records_state_what_the_targets_were_worth(grid):
    run, options, _ = grid
    logits, given, true = teacher_logits(run, options)
    predicted = logits.argmax(1)
    kept = predicted == given
    found = {arm: record(run / "seed_1" / arm / "step_1").get("target") for arm in ("alpha_0.3", "consensus", "top2")}
    assert found["alpha_0.3"] is None
    right = (given == true)[kept].double().mean().item()
    assert found["consensus"] == {"kind": "consensus", "kept": int(kept.sum()), "right": right}
    best = np.argsort(-logits.numpy(), axis=1)[:, :2]
    assert found["top2"] == {"kind": "top2", "right": np.mean((best == true.numpy()[:, None]).any(1))}
    hard = record(run / "seed_1" / "hard_0.3" / "step_1")["target"]
    assert hard == {"kind": "hard", "right": (predicted == true).double().mean().item()}


def test_consensus_is_plain_training_on_the_kept_images(tmp_path):
    """Plain gradient descent by hand, with nothing of the program but its draws."""
    plain = {"optimizer": "sgd", "momentum": 0, "reg": "none", "augment": False, "lr": 0.5, "max_epochs": 2}
    options = config(tmp_path, target="consensus", alpha=[], label_noise=0.2, distillation_steps=1, **plain)
    distill.run(options, source=source())
    logits, given, _ = teacher_logits(tmp_path, options)
    kept = np.flatnonzero(logits.argmax(1) == given)
    assert 8 <= len(kept) < len(given)
    data = make_dataset(source(), options.data, seed=1)
    mean, std = (torch.from_numpy(m)[:, None, None] for m in (data.mean, data.std))
    torch.manual_seed(torch_seed(1, "init", 1))
    student = CifarResNet(8, 2, 1, 3).train()
    for epoch in range(2):
        order = kept[generator(1, "epoch", 1, epoch).permutation(len(kept))]
        for rows in (order[i : i + 8] for i in range(0, len(order) - 1, 8)):
            images = (torch.from_numpy(data.train.images[rows]).float() / 255 - mean) / std
            loss = (student(images).softmax(1) - F.one_hot(given[rows], 3)).square().mean()
            gradients = torch.autograd.grad(loss, [*student.parameters()])
            with torch.no_grad():
                for p, gradient in zip(student.parameters(), gradients, strict=True):
                    p -= 0.5 * gradient
    trained = weights(tmp_path / "seed_1" / "consensus" / "step_1")
    for name, value in student.named_parameters():
        torch.testing.assert_close(trained[f"network.{name}"], value.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["hard", "consensus", "top2"])
@pytest.mark.parametrize("init", ["teacher", "same"])
def test_resuming_in_the_middle_of_a_student_is_exact(tmp_path, target, init):
    options = {**OPTIONS, "target": target, "student_init": init, "distillation_steps": 1}
    options["alpha"] = 0.3 if target == "hard" else []
    distill.run(config(tmp_path / "whole", **options), source=source())
    with killed_at("training_state.pt", 3 + 2):  # the student's second epoch
        distill.run(config(tmp_path / "cut", **options), source=source())
    distill.run(config(tmp_path / "cut", **options), source=source())
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_auto_with_hard_labels_has_a_probe_on_hard_labels(tmp_path):
    options = {**OPTIONS, "distillation_steps": 1, "val_size": 9}
    distill.run(config(tmp_path / "auto", target="hard", alpha="auto", **options), source=source())
    distill.run(config(tmp_path / "fixed", target="hard", alpha=0, **options), source=source())
    probe, fixed = (
        weights(tmp_path / path) for path in ("auto/seed_1/hard_auto/step_1/probe", "fixed/seed_1/hard_0/step_1")
    )
    assert all(torch.equal(fixed[name], value) for name, value in probe.items())
    assert "auto" in record(tmp_path / "auto" / "seed_1" / "hard_auto" / "step_1")


@pytest.mark.parametrize("init", ["fresh", "teacher", "same"])
def test_initial_parameters_of_a_student(tmp_path, init):
    """With a learning rate of nearly 0 the student stays where it began."""
    options = {"student_init": init, "lr": 1e-30, "distillation_steps": 1, "max_epochs": 1}
    distill.run(config(tmp_path, **options), source=source())
    student, teacher = (weights(tmp_path / "seed_1" / folder) for folder in ("alpha_0.3/step_1", "step_0"))
    torch.manual_seed(torch_seed(1, "init", 1 if init == "fresh" else 0))
    drawn = CifarResNet(8, 2, 1, 3).state_dict()
    expected = drawn["conv1.weight"]
    assert torch.allclose(student["network.conv1.weight"], expected)
    assert torch.allclose(student["network.conv1.weight"], teacher["network.conv1.weight"]) == (init != "fresh")
    # Only the teacher's own averages show that the student began as the trained teacher.
    batches = 5 if init != "teacher" else 10
    assert student["network.bn1.num_batches_tracked"] == batches


@pytest.mark.parametrize("alpha", [-0.5, 1.5])
def test_alphas_outside_the_unit_interval_resume_exactly(tmp_path, alpha):
    options = {"alpha_schedule": [alpha, 0.5], "alpha": alpha, "distillation_steps": 2, "max_epochs": 2}
    distill.run(config(tmp_path / "whole", **options), source=source())
    with killed_at("training_state.pt", 2 + 1):
        distill.run(config(tmp_path / "cut", **options), source=source())
    distill.run(config(tmp_path / "cut", **options), source=source())
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    folders = [folder.name for folder in sorted((tmp_path / "cut" / "seed_1").glob("alpha_*"))]
    assert folders == [f"alpha_{alpha}", f"alpha_{alpha}-0.5"]


REFUSED = [
    ("--target top2", "target top2 needs --loss gce, not mse"),
    ("--target hard --loss ce --temperature 2", "of which target hard takes only the order"),
    ("--target consensus --distillation-steps 0", "target consensus is for students, and this run trains none"),
    ("--target hard --alpha preview --val-size 50", "target hard is for students"),
    ("--target hard --preview --val-size 50", "--preview forecasts chains of soft targets only"),
    ("--student-init teacher --distillation-steps 0", "student_init teacher is for students, and this run trains none"),
    ("--target consensus --alpha 0.3", "target consensus takes no alpha; leave --alpha out"),
    ("--target hard hard", "target has a value twice"),
    ("--target firm", "invalid choice: 'firm'"),
    ("--loss ce --alpha -0.5", "alpha -0.5 is outside [0, 1], which needs --loss mse"),
    ("--loss kl --alpha-schedule 0.5 1.5", "alpha 1.5 is outside [0, 1], which needs --loss mse"),
    ("--loss ce --alpha auto --val-size 50 --alpha-range -1 2", "alpha -1 is outside [0, 1], which needs --loss mse"),
    ("--alpha 0.5 --alpha-range -1 2", "alpha_range is for --alpha auto"),
    ("--alpha auto --val-size 50 --alpha-range 1 2", "alpha_range must be two numbers, LOW <= 0 < HIGH, not 1 2"),
    ("--alpha auto --val-size 50 --alpha-range 0", "alpha_range must be two numbers"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED)
def test_targets_and_alphas_that_do_not_fit_are_refused(capsys, tmp_path, words, said):
    assert said in refusal(capsys, tmp_path / "run", "--dataset", "digits", "--resnet", "8", *words.split())


def test_two_classes_have_no_two_best(tmp_path):
    binary = source()
    labels = np.minimum(binary.train_labels, 1), np.minimum(binary.test_labels, 1)
    data = distill.from_arrays(binary.train_images, labels[0], binary.test_images, labels[1])
    with pytest.raises(UserError, match="target top2 needs 3 classes"):
        distill.run(config(tmp_path, target="top2", alpha=[], loss="gce"), source=data)


def test_a_teacher_that_agrees_with_too_few_labels_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"predicts the given label of .* lower --batch-size"):
        distill.run(config(tmp_path, target="consensus", alpha=[], label_noise=1.0, batch_size=32), source=source())

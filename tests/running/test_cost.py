import pytest
from tiny import config, source

from distill.arms import Estimated, Fixed, Student
from distill.chains.checkpoints import write_tensors
from distill.chains.model_training import STATE
from distill.errors import UserError
from distill.records import write_json
from distill.running import cost as cost_module
from distill.running.cost import Cost, done_in, measure
from distill.running.experiment import prepare
from distill.running.trial import trial_of
from distill.training.fit import Trainer


def cost(tmp_path, **options) -> Cost:
    """Ten updates an epoch; round times: 2 s an update of a teacher, 3 of a student, 0.1 an image, 5 a checkpoint."""
    c = config(tmp_path, max_epochs=4, **options)
    return Cost(c, 10, train=40, held_out=20, test=30, teacher=2.0, student=3.0, evaluation=0.1, checkpoint=5.0)


HALF = Student("0.5", 1, Fixed(0.5))
TEACHER = 4 * (10 * 2 + 2 + 5) + 9  # four epochs with a look at the held-out images, and all three splits at the end


STUDENT = 4 * (10 * 3 + 2 + 5) + 9


def test_the_cost_of_a_model_is_the_sum_of_its_parts(tmp_path):
    assert cost(tmp_path).model(with_teacher=False) == pytest.approx(TEACHER)
    assert cost(tmp_path).model(with_teacher=True) == pytest.approx(STUDENT)


@pytest.mark.parametrize(
    ("options", "chain", "grid"),
    [
        ({"distillation_steps": 2}, TEACHER + 2 * STUDENT, TEACHER + 2 * STUDENT),
        ({"distillation_steps": 0}, TEACHER, TEACHER),
        ({"alpha": [1], "distillation_steps": 2}, 3 * TEACHER, 3 * TEACHER),
        ({"alpha": [0, 1], "seed": [1, 2, 3]}, TEACHER + 2 * STUDENT, 3 * (TEACHER + 2 * STUDENT + 2 * TEACHER)),
        ({"teacher_ckpt": "t.pt"}, 2 * STUDENT, 2 * STUDENT),
        ({"alpha": [0, 0.5], "seed": [1, 2], "jobs": 2}, TEACHER + 2 * STUDENT, TEACHER + 4 * STUDENT),
        ({"alpha": [0, 0.5], "seed": [1, 2], "jobs": 8}, TEACHER + 2 * STUDENT, TEACHER + 2 * STUDENT),
    ],
)
def test_chains_and_grids_are_sums_of_models(tmp_path, options, chain, grid):
    assert cost(tmp_path, **options).chain == pytest.approx(chain)
    assert cost(tmp_path, **options).grid == pytest.approx(grid)


@pytest.mark.parametrize(
    ("done", "left"),
    [
        ({}, 2 * TEACHER + 8 * STUDENT),
        ({(1, None): 1.0}, TEACHER + 8 * STUDENT),
        ({(1, None): 1.0, (1, HALF): 0.25}, TEACHER + 7.75 * STUDENT),
        ({(1, None): 1.0, (3, None): 1.0, (1, HALF): 1.0}, TEACHER + 7 * STUDENT),  # seed 3 is no part of it
    ],
)
def test_finished_training_is_subtracted_from_the_cost(tmp_path, done, left):
    options = {"alpha": [0, 0.5], "seed": [1, 2], "distillation_steps": 2}
    assert cost(tmp_path, **options).left(done) == pytest.approx(left)
    assert cost(tmp_path, **options, jobs=2).left(done) == pytest.approx(max(left / 2, TEACHER + 2 * STUDENT))


def test_done_in_reads_the_finished_share_of_each_model(tmp_path):
    """Of a finished model all, of a model in training its epochs, of an estimated alpha's probe a half."""
    c = config(tmp_path, max_epochs=4, alpha=[0.5, "auto"], seed=[1, 2], val_size=6, distillation_steps=2)
    assert done_in(c) == {}
    for folder in ("seed_1/step_0", "seed_1/alpha_0.5/step_1", "seed_1/alpha_auto/step_1/probe", "seed_2/step_0"):
        (tmp_path / folder).mkdir(parents=True)
    write_json(tmp_path / "seed_1" / "step_0" / "result.json", {})
    for folder in ("seed_1/alpha_0.5/step_1", "seed_1/alpha_auto/step_1/probe", "seed_2/step_0"):
        write_tensors(tmp_path / folder / STATE, {"rows": [{}]})
    estimated = (1, Student("auto", 1, Estimated()))
    quarter = {(1, HALF): 0.25, estimated: 0.125, (2, None): 0.25}
    assert done_in(c) == {(1, None): 1.0} | quarter
    write_json(tmp_path / "seed_1" / "alpha_auto" / "step_1" / "probe" / "result.json", {})
    assert done_in(c) == {(1, None): 1.0} | quarter | {estimated: 0.5}
    write_tensors(tmp_path / "seed_2" / "step_0" / STATE, {"lines": []})
    with pytest.raises(UserError, match="does not belong to this training; delete it"):
        done_in(c)


def test_teacher_and_student_take_turns_and_medians_count(tmp_path, monkeypatch):
    trial = trial_of(prepare(config(tmp_path), source()))
    asked, seconds = [], iter([0.1] * 6 + [1, 5, 2, 6, 9, 4])  # two warm-ups and a burst each, and three in turn

    def burst(trainer, with_teacher, updates):
        asked.append(with_teacher)
        return next(seconds)

    monkeypatch.setattr(trial, "burst", burst)
    monkeypatch.setattr(trial, "evaluation", lambda: 0.1)
    monkeypatch.setattr(trial, "checkpoint", lambda: 0.1)
    monkeypatch.setattr(cost_module, "trial_of", lambda lab: trial)
    made = measure(prepare(config(tmp_path), source()))
    assert asked == [False] * 3 + [True] * 3 + [False, True] * 3
    assert (made.teacher, made.student) == (2 / made.updates, 5 / made.updates)
    assert made.scatter == 9


def test_bursts_use_the_runs_batch_size_and_teacher(tmp_path, monkeypatch):
    """Its batch size, its chunks, with a teacher and without; and nothing is left on disk."""
    seen, epoch = [], Trainer.epoch

    def spied(self, pool, plan, classes, teacher, alpha, listener):
        seen.append((self.train.batch_size, len(plan), teacher is not None))
        return epoch(self, pool, plan, classes, teacher, alpha, listener)

    monkeypatch.setattr(Trainer, "epoch", spied)
    made = measure(prepare(config(tmp_path / "run", val_size=6), source()))
    assert (made.updates, made.held_out, made.test) == (5, 6, 20)
    assert {batch for batch, _, _ in seen} == {8}
    assert {(images, taught) for _, images, taught in seen} >= {(24, False), (24, True), (35, False), (35, True)}
    assert min(made.teacher, made.student, made.evaluation, made.checkpoint) > 0
    assert not (tmp_path / "run").exists()


def test_a_diverging_learning_rate_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"not finite at update .*; try a smaller --lr"):
        measure(prepare(config(tmp_path, lr=1e38, optimizer="sgd"), source()))

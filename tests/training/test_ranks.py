"""ranks.py and sync_batchnorm.py: two processes against one, in float64. What they compute is in ranks_tools.py."""

import copy
import threading

import pytest
import torch
from ranks_tools import CPU, NORMS, TRAININGS, environment_of, everything, start_ranks
from torch.nn import functional
from training_tools import CLASSES, classifier, named, plan_of, pool_of

from distill.errors import ConfigError
from distill.training import augment, ranks
from distill.training.ranks import ALONE, RankLostError, Ranks, joined

EXACT = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> list[dict]:
    """What the two ranks have computed."""
    file = tmp_path_factory.mktemp("ranks") / "computed"
    processes = start_ranks(2, "tests/ranks_tools.py", str(file))
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return [torch.load(f"{file}.{rank}", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> dict:
    """What one process computes."""
    single = torch.Tensor.float
    norms = copy.deepcopy(NORMS)
    try:
        return everything(ALONE)
    finally:
        torch.Tensor.float = single
        NORMS[:] = norms


@pytest.mark.parametrize("i", range(len(TRAININGS)), ids=[named(options) for options, *_ in TRAININGS])
def test_two_ranks_train_the_model_of_one_process(both, alone, i):
    expected = alone["trainings"][i]
    for computed in (rank["trainings"][i] for rank in both):
        torch.testing.assert_close(computed["model"], expected["model"], **EXACT)
        torch.testing.assert_close(computed["kept"], expected["kept"], **EXACT)
        torch.testing.assert_close(computed["logits"], expected["logits"], **EXACT)
        for name, value in expected["metrics"].items():
            assert computed["metrics"][name] == (value if value is None else pytest.approx(value, rel=1e-9)), name


@pytest.mark.parametrize("i", range(len(TRAININGS)))
def test_the_ranks_agree_to_the_last_bit(both, i):
    mine, theirs = (rank["trainings"][i] for rank in both)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("i", range(len(NORMS)))
def test_batch_normalisation_over_two_ranks(both, alone, i):
    for rank in both:
        torch.testing.assert_close(rank["norms"][i], alone["norms"][i], **EXACT)


def test_without_synchronisation_each_rank_normalises_its_part(both):
    """The gradient is the mean of those of the two halves of the batch, each normalised by itself."""
    model = classifier().double().train()
    pool, plans = pool_of(8), [plan_of(8, epoch) for epoch in range(2)]
    for plan in plans:
        model.zero_grad()
        before = copy.deepcopy(model.state_dict())
        for half in (slice(4, 8), slice(0, 4)):
            model.load_state_dict(before)  # in the end the statistics are those of rank 0's images
            images = augment.apply(pool.images[plan[half].order], plan[half]).double() / 255
            truth = functional.one_hot(pool.labels[plan[half].order], CLASSES)
            (functional.mse_loss(model(images).softmax(1), truth.double()) / 2).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
    trained = both[0]["unsynchronised"]
    torch.testing.assert_close(trained["model"], dict(model.state_dict()), **EXACT)
    torch.testing.assert_close(both[1]["unsynchronised"]["logits"], trained["logits"], rtol=0, atol=0)


def test_tensors_of_any_type_are_copied_from_rank_0(both):
    for rank in both:
        floats, flags, number = rank["copied"]
        assert floats.tolist() == [[0.5, 0.5]] * 3
        assert flags.tolist() == [True, False, True]
        assert number.item() == 0


def test_fewer_rows_than_ranks_are_computed_by_all(both):
    assert all(rank["few"].tolist() == [[0]] for rank in both)


def test_a_loss_that_is_not_finite_on_one_rank_ends_the_epoch_on_all(both, alone):
    assert alone["not_finite"] == "no error"
    assert {rank["not_finite"] for rank in both} == {"the loss is not finite at update 3"}


@pytest.mark.parametrize(
    ("n", "batch", "size"), [(40, 8, 2), (42, 8, 4), (46, 8, 4), (47, 12, 3), (7, 12, 3), (5, 8, 4)]
)
def test_the_shares_are_the_batches(n, batch, size):
    """Every image of a batch is in one rank's share, or in all; weights of a batch add up to 1."""
    plan = plan_of(n)
    shares = [Ranks(rank, size).shares(plan, batch) for rank in range(size)]
    batches = [[] for _ in range(-(-n // batch))]
    for mine in shares:
        at = 0
        for share in mine:
            for start in range(0, len(share.plan), share.size):
                batches[at].append((share, share.plan.order[start : start + share.size].tolist()))
                at += 1
        assert at == len(batches)
    for number, parts in enumerate(batches):
        expected = plan.order[number * batch : (number + 1) * batch].tolist()
        assert sum(share.weight for share, _ in parts) == pytest.approx(1)
        found = parts[0][1] if parts[0][0].copies > 1 else [row for _, rows in parts for row in rows]
        assert found == expected
        assert all(len(rows) >= 2 for _, rows in parts)
        assert all(share.copies in (1, size) and share.batch == len(expected) for share, _ in parts)


def test_one_process_has_the_whole_plan():
    (share,) = ALONE.shares(plan := plan_of(30), 8)
    assert (share.plan, share.size, share.batch, share.weight) == (plan, 8, 8, 1.0)


def test_work_that_was_left_in_the_middle_is_not_followed_by_other_work():
    leader = Ranks(0, 2)
    leader.send = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(MemoryError), leader.work("predict", "test"):
        raise MemoryError("no memory")
    with pytest.raises(RankLostError, match=r"its own work failed \(no memory\); run the same command to resume"):
        Ranks.send(leader, "predict", "test")


@pytest.fixture
def rank_0_of_2(monkeypatch):
    for name, value in environment_of(0, 2, 1).items():
        monkeypatch.setenv(name, value)


def test_ranks_that_do_not_come_are_a_note_and_then_an_error(rank_0_of_2, monkeypatch, capsys):
    monkeypatch.setattr(ranks, "SILENCE", 0.01)
    monkeypatch.setattr(ranks, "WAIT", 0.06)
    over = threading.Event()
    monkeypatch.setattr(ranks.dist, "init_process_group", lambda *_, **__: over.wait())
    reason = r"rank 0 waited 0\.001 minutes .*: WORLD_SIZE is 2; start with torchrun"
    with pytest.raises(ConfigError, match=reason), joined(CPU):
        pass
    over.set()
    assert capsys.readouterr().err == "note: rank 0 waits for the other ranks: WORLD_SIZE is 2\n"


def test_ranks_that_cannot_connect_are_an_error(rank_0_of_2, monkeypatch):
    def failing(*_, **__) -> None:
        raise RuntimeError

    monkeypatch.setattr(ranks.time, "sleep", lambda _: None)
    monkeypatch.setattr(ranks.dist, "init_process_group", failing)
    with pytest.raises(RankLostError), joined(CPU):
        pass

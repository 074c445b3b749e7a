"""distill.arms: names, order, sharing and counts, by enumeration."""

import itertools
import random
import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill.arms import (
    ALPHA_WORDS,
    TEACHER,
    Consensus,
    Estimated,
    Fixed,
    Hard,
    Student,
    Top2,
    arm_folder,
    arm_name,
    arm_title,
    disjoint_groups,
    estimates_alpha,
    sort_key,
    students,
    students_of,
    target,
    trainings,
)

AUTO = Estimated()


@pytest.mark.parametrize(
    ("arm", "name"),
    [
        (TEACHER, None),
        ((Fixed(0.6),) * 3, "0.6"),
        ((Fixed(1),), "1"),
        ((Fixed(0.2), Fixed(0.4), Fixed(0.4)), "0.2-0.4"),
        ((Fixed(0.4), Fixed(0.2), Fixed(0.4)), "0.4-0.2-0.4"),
        ((Fixed(1e-5), AUTO), "1e-05-auto"),
        ((Fixed(0.2), Fixed(-0.5)), "0.2--0.5"),
        ((Hard(0.0), Hard(0.3)), "hard_0-hard_0.3"),
        ((Estimated(Hard),) * 2, "hard_auto"),
        ((Consensus(1.0),) * 2, "consensus"),
        ((Top2(0.0),), "top2"),
    ],
)
def test_arm_names(arm, name):
    assert arm_name(arm) == name


def test_a_target_is_a_number_or_a_word():
    assert target(0.25) == Fixed(0.25)
    assert target("auto") == AUTO
    assert all(target(word).name == word for word in ALPHA_WORDS)


def test_arm_titles():
    titles = {
        **{None: "teacher", "0.6": "alpha = 0.6", "auto": "auto", "0.2-auto": "alpha = 0.2 then auto"},
        **{"1e-05-auto-1e-05": "alpha = 1e-05 then auto then 1e-05"},
        **{"-0.5": "alpha = -0.5", "hard_0.6": "hard, alpha = 0.6", "hard_auto": "hard, auto", "top2": "top2"},
        **{"hard_0-hard_-0.3": "hard, alpha = 0 then -0.3", "1-hard_0": "hard, alpha = 1 then 0"},
    }
    assert {name: arm_title(name) for name in titles} == titles


def test_folders_of_arms():
    names = ("0.6", "-0.5", "auto", "hard_0.6", "consensus")
    assert [arm_folder(name) for name in names] == [*("alpha_0.6", "alpha_-0.5", "alpha_auto", "hard_0.6", "consensus")]


def test_sorting_puts_the_teacher_first_numbers_by_size_and_words_last():
    ordered = [None, "-2", "-1e-05", "0", "1e-05", "0.2", "0.2--0.5", "0.2-0.1", "0.2-auto", "0.3", "1"]
    ordered += ["auto", "auto-0.1", "top2", "hard_-0.5", "hard_0", "hard_0-hard_-1", "hard_0-hard_1", "hard_auto"]
    shuffled = random.Random(0).sample(ordered, len(ordered))
    assert sorted(shuffled, key=sort_key) == ordered
    assert sort_key("auto probe") == sort_key("auto")


def test_shared_students_are_counted_once():
    arms = [(Fixed(0.2), Fixed(0.4)), (Fixed(0.2), Fixed(0.9)), (AUTO, AUTO), (Fixed(1),)]
    assert [*students_of(arms[0])] == [Student("0.2", 1, Fixed(0.2)), Student("0.2-0.4", 2, Fixed(0.4))]
    assert len(students(arms)) == 3 + 2 + 1
    assert trainings(arms) == 3 + 2 * 2 + 1
    assert estimates_alpha(arms)
    assert not estimates_alpha(arms[:2])


def test_a_student_is_named_by_the_arm_up_to_it():
    for values in ("aab", "aaab", "abba", "abbb", "a"):
        arm = tuple(AUTO if value == "a" else Fixed(0.2) for value in values)
        names = [student.arm for student in students_of(arm)]
        assert names == [arm_name(arm[: k + 1]) for k in range(len(arm))]


def test_a_long_chain_takes_memory_in_proportion_to_its_length():
    tracemalloc.start()
    try:
        assert len(students([(Fixed(0.5),) * 50_000])) == 50_000
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_groups_share_no_student_and_lose_no_arm():
    targets = [Fixed(0.2), Fixed(0.4), AUTO]
    arms = list(itertools.product(targets, repeat=2))
    groups = disjoint_groups(arms)
    assert sorted(map(str, itertools.chain(*groups))) == sorted(map(str, arms))
    for one, other in itertools.combinations(groups, 2):
        assert not students(one).keys() & students(other).keys()
    assert len(groups) == 3


def test_only_alpha_one_needs_no_teacher():
    kinds = (Fixed(0), Fixed(0.99), Fixed(1), Fixed(1.5), AUTO, Hard(0.5), Consensus(1.0), Top2(0.0))
    assert [kind.uses_teacher for kind in kinds] == [True, True, False, True, True, True, False, True]


def test_at_alpha_one_all_kinds_are_the_given_labels():
    assert target(1.0, Hard) == target(1.0) == Fixed(1.0)
    assert target(0.5, Hard) != target(0.5)


SOFT = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.1, 0.4]])


def test_the_teachers_part_of_each_target_by_hand():
    assert Fixed(0.3).teacher_target(SOFT) is SOFT
    assert Hard(0.3).teacher_target(SOFT).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert Top2(0.0).teacher_target(SOFT).tolist() == [[0, 0.5, 0.5], [0.5, 0, 0.5]]


@given(st.lists(st.lists(st.integers(-5, 5), min_size=4, max_size=4, unique=True), min_size=1, max_size=9))
def test_targets_are_distributions_on_the_most_probable_classes(logits):
    soft = torch.tensor(logits, dtype=torch.float64).softmax(1)
    order = soft.argsort(1, descending=True)
    for k, kind in ((1, Hard(0.0)), (2, Top2(0.0))):
        rows = kind.teacher_target(soft)
        assert torch.allclose(rows.sum(1), torch.ones(len(rows), dtype=rows.dtype))
        assert torch.allclose(rows.gather(1, order[:, :k]), torch.full_like(rows[:, :k], 1 / k))


def test_consensus_keeps_the_images_whose_given_label_the_teacher_predicts():
    predicted, given_labels = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 2, 2, 1])
    assert Consensus(1.0).keeps(predicted, given_labels).tolist() == [True, False, True, False]
    assert all(kind.keeps(predicted, given_labels) is None for kind in (Fixed(0.5), Hard(0.5), Top2(0.0)))


def test_diagnostics_by_counting():
    logits = torch.tensor([[3.0, 2, 1], [1, 3, 2], [1, 2, 3], [3, 1, 2]])  # predicts 0, 1, 2, 0
    given_labels, true = torch.tensor([0, 1, 0, 0]), torch.tensor([0, 2, 2, 1])
    assert Hard(0.5).diagnose(logits, given_labels, true) == {"right": 2 / 4}
    assert Consensus(1.0).diagnose(logits, given_labels, true) == {"kept": 3, "right": 1 / 3}
    assert Top2(0.0).diagnose(logits, given_labels, true) == {"right": 3 / 4}
    assert Fixed(0.5).diagnose(logits, given_labels, true) == {}

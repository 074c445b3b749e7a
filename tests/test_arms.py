"""distill.arms: names, order, sharing and counts, by enumeration."""

import itertools
import random
import tracemalloc

import pytest

from distill.arms import (
    ALPHA_WORDS,
    TEACHER,
    Estimated,
    Fixed,
    Student,
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
    ],
)
def test_arm_names(arm, name):
    assert arm_name(arm) == name


def test_a_target_is_a_number_or_a_word():
    assert target(0.25) == Fixed(0.25)
    assert target("auto") == AUTO
    assert all(kind.name == word for word, kind in ALPHA_WORDS.items())


def test_arm_titles():
    assert [arm_title(name) for name in (None, "0.6", "auto", "0.2-auto")] == [
        *("teacher", "alpha = 0.6", "auto", "alpha = 0.2-auto")
    ]


def test_sorting_puts_the_teacher_first_numbers_by_size_and_words_last():
    ordered = [None, "0", "1e-05", "0.2", "0.2-0.1", "0.2-auto", "0.3", "1", "auto", "auto-0.1", "top2"]
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
    assert [kind.uses_teacher for kind in (Fixed(0), Fixed(0.99), Fixed(1), AUTO)] == [True, True, False, True]


def test_the_teachers_part_is_its_probabilities():
    soft = object()
    assert Fixed(0.3).teacher_target(soft) is soft

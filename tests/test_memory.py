"""A few runs and a short chain leave nothing in memory; the script of the full measurement notices what does."""

import sys

import pytest

from tests.memory import Samples, growth, long_chain, many_runs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.parametrize("case", [many_runs, long_chain])
def test_nothing_grows(case, tmp_path):
    assert growth(case(tmp_path, 8).settled()) == []


@pytest.mark.parametrize(
    ("grows", "complaint"),
    [
        ({}, []),
        ({"objects": 300}, ["300.0 objects more each time"]),
        ({"handles": 1}, ["6 file descriptors more"]),
        ({"rss": 4 << 20}, ["20.0 MiB more"]),
    ],
)
def test_what_grows_is_named(grows, complaint):
    each = {"rss": 0, "handles": 0, "objects": 0} | grows
    samples = Samples(**{name: [1000 + step * i for i in range(10)] for name, step in each.items()})
    assert growth(samples.settled()) == complaint

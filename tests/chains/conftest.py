"""A finished run that the tests of chains share."""

import pytest
from tiny import config, source

import distill


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run: a teacher and three students. Tests must not change it."""
    run = tmp_path_factory.mktemp("finished")
    distill.run(config(run, distillation_steps=3), source=source())
    return run

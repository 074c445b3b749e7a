"""Fixtures: the toy data of the papers with its RBF kernel."""

import pytest
from kernels import rbf

from distill import krr
from distill.kernel.toy.data import toy


@pytest.fixture(scope="session")
def data():
    return toy()


@pytest.fixture(scope="session")
def K(data):
    return rbf(data.x, data.x)


@pytest.fixture(scope="session")
def K_new(data):
    return rbf(data.x_truth, data.x)


@pytest.fixture(scope="session")
def spectrum(K):
    return krr.decompose(K)


@pytest.fixture
def nothing_drawn(monkeypatch):
    """Empty files for figures, whose rendering takes seconds."""
    monkeypatch.setattr("distill.pages.style.rendered", lambda *_: b"")

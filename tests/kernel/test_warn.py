"""Warnings: how often they are shown, and where."""

import warnings

import numpy as np
import pytest
from scipy.linalg import LinAlgWarning
from sklearn.model_selection import GridSearchCV

from distill.estimator import SelfDistilledKernelRidge
from distill.kernel import warn

rng = np.random.default_rng(0)
X = rng.standard_normal((60, 3))
SEARCHES = [
    ({"gamma": 1e-6, "lam": 1e-10}, LinAlgWarning),
    ({"alpha": "auto"}, UserWarning),
]


@pytest.mark.parametrize(("options", "category"), SEARCHES)
@pytest.mark.parametrize(("action", "count"), [("default", 1), ("always", 7), ("ignore", 0)])
def test_a_grid_search_warns_once_by_default(monkeypatch, options, category, action, count):
    monkeypatch.setattr(warn, "_shown", set())
    search = GridSearchCV(SelfDistilledKernelRidge(**options), {"n_steps": [2, 3]}, cv=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)
        search.fit(X, X[:, 0])
    assert [warning.category for warning in caught] == [category] * count
    assert {warning.filename for warning in caught} <= {__file__}


def test_another_line_warns_again(monkeypatch):
    monkeypatch.setattr(warn, "_shown", set())
    model = SelfDistilledKernelRidge(alpha="auto")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            model.fit(X, X[:, 0])
        model.fit(X, X[:, 1])
    assert len(caught) == 2

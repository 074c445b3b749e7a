"""Self-distillation experiments: networks (``distill.run``) and kernel ridge regression (``distill.krr``).

Names are imported when they are first used: ``import distill`` costs nothing, and the kernel side needs no torch.
"""

from __future__ import annotations

import sys
from importlib import import_module

if sys.argv[:1] == ["-m"]:  # ``python -m distill.cli`` and the like, whose modules are loaded next
    import_module("distill.starting")  # Ctrl-C meanwhile is one line

TYPE_CHECKING = False  # as in ``typing``, which would take most of the time of this import
if TYPE_CHECKING:
    from typing import Any

_MODULE_OF = {
    "Config": "config",
    "DataConfig": "config",
    "ModelConfig": "config",
    "TrainConfig": "config",
    "ChainConfig": "config",
    "RunConfig": "config",
    "UserError": "errors",
    "from_arrays": "data.source",
    "Result": "store.results",
    "load_model": "chains.checkpoints",
    "load_run": "running.loaded",
    "run": "running.run",
    "create_run": "running.run",
    "units": "running.unit",
    "train_unit": "running.unit",
}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

"""Progress events of a run. ``running/progress.py`` has the listener that a person sees."""

from __future__ import annotations

import typing

from distill.options import require

if typing.TYPE_CHECKING:
    from distill.training.fit import EpochSums


class Listener:
    """Receives progress events; this base class ignores them all."""

    def begin(self, finished: int) -> None:
        """The run begins; ``finished`` of its models are finished already."""

    def note(self, text: str) -> None:
        """One line that a person should know."""

    def start_model(self, name: str, images: int, done: int) -> None:
        """A model begins, or resumes after ``done`` epochs of ``images`` images each."""

    def advance(self, images: int) -> None:
        """An update on so many images was issued. Must not touch the device."""

    def end_chunk(self, sums: EpochSums) -> None:
        """A chunk of the epoch is done. Reading ``sums`` waits for the device."""

    def end_epoch(self, name: str, row: dict) -> None:
        """An epoch of the named model is done; ``row`` is its row of metrics.csv."""

    def end_model(self, result: typing.Any) -> None:
        """A model is finished; ``result`` is its ``store`` Result."""


def check_listener(listener: object) -> None:
    """Raise ConfigError unless an object is None or has the methods of a Listener."""
    for name in vars(Listener):
        has = name.startswith("_") or callable(getattr(listener, name, None))
        require(listener is None or has, f"listener must have the methods of Listener, and has no {name}")


class Notes(Listener):
    """Keeps the notes; a note about a failed graph capture explains slow updates."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

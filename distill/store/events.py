"""TensorBoard's event files, derived from what else is on disk: a model's metrics.csv and result.json, a run's figures.

Their bytes are a function of these. So a file is extended as long as its beginning is right, no epoch is in it twice,
and a resumed run's file is that of an uninterrupted one.
"""

import io
import struct
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from distill.errors import ConfigError
from distill.files import append, open_file, write_derived
from distill.store.processes import processes
from distill.store.results import columns, read_record
from distill.store.rundir import RunDir, is_finished, read_metrics

EVENTS = "events.out.tfevents.distill"  # TensorBoard reads files whose name contains tfevents
NO_METRICS = ("seed", "alpha", "step", "arm", "epochs")  # columns of results.csv


def require_tensorboard() -> None:
    """Raise ConfigError if TensorBoard is not installed."""
    try:
        import tensorboard.plugins.hparams.summary_v2  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--tensorboard needs the package tensorboard ({error}): pip install tensorboard, or leave the option out"
        ) from None


def write_model_events(
    run: RunDir, folder: Path, rows: Sequence[Mapping[str, Any]], record: Mapping[str, Any] | None = None
) -> None:
    """Write the scalars of each epoch and, of a finished model, its options with its final metrics.

    ``rows`` are those of metrics.csv, ``record`` is the result.json. Raises OSError.
    """
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    started = time = _started(run)
    events = []
    for row in rows:
        time += row.get("seconds") or 0.0
        events.append((time, row["epoch"], _scalars({name: row[name] for name in row if name != "epoch"})))
    if record is not None:
        options = record.get("configuration", {}) | {name: record[name] for name in ("seed", "alpha", "step", "arm")}
        known = {name: value for name, value in options.items() if value is not None}
        plain = {name: value if isinstance(value, int | float) else str(value) for name, value in known.items()}
        events.append((time, len(rows), hparams_pb(plain, str(folder.relative_to(run.path)), started)))
        final = {f"final/{name}": record.get(name) for name in columns() if name not in NO_METRICS}
        events.append((time, len(rows), _scalars(final)))
    _write(folder / EVENTS, started, events)


def write_events_of_finished(run: RunDir) -> None:
    """Write the event files of all finished models. Raises ConfigError, OSError."""
    for model in run.models(run.config()):
        if is_finished(model.folder):
            write_model_events(run, model.folder, read_metrics(model.folder), read_record(model.folder))


def write_figure_events(run: RunDir, names: Iterable[str]) -> None:
    """Write the figures of these names, PNG files of the run, into its own event file. Raises OSError."""
    try:
        from tensorboard.compat.proto.summary_pb2 import Summary
    except ImportError:  # not on this machine, where the run is only reported
        return
    images = []
    for name in names:
        if (run.path / f"{name}.png").exists():
            with open_file(run.path / f"{name}.png") as file:
                png = file.read()
            width, height = struct.unpack(">II", png[16:24])
            image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
            images.append(Summary.Value(tag=name, image=image))
    started = _started(run)
    _write(run.path / EVENTS, started, [(started, 0, Summary(value=images))])


def _started(run: RunDir) -> float:
    """When the run's first process started, in seconds since 1970; 0 if that is not recorded."""
    try:
        return datetime.fromisoformat(processes(run.path)[0]["started"]).timestamp()
    except (IndexError, KeyError, TypeError, ValueError):
        return 0.0


def _scalars(values: Mapping[str, float | None]) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    known = {name: value for name, value in values.items() if value is not None}
    return Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in known.items()])


def _write(file: Path, started: float, events: Iterable[tuple[float, int, Any]]) -> None:
    """Extend an event file, which TensorBoard may be reading, or write it again if it holds something else.

    ``events`` are times, steps and summaries.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    content = io.BytesIO()
    writer = RecordWriter(content)
    writer.write(Event(wall_time=started, file_version="brain.Event:2").SerializeToString())
    for time, step, summary in events:
        writer.write(Event(wall_time=time, step=step, summary=summary).SerializeToString(deterministic=True))
    data = content.getvalue()
    held = b""
    if file.is_file() and not file.is_symlink():
        with open_file(file) as opened:
            held = opened.read()
    if held and data.startswith(held):
        append(file, len(held), memoryview(data)[len(held) :])
    elif held != data:
        write_derived(file, data)

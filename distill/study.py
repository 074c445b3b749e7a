"""A study: options with several values, its axes, make a grid of settings, each a run in a folder of the study's.

A run without axes is the study of one setting, whose folder is the study's. A directory can be extended: more alphas,
schedules, targets, seeds and steps (``GRID``) and more values of its axes are added to those that it holds.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from distill.config import GRID, LARGEST_GRID, PREVIEW, SECTION_OF, SECTIONS, Config
from distill.configfile import check_format, dump_toml, from_dict, read_config, sections_of
from distill.errors import ConfigError
from distill.options import Section, checked, flag, may_be_axis, require

ARMS = ("target", "alpha", "alpha_schedule")
LONGEST = 200  # characters of a folder's name
AXES = [f.name for cls in SECTIONS.values() for f in fields(cls) if may_be_axis(cls, f)]


@dataclass(frozen=True)
class Setting:
    """A value for each axis of a study, and the run of these values."""

    values: dict[str, Any]
    config: Config

    @property
    def title(self) -> str:
        """Such as ``label noise 0.2, lr 0.001``."""
        return ", ".join(f"{name.replace('_', ' ')} {shown(value)}" for name, value in self.values.items())


@dataclass(frozen=True)
class Study:
    """The axes by name, and all settings, the values of the last axis next to one another."""

    axes: dict[str, tuple[Any, ...]]
    settings: tuple[Setting, ...]

    @property
    def path(self) -> Path:
        """The folder of the study."""
        first = self.settings[0].config.output
        return first.parent if self.axes else first

    def sections(self) -> dict[str, dict[str, Any]]:
        """The study as dictionaries that ``expand`` takes back: axes as lists; what follows from an axis is left out.

        The output is the study's folder.
        """
        first = self.settings[0].config
        sections = sections_of(first)
        for section, values in sections.items():
            for name in list(values):
                of_all = (getattr(getattr(setting.config, section), name) for setting in self.settings)
                if name in self.axes:
                    values[name] = self.axes[name]
                    continue
                differs = any(value != getattr(getattr(first, section), name) for value in of_all)
                if differs or self._follows(getattr(first, section), name):
                    del values[name]
        sections["run"]["output"] = str(self.path)
        return sections

    def toml(self) -> str:
        """The study as the text of config.toml."""
        return dump_toml(self.sections())

    def _follows(self, section: Section, name: str) -> bool:
        """Whether a value follows from options of a section that has an axis, so that other values may differ."""
        has_axis = any(SECTION_OF[axis] == section.section for axis in self.axes)
        is_open = name in section.resolved() and type(section).__dataclass_fields__[name].default is None
        return has_axis and is_open and replace(section, **{name: None}) == section


def shown(value: Any) -> str:
    """A value of an axis in titles and names of folders: ``0.2``, ``1e-05``, ``true``."""
    return str(value).lower() if isinstance(value, bool) else str(value).removesuffix(".0")


def _folder(values: Mapping[str, Any]) -> str:
    """``label_noise_0.2,lr_0.001``; characters that a file system may refuse become dashes."""
    return ",".join(f"{name}_{re.sub(r'[^A-Za-z0-9_.+-]+', '-', shown(value))}" for name, value in values.items())


def _normal(name: str, value: Any) -> Any:
    """A value as its section holds it; several values as a tuple. Raises ConfigError, also for a value twice."""
    cls = SECTIONS[SECTION_OF[name]]
    if name in AXES and isinstance(value, list | tuple):
        require(value, f"{name} needs at least one value")
        values = tuple(checked(cls, name, each) for each in value)
    else:
        values = checked(cls, name, value)
    if isinstance(values, tuple):
        require(len(set(values)) == len(values), f"{name} has a value twice: {' '.join(map(shown, values))}")
    return values


def _axes(sections: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The options that have a list of values, in the order of the sections."""
    axes = {}
    for name in AXES:
        section = sections.get(SECTION_OF[name])
        value = section.get(name) if isinstance(section, dict) else None
        if isinstance(value, list | tuple):
            axes[name] = _normal(name, value)
    return axes


def expand(sections: Mapping[str, Any]) -> Study:
    """The study of a dictionary of sections, in which an axis has a list of values. Raises ConfigError."""
    check_format(sections)
    axes = _axes(sections)
    if not axes:
        return Study({}, (Setting({}, from_dict(sections)),))
    count = math.prod(map(len, axes.values()))
    settings: list[Setting] = []
    for combination in itertools.product(*axes.values()):
        setting = _setting(sections, dict(zip(axes, combination, strict=True)))
        models = count * setting.config.chain.models
        require(
            settings or setting.config.run.yes or models <= LARGEST_GRID,
            f"{count:,} settings make up to {models:,} models, more than {LARGEST_GRID:,}: give --yes if you mean it",
        )
        settings.append(setting)
    path = _path(settings[0].config, axes)
    by_folder: dict[str, Setting] = {}
    by_identity: dict[str, Setting] = {}
    for setting in settings:
        folder = _folder(setting.values)
        require(len(folder) <= LONGEST, f"too many axes for the name of a folder: {folder[:50]}...")
        first = by_folder.setdefault(folder, setting)
        require(first is setting, f"{first.title} and {setting.title} would have the same folder: {folder}")
        first = by_identity.setdefault(json.dumps(setting.config.identity, sort_keys=True), setting)
        require(first is setting, f"two settings of the study are the same: {first.title} and {setting.title}")
    return Study(axes, tuple(_placed(setting, path / folder) for folder, setting in by_folder.items()))


def _setting(sections: Mapping[str, Any], values: dict[str, Any]) -> Setting:
    single = dict(sections)
    for name, value in values.items():
        section = SECTION_OF[name]
        single[section] = single[section] | {name: value}
    setting = Setting(values, Config())
    try:
        return replace(setting, config=from_dict(single))
    except ConfigError as error:
        raise ConfigError(f"{setting.title}: {error}") from None


def _placed(setting: Setting, folder: Path) -> Setting:
    return replace(setting, config=replace(setting.config, run=replace(setting.config.run, output=str(folder))))


def _path(first: Config, axes: Mapping[str, tuple[Any, ...]]) -> Path:
    """The study's folder: ``--output``, or a name with a hash of what makes the settings."""
    if first.run.output is not None:
        return first.output
    identity = first.identity | {f"{SECTION_OF[name]}.{name}": values for name, values in axes.items()}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    return first.output.with_name(f"{first.output.name.rpartition('-')[0]}-{digest}")


def read_sections(path: Path) -> dict[str, Any]:
    """The sections in the config.toml of a folder, with the folder as output. Raises ConfigError."""
    file = path / "config.toml"
    if not file.exists():
        raise ConfigError(f"{path} holds no run (no config.toml in it)")
    sections = read_config(path)
    run = sections.get("run", {})
    return sections | ({"run": run | {"output": str(path)}} if isinstance(run, dict) else {})


def require_data_folder(path: Path, sections: dict[str, Any]) -> dict[str, Any]:
    """The sections of a run. Raises ConfigError if its data folder is not here: data would be downloaded again."""
    data = sections.get("data", {})
    folder = data.get("data_dir") if isinstance(data, dict) else None
    if isinstance(folder, str) and not os.path.exists(folder) and str(data.get("dataset")).startswith("cifar"):
        raise ConfigError(f"the data folder {folder} of {path} is not here: go where the run began, or give --data-dir")
    return sections


def read_study(path: Path) -> Study:
    """The study, or the run, in a folder. Raises ConfigError that names the file."""
    sections = read_sections(path)
    try:
        return expand(sections)
    except ConfigError as error:
        raise ConfigError(f"{path / 'config.toml'}: {error}") from None


def extended(path: Path, given: Mapping[str, Any], resumes: bool = False, working: bool = False) -> Study:
    """The study of the sections ``given``, with the values of GRID and of the axes that ``path`` holds.

    Values that are given come after those that the folder holds; of GRID and axes, what is not given is held. Before a
    model is begun ``given`` replaces everything, unless it ``resumes``; before a student is, as after a preview, its
    arms do; neither if a process is ``working`` there. Raises ConfigError if anything else differs.
    """
    if not (path / "config.toml").exists() or not (resumes or working or any(path.glob("**/*.pt"))):
        return expand(given)
    held = read_study(path)
    if added := [name for name in _axes(given) if name not in held.axes]:
        have = {name: shown(getattr(getattr(held.settings[0].config, SECTION_OF[name]), name)) for name in added}
        what = ", ".join(f"{flag(name)} {value}" for name, value in have.items())
        raise ConfigError(f"{path} holds a run with {what} alone, which cannot become an axis; choose another --output")
    result = {section: dict(values) if isinstance(values, dict) else values for section, values in given.items()}
    chain = result.setdefault("chain", {})
    before_students = not working and not any(path.glob("**/seed_*/*/step_*"))
    replaced = ARMS if before_students and any(name in chain for name in ARMS) else ()
    for name in (*GRID, *held.axes):
        if name not in replaced:
            there = held.axes[name] if name in held.axes else getattr(held.settings[0].config.chain, name)
            values = result.setdefault(SECTION_OF[name], {})
            values[name] = united(there, _normal(name, values[name])) if name in values else there
    study = expand(result)
    before = {tuple(setting.values.items()): setting.config for setting in held.settings}
    for setting in study.settings:
        there = before.get(tuple(setting.values.items()), setting.config)
        if differing := setting.config.differences(there, tuple(f"chain.{name}" for name in GRID)):
            raise ConfigError(f"{path} holds a run with other options: {differing}; choose another --output")
    return study


def united(there: Any, here: Any) -> Any:
    """The values of both, without a preview if there are others; of two numbers of steps the larger."""
    if isinstance(there, int) and isinstance(here, int):
        return max(there, here)
    values = dict.fromkeys((*there, *(here if isinstance(here, tuple) else (here,))))
    return tuple(value for value in values if value != PREVIEW) or tuple(values)


def with_held(config: Config, working: bool = False) -> Config:
    """The configuration of a run with the grid that its folder holds, see ``extended``. Raises ConfigError."""
    study = extended(config.output, sections_of(config), working=working)
    if study.axes:
        raise ConfigError(f"{config.output} holds a study with axes: choose another --output")
    found = study.settings[0].config
    return config if found == config else replace(found, run=replace(config.run, output=str(config.output)))


def run_folders(path: Path) -> list[Path]:
    """The folders of the runs that a study's folder has, or a run's own folder. Raises ConfigError."""
    study = read_study(path)
    folders = [setting.config.output for setting in study.settings]
    return [folder for folder in folders if (folder / "config.toml").exists()] if study.axes else [path]

import errno
import json
import os
import re
import subprocess
import sys

import pytest
from tiny import ROOT

from distill.errors import ConfigError
from distill.store.processes import add_process, note_complete, processes


def test_environment_has_an_entry_for_every_process(tmp_path):
    for _ in range(2):
        add_process(tmp_path, torch="2.11", device="cpu")
    note_complete(tmp_path)
    first, second = json.loads((tmp_path / "environment.json").read_text())["runs"]
    assert first["finished"] is None
    assert second["finished"] >= second["started"]
    assert (second["command"], second["torch"]) == (sys.argv, "2.11")
    assert {"commit", "device"} <= second.keys()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_environment_names_the_commit_of_the_checkout(tmp_path):
    add_process(tmp_path, device="cpu")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (process,) = processes(tmp_path)
    assert process["commit"].removesuffix("+") == head.strip()


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"runs": 3}'])
def test_a_damaged_environment_json_is_replaced_with_a_note(tmp_path, content, capsys):
    (tmp_path / "environment.json").write_text(content)
    add_process(tmp_path, device="cpu")
    (session,) = processes(tmp_path)
    assert session["device"] == "cpu"
    said = capsys.readouterr().err
    assert re.fullmatch(r"note: \S+environment.json is damaged \(.+\); a new one replaces it\n", said)


def test_an_environment_json_that_cannot_be_read_is_kept(tmp_path, monkeypatch):
    add_process(tmp_path, device="cpu")
    before = (tmp_path / "environment.json").read_bytes()

    def failing(file):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))

    monkeypatch.setattr("distill.records.open_file", failing)
    with pytest.raises(ConfigError, match=r"environment.json cannot be read \(Input/output error\)"):
        add_process(tmp_path, device="cpu")
    assert (tmp_path / "environment.json").read_bytes() == before

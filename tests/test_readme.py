import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_python_of_the_network_half_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "distill.run(" in block]
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("None 0 0.")
    assert (tmp_path / "runs/mine/seed_1/alpha_0.6/step_2/model.pt").exists()


def test_every_figure_and_file_that_is_named_is_there():
    names = re.findall(r"\]\(((?!http)[^)]+)\)", README)
    assert "figures/quickstart.png" in names
    assert [name for name in names if not (Path(__file__).parents[1] / name).exists()] == []

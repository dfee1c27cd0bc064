"""What the README shows works: its Python runs, and its commands are understood."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.partition("#")[0].strip()
    for kind, block in BLOCKS
    for line in block.splitlines()
    if kind == "bash" and line.startswith("wfm-")
]


def test_the_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind, block in BLOCKS:
        if kind == "python":
            exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "future.mp4").is_file()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_such_flags(command, capsys):
    """Ask for help behind the subcommand's flags: an unknown one is an error before that."""
    program, subcommand, *rest = shlex.split(command)
    main = importlib.import_module(program.replace("-", "_") + ".cli").main
    with pytest.raises(SystemExit) as stop:
        main([subcommand, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for flag in (word for word in rest if word.startswith("-")):
        assert re.search(rf"(^|[\s,]){flag}\b", shown), f"{program} {subcommand} has no {flag}"

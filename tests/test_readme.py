"""The README is executed: its commands parse, its recipes exist, its file tree is the tree."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from ddclip_cli.app import COMMANDS, app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
]
LINES = [line for line in SHELL if line.startswith("ddclip ")]
INLINE = [code for code in re.findall(r"`(ddclip [^`\n]+)`", README) if "..." not in code and "COMMAND" not in code]


def file_tree() -> str:
    """One line a file of the package, each with what its docstring says first."""
    lines = []
    for path in sorted((ROOT / "ddclip_cli").rglob("*.py"), key=lambda p: (p.parent != ROOT / "ddclip_cli", p)):
        said = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0].rstrip(".")
        name = path.relative_to(ROOT)
        if path.name == "__init__.py":
            lines.append(f"{name.parent}/".ljust(28) + said)
        else:
            lines.append("  " + path.name.ljust(26) + said)
    return "\n".join(lines)


def test_the_file_tree_is_the_tree():
    assert file_tree() in README, f"put this tree into the README:\n{file_tree()}"


def test_every_command_is_in_the_table():
    named = set(re.findall(r"^\| [a-z]* ?\| `ddclip ([a-z0-9-]+)` \|", README, re.M))
    assert named == {name for commands in COMMANDS.values() for name in commands}


def test_there_is_something_to_check():
    assert len(LINES) >= 10


@pytest.mark.parametrize("line", LINES + INLINE)
def test_commands_of_the_readme_parse(line):
    name, *words = shlex.split(line)[1:]
    if name.startswith("-"):
        return
    command = get_command(app).commands[name]
    if hasattr(command, "commands") and words:
        command = command.commands[words.pop(0)]
    if words:  # without words it stands for the command as a whole
        command.make_context(name, words, resilient_parsing=False)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^make ([a-z-]+)", README, re.M)):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_pictures_exist():
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file()


def test_the_python_of_the_readme_runs_without_a_warning():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"tensor\(0\.\d+\)", done.stdout)) == 2
    assert "arning" not in done.stderr

"""The shape of the repository: sizes, empty __init__ files, and who loads what."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeqwen.cli.main import VERBS, cli

REPOSITORY = Path(__file__).parents[2]
SOURCES = sorted((REPOSITORY / "edgeqwen").rglob("*.py"))
HEAVY = {"textual", "llama_cpp", "numpy", "huggingface_hub", "jinja2", "rich", "msgspec", "tomlkit"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_files_and_functions_stay_small(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name
    if path.name == "__init__.py":
        assert not source


def loaded_by(*arguments: str) -> set[str]:
    """Return the top-level modules that one run of the program loads."""
    code = (
        "import sys, json, atexit\n"
        "tops = lambda: json.dumps(sorted({name.partition('.')[0] for name in sys.modules}))\n"
        "atexit.register(lambda: print(tops(), file=sys.stderr))\n"
        f"sys.argv = ['edgeqwen', *{list(arguments)!r}]\n"
        "from edgeqwen.cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ()])
def test_help_and_version_load_nothing_heavy(arguments: tuple[str, ...]) -> None:
    loaded = loaded_by(*arguments)
    assert "edgeqwen" in loaded
    assert not loaded & (HEAVY | {"asyncio"})


@pytest.mark.parametrize("arguments", [("list",), ("run", "--help"), ("config", "list")])
def test_no_front_end_holds_the_engine(arguments: tuple[str, ...]) -> None:
    assert not loaded_by(*arguments) & {"llama_cpp", "numpy", "jinja2", "huggingface_hub"}


def test_the_worker_holds_no_front_end() -> None:
    code = (
        "import edgeqwen.worker.main, edgeqwen.worker.llama, sys, json; print(json.dumps(list(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    tops = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert "llama_cpp" in tops
    assert not tops & {"click", "textual", "rich", "huggingface_hub", "numpy", "asyncio"}


def test_help_tells_what_the_verbs_themselves_tell() -> None:
    for name, verb in VERBS.items():
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert (command.help or "").partition("\n")[0] == verb.summary


def test_nothing_private_is_committed() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    for name in listed.stdout.split():
        assert name.startswith("edgeqwen/demo/") or not name.endswith((".gguf", ".part", ".log")), name

"""Every command behind a `$` in the documents is run, as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeqwen.models.digest import digest_of
from tests.support.hub import REVISION, Hub
from tests.support.tiny import write_model

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
COMMAND = re.compile(r"^(?P<who>\w*)\$ (?P<command>.*)$", re.MULTILINE)
EXAMPLE_KEY = "RWREBWI2MRhzNKkFJIEDFvuyrI6vIWaM2n+AnupRH9183rvH1MynJyxj"
# Models of the documents that tiny files stand for here.
NAMES = ("qwen2.5-coder-0.5b", "qwen3-0.6b")
REPO = "Qwen/Tiny-GGUF"


def commands_of(document: Path) -> list[tuple[str, str]]:
    """Return who runs what: `connected$` and `isolated$` are two machines, `$` a third."""
    blocks = re.findall(r"^```console\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    return [(match["who"], match["command"]) for block in blocks for match in COMMAND.finditer(block)]


class Machines:
    """A home per machine, one drive between them, and a hub that has tiny models by great names."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self._folder, self._hub = folder, hub
        self._key = EXAMPLE_KEY
        tools = folder / "bin"
        tools.mkdir()
        program = tools / "edgeqwen"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m edgeqwen "$@"\n')
        program.chmod(0o755)
        (folder / "usb" / "models").mkdir(parents=True)

    def run(self, who: str, command: str) -> subprocess.CompletedProcess[str]:
        home = self._folder / (who or "here")
        if not home.exists():
            self._furnish(home)
        text = command.replace("./scripts/run ", "edgeqwen ").replace(EXAMPLE_KEY, self._key)
        text = text.replace("/media/usb", str(self._folder / "usb")).replace("/srv/", f"{self._folder}/usb/")
        env = {
            **os.environ,
            "EDGEQWEN_HOME": str(home),
            "HF_ENDPOINT": self._hub.url,
            "PATH": f"{self._folder / 'bin'}:{os.environ['PATH']}",
        }
        done = subprocess.run(
            ["bash", "-c", text], env=env, cwd=home, input="", capture_output=True, text=True, check=False
        )
        if key := re.search(r"trust add (RW\S+)", done.stdout + done.stderr):
            self._key = key[1]
        return done

    def _furnish(self, home: Path) -> None:
        (home / "config").mkdir(parents=True)
        entries = (_entry(name, self._hub.folder / REPO / f"{name}.gguf") for name in NAMES)
        (home / "config" / "models.toml").write_text("\n".join(entries))


def _entry(name: str, file: Path) -> str:
    return f"""
[models."{name}"]
name = "{name}"
family = "qwen3"
parameters_b = 0.0001
licence = "apache-2.0"
architecture = "qwen3"
context = 512
capabilities = ["chat"]
thinking = "toggle"
repo = "{REPO}"
revision = "{REVISION}"
default_quant = "q4_k_m"
[models."{name}".shape]
n_layers = 2
n_embd = 64
n_ff = 128
n_head = 2
n_head_kv = 1
key_length = 64
value_length = 64
n_vocab = 263
[[models."{name}".variants]]
quant = "q4_k_m"
evidence = "own"
files = [{{name = "{file.name}", size = {file.stat().st_size}, sha256 = "{digest_of(file).sha256}"}}]
"""


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    (tmp_path / "hub" / REPO).mkdir(parents=True)
    with Hub(tmp_path / "hub") as hub:
        for seed, name in enumerate(NAMES):
            write_model(hub.folder / REPO / f"{name}.gguf", seed=seed)
        yield Machines(tmp_path, hub)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_commands_of_a_document_work(document: Path, machines: Machines) -> None:
    for who, command in commands_of(document):
        done = machines.run(who, command)
        assert done.returncode == 0, f"{who}$ {command}\n{done.stdout[-500:]}\n{done.stderr[-1000:]}"
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!\w+://|#)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target

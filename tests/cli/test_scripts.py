"""scripts/run on machines that lack something, and the bench on a tiny model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hub import Hub

REPOSITORY = Path(__file__).parents[2]
TOOLS = ("bash", "dirname", "cat", "cksum", "awk", "getconf", "grep", "rm", "mkdir", "env")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Return a clone of what scripts/run needs, without a virtual environment."""
    folder = tmp_path / "clone"
    shutil.copytree(REPOSITORY / "scripts", folder / "scripts")
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    return folder


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """Return a folder for PATH that has the basic tools and neither Python nor compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found
        (folder / tool).symlink_to(found)
    return folder


def run(clone: Path, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [clone / "scripts" / "run", "--version"],
        env={"PATH": str(path), "HOME": str(clone)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def program(path: Path, text: str) -> None:
    path.write_text(f"#!{shutil.which('bash')}\n{text}\n")
    path.chmod(0o755)


def test_without_python_it_says_so(clone: Path, bare_path: Path) -> None:
    done = run(clone, bare_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: no Python was found; install Python 3.11 or newer\n"


def test_an_old_python_is_named(clone: Path, bare_path: Path) -> None:
    program(bare_path / "python3", 'case "$2" in *print*) echo 3.9.2;; *) exit 1;; esac')
    done = run(clone, bare_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Python 3.9.2 is too old; install Python 3.11 or newer")


def test_a_python_without_venv_is_named(clone: Path, bare_path: Path) -> None:
    program(bare_path / "python3", 'case "$2" in *print*) echo 3.12.1;; *ensurepip*) exit 1;; esac')
    done = run(clone, bare_path)
    assert done.returncode == 1
    assert "apt install python3-venv" in done.stderr


def test_without_a_compiler_it_says_what_to_install(clone: Path, bare_path: Path) -> None:
    program(
        bare_path / "python3",
        'case "$1 $2" in *print*) echo 3.12.1;; "-m venv") mkdir -p .venv/bin;; "-m pip") exit 1;; esac',
    )
    done = run(clone, bare_path)
    assert done.returncode == 1
    assert "no C++ compiler was found" in done.stderr
    assert "apt install g++" in done.stderr


def test_the_bench_ends_with_one_json_line(models: Path) -> None:
    arguments = ["--llama-bench", "", "--rounds", "1", "--prompt-tokens", "64", "--answer-tokens", "16"]
    done = subprocess.run(
        [sys.executable, "scripts/bench_engine.py", str(models / "qwen3.gguf"), *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["decode_tps"]["edgeqwen"] > 0
    assert report["prefill_tps"]["ratio"] is None


def test_refresh_shows_what_the_hub_has_now(tmp_path: Path) -> None:
    def refresh(hub: Hub) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, REPOSITORY / "scripts" / "refresh_catalogue.py", "qwen2.5-coder-0.5b"]
        env = {**os.environ, "HF_ENDPOINT": hub.url}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    repo = "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF"
    with Hub(tmp_path / "hub") as hub:
        hub.put(repo, "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", b"GGUF and no more")
        hub.put(repo, "qwen2.5-coder-0.5b-instruct-q9_k.gguf", b"GGUF, a new one")
        done = refresh(hub)
        assert done.returncode == 1
        assert "size 491,400,064, now 16" in done.stdout
        assert "not in models.toml: qwen2.5-coder-0.5b-instruct-q9_k.gguf" in done.stdout
        assert "revision: pinned" in done.stdout
        shutil.rmtree(hub.folder / repo)
        done = refresh(hub)
        assert done.returncode == 5
        assert "could not be asked" in done.stderr

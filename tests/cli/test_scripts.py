"""scripts/run on machines that lack something, and the bench on a tiny model."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.hub import Hub

REPOSITORY = Path(__file__).parents[2]
TOOLS = (
    "bash",
    "dirname",
    "cat",
    "cksum",
    "awk",
    "df",
    "getconf",
    "grep",
    "rm",
    "mkdir",
    "ls",
    "readlink",
    "env",
    "uname",
    "tail",
    "sleep",
)


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


def run(clone: Path, path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [clone / "scripts" / "run", "--version"],
        env={"PATH": str(path), "HOME": str(clone), **env},
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
    assert done.stderr.startswith("error: no Python was found; install Python 3.11 or newer: ")


def test_an_old_python_is_named(clone: Path, bare_path: Path) -> None:
    program(bare_path / "python3", 'case "$2" in *print*) echo 3.9.2;; *) exit 1;; esac')
    done = run(clone, bare_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Python 3.9.2 is too old; install Python 3.11 or newer")


def test_a_python_without_venv_is_named(clone: Path, bare_path: Path) -> None:
    program(bare_path / "python3", 'case "$2" in *print*) echo 3.12.1;; *ensurepip*) exit 1;; esac')
    done = run(clone, bare_path, EDGEQWEN_OS_RELEASE=os_release(clone, "ID=raspbian", "ID_LIKE=debian"))
    assert done.returncode == 1
    assert "sudo apt install python3.12-venv" in done.stderr


def test_the_python_that_was_named_is_used_or_refused(clone: Path, bare_path: Path) -> None:
    python_that_makes_environments(bare_path)
    program(bare_path / "mine", 'case "$2" in *print*) echo 3.9.2;; *) exit 1;; esac')
    done = run(clone, bare_path, EDGEQWEN_PYTHON="mine")
    assert done.returncode == 1
    assert done.stderr.startswith("error: Python 3.9.2 is too old")


def test_an_environment_of_ones_own_is_left_alone(clone: Path, bare_path: Path) -> None:
    python_that_makes_environments(bare_path)
    (clone / ".venv" / "lib").mkdir(parents=True)
    done = run(clone, bare_path)
    assert done.returncode == 1
    assert "move it away" in done.stderr
    assert (clone / ".venv" / "lib").is_dir()


def test_an_environment_that_was_begun_is_made_anew(clone: Path, bare_path: Path) -> None:
    python_that_makes_environments(bare_path)
    (clone / ".venv").mkdir()
    (clone / ".venv" / "edgeqwen-made").touch()
    assert "making a virtual environment" in run(clone, bare_path).stderr


def test_it_runs_through_a_link(clone: Path, bare_path: Path) -> None:
    link = bare_path / "edgeqwen-run"
    link.symlink_to(clone / "scripts" / "run")
    done = subprocess.run(
        [link], env={"PATH": str(bare_path)}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr.startswith("error: no Python was found")


def os_release(clone: Path, *lines: str) -> str:
    file = clone / "os-release"
    file.write_text("\n".join(lines) + "\n")
    return str(file)


def python_that_makes_environments(folder: Path, pip_install: str = "exit 1") -> None:
    """Put a Python there whose environments record what pip is asked for, and whose pip has kept nothing."""
    inner = (
        'case "$1 $2 $3" in "-m pip cache") exit 1;; '
        '"-m pip install") echo "$CMAKE_BUILD_PARALLEL_LEVEL $CMAKE_ARGS $@" >>pip-arguments; '
        f"{pip_install};; esac"
    )
    made = f"mkdir -p .venv/bin; printf '#!%s\\n%s\\n' '{shutil.which('bash')}' '{inner}' >.venv/bin/python"
    program(
        folder / "python3",
        f'case "$1 $2" in *print*) echo 3.12.1;; "-m venv") {made}; chmod +x .venv/bin/python;; esac',
    )


@pytest.mark.parametrize(
    ("system", "command"),
    [
        ("ID=debian", "sudo apt install g++ python3-dev"),
        ("ID=fedora", "sudo dnf install gcc-c++ python3-devel"),
        ("ID=opensuse-leap\nID_LIKE='suse opensuse'", "sudo zypper install gcc-c++"),
        ("ID=manjaro\nID_LIKE=arch", "sudo pacman -S --needed gcc"),
        ("ID=alpine", "sudo apk add g++ linux-headers"),
    ],
)
def test_without_a_compiler_it_says_what_to_install(
    clone: Path, bare_path: Path, system: str, command: str
) -> None:
    python_that_makes_environments(bare_path)
    (bare_path / "chmod").symlink_to(shutil.which("chmod") or "")
    done = run(clone, bare_path, EDGEQWEN_OS_RELEASE=os_release(clone, system))
    assert done.returncode == 1
    assert "no C++ compiler was found" in done.stderr
    assert command in done.stderr


def test_an_index_of_wheels_needs_no_compiler(clone: Path, bare_path: Path) -> None:
    python_that_makes_environments(bare_path)
    (bare_path / "chmod").symlink_to(shutil.which("chmod") or "")
    done = run(clone, bare_path, EDGEQWEN_WHEEL_INDEX="http://localhost/wheels")
    asked = (clone / "pip-arguments").read_text()
    assert "--extra-index-url http://localhost/wheels --only-binary llama-cpp-python" in asked
    assert "compiler" not in done.stderr


def test_little_memory_is_told_and_compiles_one_file_at_a_time(clone: Path, bare_path: Path) -> None:
    python_that_makes_environments(bare_path)
    for tool in ("chmod", "true"):
        (bare_path / tool).symlink_to(shutil.which(tool) or "")
    program(bare_path / "g++", "exit 0")
    meminfo = clone / "meminfo"
    meminfo.write_text("MemTotal: 900000 kB\nMemAvailable: 500000 kB\nSwapFree: 99000 kB\n")
    done = run(clone, bare_path, EDGEQWEN_MEMINFO=str(meminfo))
    assert "warning: 599 MB of memory and swap are available" in done.stderr
    assert (clone / "pip-arguments").read_text().startswith("1 "), "one compiler at a time"


def test_ones_own_build_is_made_anew_with_the_usual_arguments(clone: Path, bare_path: Path) -> None:
    python_that_makes_environments(bare_path, "exit 0")
    (bare_path / "chmod").symlink_to(shutil.which("chmod") or "")
    program(bare_path / "g++", "exit 0")
    run(clone, bare_path, CMAKE_ARGS="-DGGML_CUDA=ON")
    first = (clone / "pip-arguments").read_text().splitlines()[0]
    assert "-DLLAVA_BUILD=OFF" in first
    assert "-DGGML_CUDA=ON" in first
    assert "--force-reinstall" in first


def test_flags_of_an_earlier_build_stay_until_others_are_named(clone: Path, bare_path: Path) -> None:
    python_that_makes_environments(bare_path, ": >.venv/bin/edgeqwen; chmod +x .venv/bin/edgeqwen")
    (bare_path / "chmod").symlink_to(shutil.which("chmod") or "")
    program(bare_path / "g++", "exit 0")
    run(clone, bare_path, CMAKE_ARGS="-DGGML_CUDA=ON")
    asked = clone / "pip-arguments"
    n_asked = len(asked.read_text().splitlines())
    run(clone, bare_path)
    assert len(asked.read_text().splitlines()) == n_asked, "it is there, and nothing else was asked for"
    (clone / ".venv/bin/edgeqwen").unlink()
    run(clone, bare_path)
    assert len(asked.read_text().splitlines()) > n_asked, "what was interrupted is done again"
    (clone / ".venv/edgeqwen-built").unlink()  # as doctor's command does before it
    run(clone, bare_path, CMAKE_ARGS="-DGGML_CUDA=ON", EDGEQWEN_WHEEL_INDEX="")
    assert "--force-reinstall" in asked.read_text().splitlines()[-2], "the same flags, and built anew"
    run(clone, bare_path, CMAKE_ARGS="")
    assert "-DGGML_CUDA" not in asked.read_text().splitlines()[-2]
    assert "--force-reinstall" in asked.read_text().splitlines()[-2]


def test_what_failed_halfway_does_not_count(clone: Path, bare_path: Path) -> None:
    made = 'case "$*" in *-e*) exit 1;; esac; : >.venv/bin/edgeqwen; chmod +x .venv/bin/edgeqwen'
    python_that_makes_environments(bare_path, made)
    (bare_path / "chmod").symlink_to(shutil.which("chmod") or "")
    program(bare_path / "g++", "exit 0")
    assert run(clone, bare_path, CMAKE_ARGS="-DGGML_CUDA=ON").returncode == 1
    n_asked = len((clone / "pip-arguments").read_text().splitlines())
    assert "the installation failed" in run(clone, bare_path).stderr
    assert len((clone / "pip-arguments").read_text().splitlines()) > n_asked


def test_an_environment_whose_python_is_gone_is_made_anew(clone: Path, bare_path: Path) -> None:
    python_that_makes_environments(bare_path, "exit 0")
    (bare_path / "chmod").symlink_to(shutil.which("chmod") or "")
    program(bare_path / "g++", "exit 0")
    run(clone, bare_path)
    (clone / ".venv/bin/python").unlink()
    (clone / ".venv/bin/python").symlink_to("/nowhere/python3.9")
    assert "making a virtual environment" in run(clone, bare_path).stderr


def test_a_pi_installation_names_its_arguments(clone: Path, bare_path: Path) -> None:
    done = subprocess.run(
        [clone / "scripts" / "install-pi.sh", "--help"],
        env={"PATH": str(bare_path)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "usage: scripts/install-pi.sh [--yes]\n")


def test_a_pi_is_asked_where_it_can_be_read(clone: Path, bare_path: Path) -> None:
    program(bare_path / "dpkg", "echo arm64")
    program(bare_path / "dpkg-query", "exit 1")
    (bare_path / "tr").symlink_to(shutil.which("tr") or "")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(clone / "scripts/install-pi.sh", ["install-pi.sh"], {"PATH": str(bare_path)})
    seen = b""
    while b"[y/N]" not in seen:
        seen += os.read(terminal, 4096)
    assert b"install with apt: g++ python3-dev python3-venv" in seen
    os.write(terminal, b"n\n")
    with suppress(OSError):  # Linux says so at the end
        while data := os.read(terminal, 4096):
            seen += data
    assert b"error: without them llama.cpp cannot be built" in seen
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGHUP])
def test_an_interrupted_build_leaves_no_compiler_behind(
    clone: Path, bare_path: Path, how: signal.Signals
) -> None:
    python_that_makes_environments(bare_path, "sleep 300 & echo $! >compiler; wait")
    (bare_path / "chmod").symlink_to(shutil.which("chmod") or "")
    program(bare_path / "g++", "exit 0")
    os.mkfifo(clone / "compiler")
    env = {"PATH": str(bare_path), "HOME": str(clone)}
    with subprocess.Popen(
        [clone / "scripts" / "run"], env=env, stderr=subprocess.PIPE, text=True
    ) as installing:
        compiler = int((clone / "compiler").read_text())
        installing.send_signal(how)
        assert installing.stderr
        assert "interrupted" in installing.stderr.read()
        assert installing.wait(20) == 130
    assert not is_running(compiler)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


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

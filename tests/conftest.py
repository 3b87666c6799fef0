"""Every test runs in a home of its own, without this machine's settings, and leaves no process behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.tiny import write_model

# Under nohup or in the background of a script these are ignored, and whatever we start would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test an EDGEQWEN_HOME and nothing else of the machine's settings."""
    for name in list(os.environ):
        is_ours = name.startswith("EDGEQWEN_") and name != "EDGEQWEN_TEST_MODEL"
        is_a_hubs = name.startswith(("HF_", "OLLAMA_", "MODELSCOPE_"))
        if is_ours or is_a_hubs or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "PYTHONUNBUFFERED"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "home"
    monkeypatch.setenv("EDGEQWEN_HOME", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("TZ", "UTC")
    return folder


@pytest.fixture(autouse=True)
def no_worker_left() -> Iterator[None]:
    """Fail a test that leaves a child process behind."""
    yield
    left = psutil.Process().children(recursive=True)
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=5)  # else a zombie is left behind for every test that follows
    assert not left, f"processes left behind: {left}"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one tiny model per architecture: qwen2.gguf, qwen3.gguf, qwen35.gguf."""
    folder = tmp_path_factory.mktemp("models")
    for arch in ("qwen2", "qwen3", "qwen35"):
        write_model(folder / f"{arch}.gguf", arch)
    return folder


@pytest.fixture(scope="session")
def real_model() -> Path:
    """Return the real Qwen2.5-Coder 0.5B, or skip."""
    path = os.environ.get("EDGEQWEN_TEST_MODEL")
    if not path:
        pytest.skip("EDGEQWEN_TEST_MODEL names no model file")
    return Path(path)

"""What `ps` reads: a file per front end, true averages, and nothing of programs that are gone."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from edgeqwen.chat.running import KEPT_ANSWERS, Running, RunningFile, average, read_running
from edgeqwen.engine.protocol import Stats


def stats(n_tokens: int, decode_s: float, ttft_s: float | None = 0.5) -> Stats:
    return Stats(
        queued_s=0.25,
        ttft_s=ttft_s,
        prompt_tokens=100,
        cached_tokens=60,
        prefill_tokens=40,
        prefill_s=0.4,
        completion_tokens=n_tokens,
        thinking_tokens=0,
        decode_s=decode_s,
        rss_bytes=1,
    )


def test_averages_are_counts_over_seconds_and_not_means_of_rates() -> None:
    mean = average([stats(11, 1.0), stats(101, 2.0)])
    assert mean.decode_tps == pytest.approx(110 / 3)  # the mean of the rates would be 30
    assert mean.prefill_tps == pytest.approx(100)
    assert mean.ttft_s == pytest.approx(0.75)
    assert mean.response_s == pytest.approx(0.75 + 1.5)
    assert (mean.n, mean.prompt_tokens, mean.completion_tokens) == (2, 200, 112)


def test_answers_without_tokens_have_no_rate() -> None:
    mean = average([stats(0, 0.0, None)])
    assert (mean.decode_tps, mean.ttft_s, mean.response_s) == (None, None, None)
    assert average([]).n == 0


def test_a_loaded_model_is_seen_until_it_goes(tmp_path: Path) -> None:
    file = RunningFile(tmp_path)
    file.add(stats(5, 1.0))  # nothing is loaded: nothing is written
    assert not read_running(tmp_path)
    file.begin(123, "qwen3-4b:q4_k_m", 4096, 2, 0)
    for _ in range(KEPT_ANSWERS + 5):
        file.add(stats(5, 1.0))
    [running] = read_running(tmp_path)
    assert (running.pid, running.worker, running.model) == (os.getpid(), 123, "qwen3-4b:q4_k_m")
    assert len(running.answers) == KEPT_ANSWERS
    file.end()
    assert not read_running(tmp_path)


def test_files_of_the_dead_and_of_others_are_swept_away(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = psutil.Process(child.pid).create_time() - psutil.boot_time()
    child.communicate()
    dead = Running(
        pid=child.pid, began=began, worker=1, model="m", n_ctx=1, n_threads=1, host=platform.node()
    )
    reused = Running(
        pid=os.getpid(), began=began - 1000, worker=1, model="m", n_ctx=1, n_threads=1, host=platform.node()
    )
    for name, content in {
        "dead": msgspec.json.encode(dead),
        "reused": msgspec.json.encode(reused),
        "junk": b"\x00{",
        "deep": b"[" * 100_000,
    }.items():
        (tmp_path / f"{name}.json").write_bytes(content)
    assert not read_running(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "1.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(dead, host="another")))
    assert not read_running(tmp_path)
    assert list(tmp_path.iterdir()), "what another machine wrote into a shared home stays"


def test_a_folder_that_cannot_be_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    file = RunningFile(tmp_path / "file")
    file.begin(1, "m", 1, 1, 0)
    file.add(stats(5, 1.0))
    file.end()

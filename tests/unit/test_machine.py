"""What is read off the machine, from files made up for the purpose, and what is made of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeqwen.errors import InvalidInput
from edgeqwen.machine.cpu import usable_cores
from edgeqwen.machine.memory import available_bytes
from edgeqwen.models.facts import kv_bytes, read_facts
from edgeqwen.models.fit import DEFAULT_CONTEXT, choose_context

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="affinity is known on Linux alone")
def test_hardware_threads_of_one_core_count_once(tmp_path: Path) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    for cpu in allowed:
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text("0-127\n")
    assert usable_cores(tmp_path, tmp_path / "none") == 1
    assert usable_cores(tmp_path / "gone", tmp_path / "none") == len(allowed)


@pytest.mark.parametrize(
    ("text", "most"),
    [("max 100000\n", 10**6), ("100000 100000\n", 1), ("50000 100000\n", 1), ("nonsense", 10**6)],
)
def test_a_container_quota_counts(tmp_path: Path, text: str, most: int) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    assert 1 <= usable_cores(quota_file=quota) <= most


def test_there_is_some_memory() -> None:
    assert available_bytes() > 1 << 20


def test_the_cache_has_a_size(models: Path) -> None:
    facts = read_facts(models / "qwen3.gguf")
    assert facts.kv_bytes_per_token() == 2 * 1 * (64 + 64) * 2
    assert kv_bytes(facts, 256) == kv_bytes(facts, 1) == 256 * 512
    assert kv_bytes(facts, 256, "q8_0") == 256 * 256 * 34 // 32
    with pytest.raises(InvalidInput):
        kv_bytes(facts, 0)


def test_the_context_follows_model_and_memory(models: Path) -> None:
    from dataclasses import replace

    small = read_facts(models / "qwen3.gguf")
    assert choose_context(small, 10**12) == (small.context, False)
    large = replace(small, context=131_072)
    assert choose_context(large, 10**12) == (DEFAULT_CONTEXT, False)
    assert choose_context(large, 4 * kv_bytes(large, 4096)) == (4096, True)
    assert choose_context(large, 0) == (2048, True)

"""What is read off the machine, from files made up for the purpose, and what is made of it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from edgeqwen.engine.client import WorkerClient
from edgeqwen.engine.protocol import LoadParams
from edgeqwen.errors import InvalidInput, LoadFailed
from edgeqwen.machine.bandwidth import reading_bytes_per_s
from edgeqwen.machine.cgroup import own_cgroups
from edgeqwen.machine.cpu import cpu_name, usable_cores
from edgeqwen.machine.memory import available_bytes, total_bytes
from edgeqwen.models.catalogue import load_catalogue
from edgeqwen.models.facts import kv_bytes, read_facts
from edgeqwen.models.fit import (
    CHECKPOINTS,
    DEFAULT_CONTEXT,
    Setting,
    check_memory,
    choose_context,
    estimate,
    facts_from_catalogue,
    verdict,
)
from edgeqwen.paths import shipped_catalogue
from edgeqwen.worker.prefix import MAX_CHECKPOINTS
from tests.support.asking import ask

GB = 10**9


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="affinity is known on Linux alone")
def test_hardware_threads_of_one_core_count_once(tmp_path: Path) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    for cpu in allowed:
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text("0-127\n")
    assert usable_cores(tmp_path, []) == 1
    assert usable_cores(tmp_path / "gone", []) == len(allowed)


@pytest.mark.parametrize(
    ("text", "most"),
    [("max 100000\n", 10**6), ("100000 100000\n", 1), ("50000 100000\n", 1), ("nonsense", 10**6)],
)
def test_a_container_quota_counts(tmp_path: Path, text: str, most: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert 1 <= usable_cores(cgroups=[tmp_path / "none", tmp_path]) <= most


def test_what_a_container_may_have_counts_its_files_as_free(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("4000\n")
    (tmp_path / "memory.current").write_text("3900\n")
    assert available_bytes([tmp_path]) == 100
    (tmp_path / "memory.stat").write_text("anon 200\ninactive_file 3000\nactive_file 700\n")
    assert available_bytes([tmp_path]) == 3100
    assert total_bytes([tmp_path / "none", tmp_path]) == 4000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes([tmp_path]) > 1 << 20


def test_the_limits_of_a_slice_hold_for_what_is_in_it(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("4:memory:/old\n0::/user.slice/run-7.scope\n")
    root = tmp_path / "fs"
    assert own_cgroups(root, own) == [root / "user.slice/run-7.scope", root / "user.slice", root]
    own.write_text("0::/\n")
    assert own_cgroups(root, own) == own_cgroups(root, tmp_path / "none") == [root]


def test_there_is_some_memory() -> None:
    assert available_bytes() > 1 << 20


def test_the_cache_has_a_size(models: Path) -> None:
    facts = read_facts(models / "qwen3.gguf")
    assert facts.kv_bytes_per_token() == 2 * 1 * (64 + 64) * 2
    assert kv_bytes(facts, 256) == kv_bytes(facts, 1) == 256 * 512
    assert kv_bytes(facts, 256, "q8_0") == 256 * 256 * 34 // 32
    with pytest.raises(InvalidInput):
        kv_bytes(facts, 0)


def test_an_estimate_adds_up_and_is_judged(models: Path) -> None:
    facts = read_facts(models / "qwen3.gguf")
    parts = estimate(facts, 2048)
    assert parts.total == parts.weights + parts.repacked + parts.kv_cache + parts.compute + parts.process
    assert parts.kv_cache == 2048 * 512
    assert parts.compute == 512 * 4 * (3 * 128 + 4 * 64) + 2 * 512 * 2048
    assert estimate(facts, 2048, "q8_0").total < parts.total
    assert [verdict(n, 100) for n in (80, 81, 100, 101)] == ["fits", "tight", "tight", "no"]


def test_the_catalogue_knows_the_cache_of_hybrid_models(tmp_path: Path) -> None:
    catalogue = load_catalogue(shipped_catalogue(), tmp_path / "none")
    model = catalogue.models["qwen3.5-0.8b"]
    facts = facts_from_catalogue(model, model.variants[0])
    assert facts.recurrent_state_bytes > 0
    assert CHECKPOINTS == MAX_CHECKPOINTS
    in_all = kv_bytes(facts, 2048) + CHECKPOINTS * facts.recurrent_state_bytes
    assert estimate(facts, 2048).kv_cache == in_all
    per_layer = model.shape.n_head_kv * (model.shape.key_length + model.shape.value_length)
    assert facts.kv_values_per_token == model.shape.n_layers // 4 * per_layer


@pytest.mark.model
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("n_ctx", [2048, 8192])
async def test_the_estimate_is_what_is_measured(
    real_model: Path, tmp_path: Path, n_ctx: int, kv_type: Literal["f16", "q8_0"]
) -> None:
    async with WorkerClient(tmp_path / "logs") as client:
        await client.load(LoadParams(paths=(str(real_model),), n_ctx=n_ctx, kv_type=kv_type, n_threads=2))
        measured = (await ask(client, "word " * 600, max_tokens=2)).finished.stats.rss_bytes
    assert estimate(read_facts(real_model), n_ctx, kv_type).total == pytest.approx(measured, rel=0.10)


def test_the_context_follows_model_and_memory(models: Path) -> None:
    small = read_facts(models / "qwen3.gguf")
    assert choose_context(small, 10**12) == (small.context, False)
    large = replace(small, context=131_072)
    assert choose_context(large, 10**12) == (DEFAULT_CONTEXT, False)
    assert choose_context(large, 4 * kv_bytes(large, 4096)) == (4096, True)
    assert choose_context(large, 0) == (2048, True)
    assert choose_context(large, 4 * kv_bytes(large, 8192, "q4_0"), "q4_0") == (DEFAULT_CONTEXT, False)


def test_what_cannot_fit_is_refused_with_the_nearest_that_does(models: Path) -> None:
    facts = replace(
        read_facts(models / "qwen3.gguf"), context=131_072, repacked_bytes=2 * GB, weights_bytes=4 * GB
    )

    def refusal(asked: Setting, available_bytes: int) -> str:
        with pytest.raises(LoadFailed) as caught:
            check_memory(facts, asked, available_bytes)
        return caught.value.message

    check_memory(facts, Setting(8192), 3 * GB)
    not_mapped = refusal(Setting(8192, is_mapped=False), 3 * GB)
    assert "with the weights" in not_mapped
    assert "`--ctx 8192` without `--mlock` and `--no-mmap` fits" in not_mapped
    assert "`--ctx 8192 --no-repack` fits" in refusal(Setting(8192), GB)
    available = round(Setting(16384, repack=False).needed(facts) / 0.8) + 10
    assert "`--ctx 16384 --no-repack` fits" in refusal(Setting(65536, repack=False), available)
    assert "take a smaller model" in refusal(Setting(8192), 1000)


def test_the_cpu_has_a_name(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("model\t\t: 207\nmodel name\t: Some Processor\n")
    assert cpu_name(file) == "Some Processor (207)"
    file.write_text("CPU part\t: 0xd0b\nModel\t\t: Raspberry Pi 5\n")
    assert cpu_name(file) == "Raspberry Pi 5 (0xd0b)"
    assert cpu_name(tmp_path / "none")


def test_memory_is_read_at_some_speed() -> None:
    assert reading_bytes_per_s(2) > 1e8

"""Presets, files in messages, the pace of drawing, and advice about the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeqwen.chat.attach import insert_files
from edgeqwen.chat.presets import load_presets
from edgeqwen.errors import InvalidConfig, InvalidInput
from edgeqwen.machine.monitor import Gpu, Monitor, Sample, WorkerMemory, advice
from edgeqwen.tui.flush import base_interval, next_interval


def test_shipped_presets_have_all_their_blanks() -> None:
    presets = load_presets(Path("/nowhere/presets.toml"))
    assert {"general", "reasoning", "coding", "translation", "summary"} <= set(presets)
    filled = presets["coding"].fill({"language": "Rust", "constraints": "  "})
    assert "Rust" in filled
    assert "standard library" in filled
    assert all("{" not in preset.fill({}) for preset in presets.values())


def test_ones_own_presets_replace_and_add(tmp_path: Path) -> None:
    file = tmp_path / "presets.toml"
    file.write_text('[presets.general]\ntitle="Mine"\n[presets.x]\ntitle="X"\nsystem="{a}"\nblanks={a="b"}\n')
    presets = load_presets(file)
    assert (presets["general"].title, presets["x"].fill({})) == ("Mine", "b")
    file.write_text('[presets.x]\ntitle="X"\nsystem="no blank"\nblanks={a="b"}\n')
    with pytest.raises(InvalidConfig, match="has no {a}"):
        load_presets(file)
    file.write_text('[presets.x]\nttle="X"\n')
    with pytest.raises(InvalidConfig):
        load_presets(file)


def test_files_come_after_the_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.py").write_text("x = 1\n```\n")
    Path("two words.txt").write_text("\ufeffhello\x1b[31m")
    text = insert_files('explain @a.py and @"two words.txt" for me@home and @nobody')
    assert text.startswith("explain @a.py and")
    assert "a.py:\n````py\nx = 1\n```\n````" in text
    assert "two words.txt:\n```txt\nhello[31m\n```" in text
    assert insert_files("no files") == "no files"


@pytest.mark.parametrize("content", [b"GGUF\x00\x01", b"\xff\xfe\xfd", b"x" * ((1 << 20) + 1)])
def test_files_that_are_no_text_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(InvalidInput, match="binary|UTF-8|larger"):
        insert_files(f"@{tmp_path / 'f'}")


def test_drawing_takes_a_fifth_of_the_time_at_most() -> None:
    assert next_interval(0.1, 0.001) == 0.1
    assert next_interval(0.1, 0.1) == pytest.approx(0.4)
    assert next_interval(0.1, 9.0) == 2.0
    paces = [
        base_interval(is_remote=remote, low_bandwidth=slow, all_cores=cores)
        for remote, slow, cores in (
            (False, False, False),
            (True, False, False),
            (False, False, True),
            (True, True, True),
        )
    ]
    assert paces == sorted(paces)


def sample(**changes: object) -> Sample:
    fields = dict(
        worker=WorkerMemory(1, None, None), available=8 << 30, total=16 << 30, swap_used=0, swapped_in=0,
        memory_pressure=0.0, cpu=(1.0,), temperature=50.0, is_throttled=False,
    )  # fmt: skip
    return Sample(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"swapped_in": 64 << 20}, "swapping"),
        ({"memory_pressure": 40.0}, "waited for"),
        ({"available": 1 << 28}, "nearly full"),
        ({"is_throttled": True}, "throttled"),
        ({"temperature": 95.0}, "hot"),
        ({"gpus": (Gpu("card0", 99, 100),)}, "card0"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(changes: dict[str, object], words: str) -> None:
    assert words in advice(sample(**changes))[0]


def test_a_full_context_is_told_and_a_well_machine_is_quiet() -> None:
    assert advice(sample(), n_context=95, n_ctx=100) == [
        "context 95% full: begin a new chat, or let old turns be dropped"
    ]
    assert advice(sample(), n_context=10, n_ctx=100) == []


def test_the_monitor_reads_the_systems_own_files(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text("Name:\tx\nVmRSS:\t  700 kB\nRssFile:\t 500 kB\n")
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure" / "memory").write_text("some avg10=12.50 avg60=0.00 avg300=0.00 total=1\n")
    throttled = tmp_path / "devices/platform/soc/soc:firmware/get_throttled"
    throttled.parent.mkdir(parents=True)
    throttled.write_text("50005\n")
    card = tmp_path / "class/drm/card0/device"
    card.mkdir(parents=True)
    (card / "mem_info_vram_used").write_text("10")
    (card / "mem_info_vram_total").write_text("20")
    seen = Monitor(tmp_path, tmp_path).sample(7)
    assert seen.worker == WorkerMemory(700 * 1024, 500 * 1024, 200 * 1024)
    assert (seen.memory_pressure, seen.is_throttled) == (12.5, True)
    assert seen.gpus[0] == Gpu("card0", 10, 20)
    assert seen.total > seen.available > 0
    here = Monitor().sample(os.getpid()).worker
    assert here is not None
    assert here.rss > 1_000_000

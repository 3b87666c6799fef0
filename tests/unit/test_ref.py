"""The grammar of refs and the names that may become folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeqwen.errors import InvalidInput
from edgeqwen.models.ref import ModelRef, folder_name, is_safe_file_name, is_safe_name, normal_name, parse_ref


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("qwen3-4b", ModelRef(model="qwen3-4b")),
        ("Qwen3-4B:Q5_K_M", ModelRef(model="qwen3-4b", quant="q5_k_m")),
        (" qwen3-4b ", ModelRef(model="qwen3-4b")),
        ("Qwen/Qwen2.5-0.5B-Instruct-GGUF", ModelRef(model="qwen2.5-0.5b")),
        ("Qwen2.5_Coder_0.5B_Instruct", ModelRef(model="qwen2.5-coder-0.5b")),
        ("qwen3:4b", ModelRef(model="qwen3", quant="4b")),
        ("hf:Qwen/Qwen3-4B-GGUF:Q4_K_M", ModelRef(hub="Qwen/Qwen3-4B-GGUF", quant="q4_k_m")),
        ("HF:Qwen/Qwen3-4B-GGUF", ModelRef(hub="Qwen/Qwen3-4B-GGUF")),
        ("./Some Model.GGUF", ModelRef(path=Path("Some Model.GGUF"))),
        ("x.script.json", ModelRef(path=Path("x.script.json"))),
    ],
)
def test_refs_are_read(text: str, expected: ModelRef) -> None:
    assert parse_ref(text) == expected


@pytest.mark.parametrize(
    "text", ["", "   ", "a\x1b[31m", "x" * 5000, "hf:", "hf:Qwen", "hf:a/b/c", "hf:a b/c", "hf:ö/ü"]
)
def test_what_is_no_ref_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_ref(text)


@given(
    st.from_regex(r"[a-z0-9][a-z0-9.-]{0,20}", fullmatch=True), st.none() | st.sampled_from(["q4_k_m", "f16"])
)
def test_a_printed_ref_reads_back(name: str, quant: str | None) -> None:
    ref = parse_ref(f"{name}:{quant}" if quant else name) if normal_name(name) else None
    if ref and not name.endswith(".gguf"):
        assert parse_ref(str(ref)) == ref


@given(st.text(max_size=90))
@example("qwen2.5 0.5b instruct (1)")
@example("a" * 63 + "-b")
def test_a_folder_has_a_name_that_its_ref_finds(text: str) -> None:
    name = folder_name(text)
    assert folder_name(name) == normal_name(name) == name
    assert len(name) <= 64


@given(st.text(max_size=40))
def test_normal_names_are_fixed_points(text: str) -> None:
    once = normal_name(text)
    assert normal_name(once) == once


@pytest.mark.parametrize("name", ["qwen3-4b", "a", "x" * 64, "com10"])
def test_plain_names_are_safe(name: str) -> None:
    assert is_safe_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "a\\b", "A", "con", "nul.x", "com1", "a.", "-a", "x" * 65, "partial", "a\n", "ö"],
)
def test_other_names_are_not(name: str) -> None:
    assert not is_safe_name(name)


@pytest.mark.parametrize("name", ["a.gguf", "Qwen3-4B-Q4_K_M.gguf", "m-00001-of-00002.gguf"])
def test_plain_file_names_are_safe(name: str) -> None:
    assert is_safe_file_name(name)


@pytest.mark.parametrize(
    "name", ["a", ".gguf", "../a.gguf", "a/b.gguf", "a b.gguf", "aux.gguf", "a\x00.gguf", "x" * 200 + ".gguf"]
)
def test_other_file_names_are_not(name: str) -> None:
    assert not is_safe_file_name(name)

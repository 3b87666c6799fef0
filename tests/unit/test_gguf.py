"""The header scanner against every malformed file we know, and against chance."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeqwen.errors import InvalidGGUF, InvalidInput
from edgeqwen.models.facts import facts_of, open_header, read_facts
from edgeqwen.models.gguf import GGUFHeader, read_header
from tests.support import raw_gguf as raw
from tests.support.raw_gguf import ARRAY, F32, I32, STRING, U8, U32, U64, gguf, key, tensor

NESTED = raw.text("x") + struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 1000
BAD = [
    ("empty", b"", "the file is empty"),
    ("four bytes", b"GGUF", "ends inside its header"),
    ("wrong magic", b"GGML" + bytes(60), "it is not a GGUF file"),
    ("html", b"\n<!DOCTYPE html><html><body>Sign in", "HTML page"),
    ("bare html", b"<head></head><html>", "HTML page"),
    ("lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 5\n", "Git LFS pointer"),
    ("safetensors", struct.pack("<Q", 40) + b'{"__metadata__":{}}' + bytes(40), "safetensors"),
    ("zip", b"PK\x03\x04" + bytes(60), "zip archive"),
    ("reversed magic", b"FUGG" + bytes(60), "big-endian"),
    ("big-endian", b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    ("version 1", gguf(version=1), "too old"),
    ("version 99", gguf(version=99), "version 99, newer"),
    ("cut in the header", gguf([key("a", STRING, "b" * 99)])[:60], "ends inside its header, at byte 60"),
    ("many keys", gguf(n_keys=1 << 63), "9,223,372,036,854,775,808 metadata keys"),
    ("many tensors", gguf(n_tensors=1 << 32), "4,294,967,296 tensors"),
    ("more keys than there are", gguf([key("a", U32, 1)], n_keys=5), "a metadata key is empty"),
    ("long string", gguf([raw.text("x") + struct.pack("<I", STRING) + raw.text("", 1 << 63)]), "x"),
    ("string past the end", gguf([raw.text("x") + struct.pack("<I", STRING) + raw.text("", 1 << 20)]), "end"),
    ("long key", gguf([key("k" * 2000, U32, 1)]), "metadata key"),
    ("key that is no UTF-8", gguf([key(b"\xff\xfe", U32, 1)]), "UTF-8"),
    ("array of 2^63", gguf([raw.array("x", U8, b"", 1 << 63)]), "claims 9,223,372,036,854,775,808 items"),
    ("array of 2^20 in nothing", gguf([raw.array("x", U8, b"", 1 << 20)]), "ends inside its header"),
    ("nested arrays", gguf([NESTED]), "arrays inside an array"),
    ("value type 99", gguf([raw.text("x") + struct.pack("<I", 99)]), "unknown type 99"),
    ("items of type 99", gguf([raw.array("x", 99, b"", 1)]), "unknown type 99"),
    ("duplicate key", gguf([key("a", U32, 1), key("a", U32, 2)]), "given twice"),
    ("duplicate array", gguf([raw.array("a", U8, b"1", 1), key("a", U32, 2)]), "given twice"),
    ("alignment 0", gguf([key("general.alignment", U32, 0)]), "alignment is 0"),
    ("alignment 3", gguf([key("general.alignment", U32, 3)]), "alignment is 3"),
    ("alignment 2^31", gguf([key("general.alignment", U32, 1 << 31)]), "alignment"),
    ("alignment of text", gguf([key("general.alignment", STRING, "32")]), "alignment"),
    ("no dimensions", gguf(tensors=[tensor("t", (), n_dims=0)]), "0 dimensions"),
    ("many dimensions", gguf(tensors=[tensor("t", (1,), n_dims=1 << 31)]), "2,147,483,648 dimensions"),
    ("2^33 x 2^33", gguf(tensors=[tensor("t", (1 << 33, 1 << 33))]), "impossible size"),
    ("2^62", gguf(tensors=[tensor("t", (1 << 62,))]), "impossible size"),
    ("dimension 0", gguf(tensors=[tensor("t", (0, 4))]), "impossible size"),
    ("tensor type 99", gguf(tensors=[tensor("t", (32,), kind=99)]), "type 99, newer"),
    ("removed tensor type", gguf(tensors=[tensor("t", (32,), kind=4)]), "type 4"),
    ("offset 2^63", gguf(tensors=[tensor("t", (8,), offset=1 << 63)]), "lies at byte"),
    ("first offset not 0", gguf(tensors=[tensor("t", (8,), offset=32)], data=bytes(64)), "lies at byte 32"),
    ("overlap", gguf(tensors=[tensor("a", (8,)), tensor("b", (8,), offset=0)], data=bytes(64)), "not 32"),
    ("gap", gguf(tensors=[tensor("a", (8,)), tensor("b", (8,), offset=64)], data=bytes(99)), "not 32"),
    ("Q4_K row of 100", gguf(tensors=[tensor("t", (100, 4), kind=12)]), "whole Q4_K blocks"),
    ("duplicate tensor", gguf(tensors=[tensor("a", (8,)), tensor("a", (8,), offset=32)]), "listed twice"),
    ("cut in the data", gguf(tensors=[tensor("t", (64,))], data=bytes(100)), "cut short"),
]  # fmt: skip


def scan(data: bytes) -> GGUFHeader:
    return read_header(io.BytesIO(data), len(data), "m.gguf")


@pytest.mark.parametrize(("data", "reason"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_malformed_files_are_refused_in_one_sentence(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidGGUF) as caught:
        scan(data)
    message = str(caught.value)
    assert reason in message
    assert message.startswith("m.gguf cannot be used: ")
    assert message.isprintable()
    assert len(message) < 400


def test_a_file_cut_by_one_byte_says_how_much_is_there() -> None:
    whole = gguf(tensors=[tensor("t", (1024,))], data=bytes(4096))
    scan(whole)
    scan(whole + b"x")
    with pytest.raises(InvalidGGUF, match=f"{len(whole) - 1:,} of {len(whole):,} bytes"):
        scan(whole[:-1])


def test_a_prefix_is_enough_when_the_size_is_known() -> None:
    whole = gguf([key("a", U32, 7)], tensors=[tensor("t", (1024,))], data=bytes(4096))
    header = read_header(io.BytesIO(whole[:200]), len(whole), "m.gguf")
    assert header.metadata == {"a": 7}
    assert header.expected_size == len(whole)


def test_values_are_read() -> None:
    keys = [
        key("u8", U8, 200),
        key("f", F32, 0.5),
        key("b", raw.BOOL, True),
        key("u64", U64, 1 << 60),
        key("s", STRING, "héllo"),
        raw.array("n", I32, struct.pack("<3i", 1, -2, 3), 3),
        raw.strings("words", ["a", "", "ccc"]),
    ]
    header = scan(gguf(keys, [tensor("t", (32, 2), kind=8)], data=bytes(68)))
    assert header.metadata == {"u8": 200, "f": 0.5, "b": True, "u64": 1 << 60, "s": "héllo", "n": (1, -2, 3)}
    assert header.arrays["words"].count == 3
    assert header.tensors[0].n_bytes == 68


def test_names_in_messages_are_clean() -> None:
    evil = "\x1b[31m\u202ename\n"
    with pytest.raises(InvalidGGUF) as caught:
        scan(gguf(tensors=[tensor(evil, (32,), kind=99)]))
    assert str(caught.value).isprintable()


def model(arch: str = "qwen3", without: tuple[str, ...] = (), n_vocab: int = 4, **extra: bytes) -> bytes:
    """Return a small model's header with keys left out or, by their name, replaced."""
    numbers = {
        "block_count": 1,
        "context_length": 512,
        "embedding_length": 8,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
    }
    keys = {f"{arch}.{name}": key(f"{arch}.{name}", U32, value) for name, value in numbers.items()}
    keys["general.architecture"] = key("general.architecture", STRING, arch)
    for name, value in (("model", "gpt2"), ("pre", "qwen2")):
        keys[f"tokenizer.ggml.{name}"] = key(f"tokenizer.ggml.{name}", STRING, value)
    keys["tokenizer.ggml.tokens"] = raw.strings("tokenizer.ggml.tokens", ["a"] * n_vocab)
    keys["tokenizer.ggml.merges"] = raw.strings("tokenizer.ggml.merges", ["a a"])
    keys |= extra
    kept = [value for name, value in keys.items() if name not in without]
    tensors = [tensor("token_embd.weight", (8, 4)), tensor("blk.0.attn_norm.weight", (8,), offset=128)]
    return gguf(kept, tensors, bytes(160))


def replaced(name: str, kind: int, value: object) -> dict[str, bytes]:
    return {name: key(name, kind, value)}


MEANINGLESS = [
    ("block count 0", model(**replaced("qwen3.block_count", U32, 0)), "block count is out of range: 0"),
    ("block count 2^31", model(**replaced("qwen3.block_count", U32, 1 << 31)), "block count is out of range"),
    ("block count as text", model(**replaced("qwen3.block_count", STRING, "28")), "block count"),
    ("more blocks than tensors", model(**replaced("qwen3.block_count", U32, 28)), "block 28 is missing"),
    ("no block count", model(without=("qwen3.block_count",)), "no block count (qwen3.block_count)"),
    ("heads 0", model(**replaced("qwen3.attention.head_count", U32, 0)), "attention.head_count"),
    ("kv heads 0", model(**replaced("qwen3.attention.head_count_kv", U32, 0)), "head_count_kv"),
    ("context 2^32-1", model(**replaced("qwen3.context_length", U32, 2**32 - 1)), "context length"),
    ("embedding 7", model(**replaced("qwen3.embedding_length", U32, 7)), "7"),
    ("embedding does not match", model(**replaced("qwen3.embedding_length", U32, 16)), "embedding is 8 x 4"),
    ("vocabulary of 1", model(n_vocab=1), "its header says 8 x 1"),
    ("token id outside", model(**replaced("tokenizer.ggml.bos_token_id", U32, 4)), "outside its vocabulary"),
    ("no architecture", model(without=("general.architecture",)), "does not say its architecture"),
    ("another architecture", model("llama"), "architecture is llama; edgeqwen runs Qwen models"),
    ("vision projector", model("clip"), "vision projector"),
    ("no tokenizer", model(without=("tokenizer.ggml.model",)), "no tokenizer"),
    ("no vocabulary", model(**replaced("tokenizer.ggml.model", STRING, "none")), "kind none"),
    ("no tokens", model(without=("tokenizer.ggml.tokens",)), "vocabulary"),
    ("no merges", model(without=("tokenizer.ggml.merges",)), "no merges"),
    (
        "token types as bytes",
        model(**{"t": raw.array("tokenizer.ggml.token_type", U8, bytes(4), 4)}),
        "token_type does not match",
    ),
    (
        "too few token types",
        model(**{"t": raw.array("tokenizer.ggml.token_type", I32, bytes(12), 3)}),
        "token_type does not match",
    ),
    (
        "endless template",
        model(**replaced("tokenizer.chat_template", STRING, "x" * (70 << 10))),
        "chat template is longer than 64 KiB",
    ),
    ("shard 2", gguf([key("split.no", raw.U32, 1), key("split.count", U32, 2)]), "it is shard 2 of a model"),
]


@pytest.mark.parametrize(
    ("data", "reason"), [case[1:] for case in MEANINGLESS], ids=[c[0] for c in MEANINGLESS]
)
def test_headers_that_llama_cpp_dies_of_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidGGUF) as caught:
        facts_of(scan(data), "m.gguf")
    assert reason in str(caught.value)


def test_a_sound_header_has_facts() -> None:
    facts = facts_of(scan(model(**replaced("qwen3.attention.key_length", U32, 16))), "m.gguf")
    assert facts.kv_values_per_token == 1 * (16 + 4)
    assert facts.kv_bytes_per_token() == 40
    assert facts.weights_bytes == 160
    assert facts.template_sha256 is None


@pytest.mark.parametrize("arch", ["qwen2", "qwen3", "qwen35"])
def test_real_tiny_models_pass(models: Path, arch: str) -> None:
    facts = read_facts(models / f"{arch}.gguf")
    assert facts.architecture == arch
    assert facts.quant == "f16"
    assert (facts.recurrent_state_bytes > 0) == (arch == "qwen35")


def test_every_cut_of_a_real_header_is_refused(models: Path) -> None:
    data = (models / "qwen2.gguf").read_bytes()
    end = read_header(io.BytesIO(data), len(data), "m").data_offset
    for at in [*range(0, 200), *range(200, end, 53), end, len(data) - 1]:
        with pytest.raises(InvalidGGUF):
            facts_of(scan(data[:at]), "m.gguf")


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_mutation_gets_past_the_error(models: Path, data: st.DataObject) -> None:
    """Whatever bytes change, the answer is facts or one sentence: no other exception, no big memory."""
    whole = bytearray((models / "qwen35.gguf").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 8000))
        patch = data.draw(
            st.binary(min_size=1, max_size=9) | st.sampled_from([b"\xff" * 8, bytes(8), b"\x7f"])
        )
        whole[at : at + len(patch)] = patch
    with contextlib.suppress(InvalidGGUF):
        facts_of(scan(bytes(whole)), "m.gguf")


@given(st.binary(max_size=400))
def test_no_bytes_get_past_the_errors(body: bytes) -> None:
    for data in (body, b"GGUF\x03\x00\x00\x00" + body):
        with pytest.raises(InvalidGGUF):
            facts_of(scan(data), "m.gguf")


def test_false_lengths_take_no_memory() -> None:
    huge = gguf([raw.text("x") + struct.pack("<I", STRING) + raw.text("", 15 << 20)])
    tracemalloc.start()
    with pytest.raises(InvalidGGUF):
        scan(huge)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such file"):
        open_header(tmp_path / "gone.gguf")
    with pytest.raises(InvalidInput, match="is a folder"):
        open_header(tmp_path)


@pytest.mark.model
def test_a_real_vocabulary_takes_little_memory(real_model: Path) -> None:
    tracemalloc.start()
    facts = read_facts(real_model)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert facts.n_vocab == 151_936
    assert peak < 40_000_000

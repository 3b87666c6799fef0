"""What a GGUF header means: checks that it is a Qwen model llama.cpp can load, and says what it needs.

Owns the semantic bounds (llama.cpp aborts the process on some values) and the memory formulas; reads no file
beyond the header it is given.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeqwen.errors import InvalidGGUF, InvalidInput
from edgeqwen.models.gguf import TENSOR_TYPES, GGUFHeader, TensorInfo, Value, read_header
from edgeqwen.text import clean_line

ARCHITECTURES = frozenset(
    {"qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe", "qwen3next"}
    | {"qwen35", "qwen35moe"}
)
_HYBRID = frozenset({"qwen3next", "qwen35", "qwen35moe"})
_MIXTURES = frozenset({"qwen2moe", "qwen3moe", "qwen3vlmoe", "qwen3next", "qwen35moe"})
_MAX_TEMPLATE = 64 << 10

# general.file_type, as llama.cpp's llama_ftype names them.
_FILE_TYPES = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 7: "q8_0", 8: "q5_0", 9: "q5_1", 10: "q2_k", 11: "q3_k_s",
    12: "q3_k_m", 13: "q3_k_l", 14: "q4_k_s", 15: "q4_k_m", 16: "q5_k_s", 17: "q5_k_m", 18: "q6_k",
    19: "iq2_xxs", 20: "iq2_xs", 21: "q2_k_s", 22: "iq3_xs", 23: "iq3_xxs", 24: "iq1_s", 25: "iq4_nl",
    26: "iq3_s", 27: "iq3_m", 28: "iq2_s", 29: "iq2_m", 30: "iq4_xs", 31: "iq1_m", 32: "bf16",
}  # fmt: skip

# Bytes per cached value. Source: ggml block layouts, per 32 values q8_0 takes 34 bytes and q4_0 takes 18.
KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}


@dataclass(frozen=True)
class ModelFacts:
    """What the header of a model says, checked."""

    architecture: str
    name: str | None
    """general.name, which is often wrong: for display, never for identity."""
    quant: str | None
    """From general.file_type; None when the file does not say."""
    context: int
    n_layers: int
    n_embd: int
    n_vocab: int
    kv_values_per_token: int
    """Values cached per token: sum over attention layers of n_head_kv * (key_length + value_length)."""
    recurrent_state_bytes: int
    """Per sequence, for hybrid models."""
    weights_bytes: int
    """Bytes of all tensors; where only the first shard was read, of that one."""
    n_parameters: int
    template_sha256: str | None
    """None: the file has no chat template."""
    licence: str | None
    split_count: int
    """Shards the model comes in; 1 for a single file."""
    n_ff: int = 0
    """Width of the feed-forward layers; of all active experts in a mixture. 0: the file does not say."""
    repacked_bytes: int = 0
    """Bytes of tensors that llama.cpp keeps a second, rearranged copy of on most CPUs."""

    @property
    def is_mixture(self) -> bool:
        """Whether it has experts, of which a token reads a few."""
        return self.architecture in _MIXTURES

    def kv_bytes_per_token(self, kv_type: str = "f16") -> float:
        """Return the bytes of KV cache one token takes, with keys and values of `kv_type`."""
        return self.kv_values_per_token * KV_BYTES[kv_type]


def kv_bytes(facts: ModelFacts, n_ctx: int, kv_type: str = "f16", kv_type_v: str | None = None) -> int:
    """Return the bytes of KV cache and state that one slot of `n_ctx` tokens needs.

    Values are of `kv_type` unless `kv_type_v` says otherwise; there are as many of them as of keys. llama.cpp
    rounds n_ctx up to a multiple of 256. Raises InvalidInput when n_ctx < 1.
    """
    if n_ctx < 1:
        raise InvalidInput(f"a context must have at least 1 token, not {n_ctx}")
    cells = -(-n_ctx // 256) * 256
    per_token = (facts.kv_bytes_per_token(kv_type) + facts.kv_bytes_per_token(kv_type_v or kv_type)) / 2
    return round(cells * per_token) + facts.recurrent_state_bytes


def read_facts(path: Path) -> ModelFacts:
    """Scan a model file, or the first of its shards. Blocking. Raises InvalidGGUF or InvalidInput."""
    return facts_of(open_header(path), path.name)


def read_model(paths: Sequence[Path], names: Sequence[str] | None = None) -> ModelFacts:
    """Scan a model file, or all its shards in order, and check that they belong together. Blocking.

    `names` are those to call the files by. Raises InvalidGGUF or InvalidInput.
    """
    names = [path.name for path in paths] if names is None else names
    headers = [open_header(path, name) for path, name in zip(paths, names, strict=True)]
    facts = facts_of(headers[0], names[0])
    if facts.split_count != len(headers):
        message = f"{names[0]} is one of {facts.split_count} shards; keep their original names together"
        raise InvalidInput(message)
    if len(headers) == 1:
        return facts
    for number, (name, header) in enumerate(zip(names, headers, strict=True)):
        if header.metadata.get("split.no") != number:
            reason = f"its name says shard {number + 1}, its header does not"
            raise InvalidGGUF(f"{name} cannot be used: {reason}", path=name, reason=reason)
    n_tensors = sum(len(header.tensors) for header in headers)
    expected = headers[0].metadata.get("split.tensors.count", n_tensors)
    if expected != n_tensors:
        raise InvalidInput(f"the shards of {names[0]} hold {n_tensors} tensors instead of {expected}")
    tensors = [tensor for header in headers for tensor in header.tensors]
    return replace(
        facts,
        weights_bytes=_weights_bytes(tensors),
        repacked_bytes=_repacked_bytes(tensors),
        n_parameters=_n_parameters(tensors),
    )


def open_header(path: Path, name: str | None = None) -> GGUFHeader:
    """Read the header of a file. Raises InvalidInput when it cannot be read, InvalidGGUF when it is wrong."""
    try:
        if path.is_dir():
            raise InvalidInput(f"{path} is a folder; name the .gguf file in it")
        if path.exists() and not path.is_file():
            raise InvalidInput(f"{path} is no regular file")  # opening a pipe would wait for ever
        with path.open("rb", buffering=0) as file:
            return read_header(file, path.stat().st_size, name or path.name)
    except FileNotFoundError as error:
        raise InvalidInput(f"no such file: {path}") from error
    except PermissionError as error:
        raise InvalidInput(f"no permission to read {path}") from error
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from error


def facts_of(header: GGUFHeader, name: str) -> ModelFacts:
    """Check what the header means. Raises InvalidGGUF with the first value that is out of bounds."""
    return _Check(header, clean_line(name)).facts()


class _Check:
    """One pass over the metadata of one file."""

    def __init__(self, header: GGUFHeader, name: str) -> None:
        self._header, self._meta, self._name = header, header.metadata, name
        self._arch = ""

    def refuse(self, reason: str) -> InvalidGGUF:
        return InvalidGGUF(f"{self._name} cannot be used: {reason}", path=self._name, reason=reason)

    def facts(self) -> ModelFacts:
        self._architecture()
        n_layers = self._int("block_count", 1, 512)
        context = self._int("context_length", 1, 1 << 24)
        n_embd = self._int("embedding_length", 1, 1 << 17)
        n_vocab = self._vocabulary()
        kv_values = self._kv_values(n_layers, n_embd)
        self._tensors(n_layers, n_embd, n_vocab)
        file_type = self._meta.get("general.file_type")
        return ModelFacts(
            architecture=self._arch,
            name=self._text("general.name"),
            quant=_FILE_TYPES.get(file_type) if isinstance(file_type, int) else None,
            context=context,
            n_layers=n_layers,
            n_embd=n_embd,
            n_vocab=n_vocab,
            kv_values_per_token=kv_values,
            recurrent_state_bytes=self._recurrent_state(n_layers),
            weights_bytes=_weights_bytes(self._header.tensors),
            n_parameters=_n_parameters(self._header.tensors),
            template_sha256=self._template(),
            licence=self._text("general.license"),
            split_count=self._split_count(),
            n_ff=self._n_ff(),
            repacked_bytes=_repacked_bytes(self._header.tensors),
        )

    def _architecture(self) -> None:
        arch = self._meta.get("general.architecture")
        if not isinstance(arch, str):
            if "split.no" in self._meta:
                number = self._meta["split.no"]
                raise self.refuse(f"it is shard {_plus_one(number)} of a model; name the first shard instead")
            raise self.refuse("it does not say its architecture")
        if arch == "clip":
            raise self.refuse("it is a vision projector (mmproj), not a model that can chat")
        if arch not in ARCHITECTURES:
            known = ", ".join(sorted(ARCHITECTURES))
            raise self.refuse(
                f"its architecture is {clean_line(arch, 40)}; edgeqwen runs Qwen models: {known}"
            )
        self._arch = arch

    def _vocabulary(self) -> int:
        for key in ("tokenizer.ggml.model", "tokenizer.ggml.pre"):
            if not isinstance(self._meta.get(key), str):
                raise self.refuse(f"it has no tokenizer ({key} is missing)")
        if (kind := self._meta["tokenizer.ggml.model"]) != "gpt2":  # llama.cpp ends the process over "none"
            raise self.refuse(
                f"its tokenizer is of the kind {clean_line(str(kind), 40)}, which no Qwen model has"
            )
        tokens = self._header.arrays.get("tokenizer.ggml.tokens")
        if tokens is None or tokens.kind != 8 or tokens.count < 1:
            raise self.refuse("its vocabulary (tokenizer.ggml.tokens) is missing or no list of texts")
        merges = self._header.arrays.get("tokenizer.ggml.merges")
        if merges is None or merges.kind != 8:
            raise self.refuse("its tokenizer has no merges (tokenizer.ggml.merges)")
        types = self._header.arrays.get("tokenizer.ggml.token_type")
        if types is not None and (types.kind != 5 or types.count != tokens.count):
            raise self.refuse("tokenizer.ggml.token_type does not match its vocabulary")
        for key, value in self._meta.items():
            is_token = key.startswith("tokenizer.ggml.") and key.endswith("_token_id")
            if is_token and (type(value) is not int or not 0 <= value < tokens.count):
                raise self.refuse(f"{clean_line(key)} is {value}, outside its vocabulary")
        return tokens.count

    def _kv_values(self, n_layers: int, n_embd: int) -> int:
        n_head = self._per_layer("attention.head_count", n_layers, 1)
        hybrid = self._arch in _HYBRID
        n_head_kv = self._per_layer("attention.head_count_kv", n_layers, 0 if hybrid else 1, default=n_head)
        key = f"{self._arch}.attention.key_length"
        if key not in self._meta and n_embd % n_head[0]:
            raise self.refuse(f"its embedding length {n_embd} is no multiple of its {n_head[0]} heads")
        head = n_embd // n_head[0]
        width = self._int("attention.key_length", 1, 8192, head) + self._int(
            "attention.value_length", 1, 8192, head
        )
        return sum(n_head_kv[layer] * width for layer in self._attention_layers(n_layers))

    def _attention_layers(self, n_layers: int) -> range | list[int]:
        """Layers that keep a KV cache. Source: llama.cpp src/models/qwen35.cpp, (i + 1) % interval == 0."""
        if self._arch not in _HYBRID:
            return range(n_layers)
        interval = self._int("full_attention_interval", 1, n_layers, 4)
        return [layer for layer in range(n_layers) if (layer + 1) % interval == 0]

    def _recurrent_state(self, n_layers: int) -> int:
        """Bytes of delta net state, per layer 4 * ((conv - 1) * (inner + 2 * group * state) + state * inner).

        Source: llama.cpp src/llama-hparams.cpp, n_embd_r and n_embd_s.
        """
        if self._arch not in _HYBRID:
            return 0
        conv, inner = self._int("ssm.conv_kernel", 1, 64), self._int("ssm.inner_size", 1, 1 << 20)
        group, state = self._int("ssm.group_count", 1, 4096), self._int("ssm.state_size", 1, 1 << 16)
        n_linear = n_layers - len(self._attention_layers(n_layers))
        return n_linear * 4 * ((conv - 1) * (inner + 2 * group * state) + state * inner)

    def _tensors(self, n_layers: int, n_embd: int, n_vocab: int) -> None:
        """Check the table against the numbers; a first shard has only some of the tensors."""
        tensors = {tensor.name: tensor for tensor in self._header.tensors}
        embedding = tensors.get("token_embd.weight")
        if embedding is not None and embedding.dims != (n_embd, n_vocab):
            shape = " x ".join(map(str, embedding.dims))
            raise self.refuse(f"its embedding is {shape}, but its header says {n_embd} x {n_vocab}")
        if self._split_count() == 1:
            if embedding is None:
                raise self.refuse("it has no token embedding; it is not a whole model")
            if not any(name.startswith(f"blk.{n_layers - 1}.") for name in tensors):
                raise self.refuse(f"it says it has {n_layers} blocks, but block {n_layers} is missing")

    def _n_ff(self) -> int:
        value = self._meta.get(f"{self._arch}.feed_forward_length", 0)
        expert = self._meta.get(f"{self._arch}.expert_feed_forward_length")
        used = self._meta.get(f"{self._arch}.expert_used_count")
        if isinstance(expert, int) and isinstance(used, int):
            value = expert * used
        if isinstance(value, tuple):
            value = max(value, default=0)
        return value if type(value) is int and 0 <= value <= 1 << 20 else 0

    def _template(self) -> str | None:
        template = self._meta.get("tokenizer.chat_template")
        if template is None:
            return None
        if not isinstance(template, str) or len(template) > _MAX_TEMPLATE:
            raise self.refuse(f"its chat template is longer than {_MAX_TEMPLATE >> 10} KiB or no text")
        return hashlib.sha256(template.encode()).hexdigest()

    def _split_count(self) -> int:
        count = self._meta.get("split.count", 1)
        if type(count) is not int or not 0 <= count <= 1000:
            raise self.refuse(f"it says it comes in {clean_line(str(count))} parts")
        return max(count, 1)

    def _text(self, key: str) -> str | None:
        value = self._meta.get(key)
        return clean_line(value) if isinstance(value, str) else None

    def _int(self, key: str, low: int, high: int, default: int | None = None) -> int:
        return self._bounded(key, self._meta.get(f"{self._arch}.{key}", default), low, high)

    def _bounded(self, key: str, value: Value | None, low: int, high: int) -> int:
        words = {"block_count": "block count", "context_length": "context length"}.get(key, key)
        if value is None:
            raise self.refuse(f"its header has no {words} ({self._arch}.{key})")
        if type(value) is not int or not low <= value <= high:
            raise self.refuse(
                f"its {words} is out of range: {clean_line(str(value))}, not {low:,} to {high:,}"
            )
        return value

    def _per_layer(
        self, key: str, n_layers: int, low: int, default: Sequence[int] | None = None
    ) -> Sequence[int]:
        """Read a number that may be given once or per layer."""
        value = self._meta.get(f"{self._arch}.{key}")
        if value is None and default is not None:
            return default
        if not isinstance(value, tuple):
            return [self._bounded(key, value, low, 1024)] * n_layers
        if len(value) < n_layers:
            raise self.refuse(f"its {key} lists {len(value)} layers instead of {n_layers}")
        return [self._bounded(key, item, low, 1024) for item in value]


def _weights_bytes(tensors: Sequence[TensorInfo]) -> int:
    return sum(tensor.n_bytes for tensor in tensors)


def _repacked_bytes(tensors: Sequence[TensorInfo]) -> int:
    return sum(tensor.n_bytes for tensor in tensors if _is_repacked(tensor))


def _n_parameters(tensors: Sequence[TensorInfo]) -> int:
    return sum(math.prod(tensor.dims) for tensor in tensors)


def _is_repacked(tensor: TensorInfo) -> bool:
    """Say whether the CPU backend rearranges a tensor. Source: ggml-cpu/repack.cpp, for AVX2 and dotprod."""
    is_matrix = len(tensor.dims) > 1 and tensor.dims[1] % 8 == 0 and tensor.name != "token_embd.weight"
    return is_matrix and TENSOR_TYPES[tensor.kind][0] in ("Q4_0", "Q4_K", "Q2_K", "IQ4_NL")


def _plus_one(number: Value) -> str:
    return str(number + 1) if isinstance(number, int) else "?"

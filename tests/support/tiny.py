"""Writes tiny Qwen models with random weights: real GGUF files that llama.cpp loads in milliseconds.

Shapes as in llama.cpp's model loaders of the pinned release; the vocabulary is the 256 bytes, two merges
and Qwen's control tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKERS = ("<think>", "</think>")  # user-defined in Qwen's vocabularies: printed, yet one token
MERGED = ("he", "ll")
N_VOCAB = 256 + len(CONTROLS) + len(MARKERS) + len(MERGED)
IM_END = 256 + 2
_SAYABLE = range(ord(" "), ord("~") + 1)
"""At temperature 0 the models say printable ASCII and never end of themselves."""

CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Sizes of one tiny model."""

    arch: str
    n_layers: int = 2
    n_embd: int = 64
    n_ff: int = 128
    n_head: int = 2
    n_head_kv: int = 1
    head: int = 32
    context: int = 512


SHAPES = {
    "qwen2": Shape("qwen2"),
    "qwen3": Shape("qwen3", head=64),
    "qwen35": Shape("qwen35", n_layers=4, head=64),
}
_STATE, _GROUPS, _RANK, _CONV = 32, 2, 4, 4  # qwen35's linear layers: dk, nk, nv, kernel


def write_model(
    path: Path,
    arch: str = "qwen3",
    *,
    seed: int = 0,
    template: str | None = CHATML,
    metadata: dict[str, Any] | None = None,
    split_tensors: int = 0,
) -> Path:
    """Write one model and return its path, or the path of its first shard where tensors are split.

    `metadata` adds keys or, given as None, leaves them out.
    """
    shape = SHAPES[arch]
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split_tensors)
    writer.add_name("Tiny Random")
    writer.add_file_type(1)
    _add_shape(writer, shape)
    _add_vocabulary(writer)
    if template is not None:
        writer.add_chat_template(template)
    for key, value in (metadata or {}).items():
        writer.kv_data[0].pop(key, None)
        if value is not None:
            is_count = type(value) is int and value >= 0  # llama.cpp wants these unsigned
            kind = gguf.GGUFValueType.UINT32 if is_count else gguf.GGUFValueType.get_type(value)
            writer.add_key_value(key, value, kind)
    for name, data in _tensors(shape, np.random.default_rng(seed)):
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if not split_tensors else min(path.parent.glob(f"{path.stem}-*-of-*.gguf"))


def _add_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_block_count(shape.n_layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    if shape.arch != "qwen2":
        writer.add_key_length(shape.head)
        writer.add_value_length(shape.head)
    if shape.arch == "qwen35":
        writer.add_ssm_conv_kernel(_CONV)
        writer.add_ssm_state_size(_STATE)
        writer.add_ssm_group_count(_GROUPS)
        writer.add_ssm_time_step_rank(_RANK)
        writer.add_ssm_inner_size(_STATE * _RANK)
        writer.add_uint32("qwen35.full_attention_interval", 4)
        writer.add_array("qwen35.rope.dimension_sections", [8, 8, 0, 0])
        writer.add_rope_dimension_count(32)


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*_byte_spellings(), *CONTROLS, *MARKERS, *MERGED])
    kinds = [gguf.TokenType.NORMAL] * 256
    kinds += [gguf.TokenType.CONTROL] * len(CONTROLS) + [gguf.TokenType.USER_DEFINED] * len(MARKERS)
    kinds += [gguf.TokenType.NORMAL] * len(MERGED)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(word) for word in MERGED])
    writer.add_eos_token_id(IM_END)
    writer.add_bos_token_id(256)


def _byte_spellings() -> list[str]:
    """Return a printable character per byte, as byte-level BPE has it (GPT-2, Radford et al. 2019)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(spare)) for byte in range(256)]


def _tensors(shape: Shape, random: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    def noise(*dims: int) -> np.ndarray:
        return (random.standard_normal(dims) * 0.05).astype(np.float16)

    def norm(size: int) -> np.ndarray:
        return (1 + random.standard_normal(size) * 0.01).astype(np.float32)

    embedding = noise(N_VOCAB, shape.n_embd)
    embedding[[token for token in range(N_VOCAB) if token not in _SAYABLE]] = 0  # tied: their logits are 0
    tensors = [("token_embd.weight", embedding), ("output_norm.weight", norm(shape.n_embd))]
    for layer in range(shape.n_layers):
        is_linear = shape.arch == "qwen35" and (layer + 1) % 4
        parts = _linear_layer(shape, noise, norm) if is_linear else _attention_layer(shape, noise, norm)
        parts["ffn_gate.weight"] = noise(shape.n_ff, shape.n_embd)
        parts["ffn_up.weight"] = noise(shape.n_ff, shape.n_embd)
        parts["ffn_down.weight"] = noise(shape.n_embd, shape.n_ff)
        parts["attn_norm.weight"] = norm(shape.n_embd)
        parts["post_attention_norm.weight" if shape.arch == "qwen35" else "ffn_norm.weight"] = norm(
            shape.n_embd
        )
        tensors += [(f"blk.{layer}.{name}", data) for name, data in parts.items()]
    return tensors


def _attention_layer(shape: Shape, noise: Any, norm: Any) -> dict[str, np.ndarray]:
    n_q, n_kv = shape.n_head * shape.head, shape.n_head_kv * shape.head
    gate = 2 if shape.arch == "qwen35" else 1  # query and gate in one matrix
    parts = {
        "attn_q.weight": noise(gate * n_q, shape.n_embd),
        "attn_k.weight": noise(n_kv, shape.n_embd),
        "attn_v.weight": noise(n_kv, shape.n_embd),
        "attn_output.weight": noise(shape.n_embd, n_q),
    }
    if shape.arch == "qwen2":
        biases = {"attn_q.bias": n_q, "attn_k.bias": n_kv, "attn_v.bias": n_kv}
        return parts | {name: norm(size) for name, size in biases.items()}
    return parts | {"attn_q_norm.weight": norm(shape.head), "attn_k_norm.weight": norm(shape.head)}


def _linear_layer(shape: Shape, noise: Any, norm: Any) -> dict[str, np.ndarray]:
    n_mixed = 2 * _STATE * _GROUPS + _STATE * _RANK
    return {
        "attn_qkv.weight": noise(n_mixed, shape.n_embd),
        "attn_gate.weight": noise(_STATE * _RANK, shape.n_embd),
        "ssm_conv1d.weight": noise(n_mixed, _CONV).astype(np.float32),
        "ssm_dt.bias": norm(_RANK),
        "ssm_a": -norm(_RANK),
        "ssm_alpha.weight": noise(_RANK, shape.n_embd),
        "ssm_beta.weight": noise(_RANK, shape.n_embd),
        "ssm_norm.weight": norm(_STATE),
        "ssm_out.weight": noise(shape.n_embd, _STATE * _RANK),
    }

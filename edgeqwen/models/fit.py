"""Says what a model takes in memory and whether that fits. Pure arithmetic over facts; measures nothing."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

from edgeqwen.errors import LoadFailed
from edgeqwen.models.catalogue import Model, Variant
from edgeqwen.models.facts import ModelFacts, kv_bytes

DEFAULT_CONTEXT = 8192
_SMALLEST_DEFAULT = 2048
_KV_SHARE = 4  # at most a quarter of the memory goes to the cache unless asked for
_TIGHT = 0.8  # of the available memory; above it the system has little left for anything else
_N_BATCH = 512
# The worker without a model, and llama.cpp's vocabulary per token: measured with a vocabulary of 261 and of
# 151,936 tokens on Linux x86-64 (38 MB and 88 MB in all, 2026-11).
_PROCESS_BYTES = 38_000_000
_VOCABULARY_BYTES = 331

Verdict = Literal["fits", "tight", "no"]


class ContextChoice(NamedTuple):
    """The context to load with."""

    n_ctx: int
    is_reduced: bool
    """Memory, not the model, made it smaller than the default."""


def choose_context(
    facts: ModelFacts, available_bytes: int, kv_type: str = "f16", kv_type_v: str | None = None
) -> ContextChoice:
    """Return the context for somebody who named none: 8,192, less where the model or the memory has less.

    Halved down to 2,048 while its KV cache would take more than a quarter of `available_bytes`.
    """
    wanted = n_ctx = min(facts.context, DEFAULT_CONTEXT)
    while (
        n_ctx // 2 >= _SMALLEST_DEFAULT
        and kv_bytes(facts, n_ctx, kv_type, kv_type_v) * _KV_SHARE > available_bytes
    ):
        n_ctx //= 2
    return ContextChoice(n_ctx, n_ctx < wanted)


CHECKPOINTS = 4
"""Copies of a hybrid model's state that the worker keeps for one slot (worker/prefix.py), never on a GPU."""


@dataclass(frozen=True)
class Estimate:
    """The worker's resident memory while it answers, in bytes, by what takes it."""

    weights: int
    """The file's tensors, which the system reads in as they are used."""
    repacked: int
    """Second copies that the CPU computes faster with."""
    kv_cache: int
    """Keys and values of one slot, the state of hybrid models, and its checkpoints."""
    compute: int
    """Scratch space of one batch."""
    process: int
    """Python, the library and the vocabulary."""

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return self.weights + self.repacked + self.kv_cache + self.compute + self.process


def estimate(
    facts: ModelFacts, n_ctx: int, kv_type: str = "f16", kv_type_v: str | None = None, *, repack: bool = True
) -> Estimate:
    """Return what a model takes on the CPU with one slot of `n_ctx` tokens. Raises InvalidInput.

    Scratch space: n_batch * 4 * (3 * n_ff + 4 * n_embd) bytes of activations and 2 * n_batch * n_ctx of
    attention mask; the factors are those of llama.cpp's own report for Qwen2.5 0.5B and 1.5B (2026-11).
    """
    n_ff = facts.n_ff or 4 * facts.n_embd
    n_batch = min(_N_BATCH, -(-n_ctx // 256) * 256)
    return Estimate(
        weights=facts.weights_bytes,
        repacked=facts.repacked_bytes if repack else 0,
        kv_cache=kv_bytes(facts, n_ctx, kv_type, kv_type_v) + CHECKPOINTS * facts.recurrent_state_bytes,
        compute=n_batch * 4 * (3 * n_ff + 4 * facts.n_embd) + 2 * n_batch * n_ctx,
        process=_PROCESS_BYTES + _VOCABULARY_BYTES * facts.n_vocab,
    )


@dataclass(frozen=True)
class Setting:
    """What of a load decides how much memory it takes, but for the model."""

    n_ctx: int
    kv_type: str = "f16"
    kv_type_v: str | None = None
    repack: bool = True
    is_mapped: bool = True
    """The system may drop weights that are mapped and read them again; others stay in memory."""

    def estimate(self, facts: ModelFacts) -> Estimate:
        """Return what a model takes so."""
        return estimate(facts, self.n_ctx, self.kv_type, self.kv_type_v, repack=self.repack)

    def needed(self, facts: ModelFacts) -> int:
        """Return the bytes that must be there, or the system would end the process."""
        parts = self.estimate(facts)
        # Weights that are read have no original of what is repacked; those that are pinned may have.
        return parts.total - (parts.weights if self.is_mapped else parts.repacked)

    def words(self, asked: Setting) -> str:
        """Return the options that make this of what was asked."""
        options = [f"--ctx {self.n_ctx}"]
        options += [f"--kv {self.kv_type}"] if self.kv_type != "f16" else []
        options += [f"--kv-v {self.kv_type_v}"] if self.kv_type_v else []
        options += [] if self.repack else ["--no-repack"]
        without = " without `--mlock` and `--no-mmap`" if self.is_mapped and not asked.is_mapped else ""
        return f"`{' '.join(options)}`{without}"


def check_memory(facts: ModelFacts, asked: Setting, available_bytes: int) -> None:
    """Raise LoadFailed when what was asked cannot fit, with the numbers and the nearest that does."""
    needed = asked.needed(facts)
    if needed <= available_bytes:
        return
    weights = "besides the weights" if asked.is_mapped else "with the weights"
    hint = "no context fits, so take a smaller model (`edgeqwen recommend`)"
    if nearest := _nearest_that_fits(facts, asked, available_bytes):
        hint = f"{nearest.words(asked)} fits"
    message = (
        f"a context of {asked.n_ctx:,} tokens needs {needed / 1e9:.1f} GB of memory {weights}, and "
        f"{available_bytes / 1e9:.1f} GB are available; {hint}"
    )
    raise LoadFailed(message, reason="not enough memory")


def _nearest_that_fits(facts: ModelFacts, asked: Setting, available_bytes: int) -> Setting | None:
    """Return the first setting that fits well.

    Given up in this order: context down to 2,048, precision of the cache, pinned weights, second copies of
    weights, and at last context below 2,048.
    """
    kinds = dict.fromkeys(((asked.kv_type, asked.kv_type_v), ("q8_0", None), ("q4_0", None)))
    loads = dict.fromkeys(((asked.repack, asked.is_mapped), (asked.repack, True), (False, True)))
    most = min(asked.n_ctx, facts.context)  # more than the model was made for helps nobody
    for least in (_SMALLEST_DEFAULT, 512):
        for (repack, is_mapped), (k, v) in product(loads, kinds):
            n_ctx = most
            while n_ctx >= min(least, most):
                setting = Setting(n_ctx, k, v, repack=repack, is_mapped=is_mapped)
                if setting.needed(facts) <= _TIGHT * available_bytes:
                    return setting
                n_ctx //= 2
    return None


def verdict(total: int, available_bytes: int) -> Verdict:
    """Say whether so many bytes fit into those available: `tight` above four fifths of them."""
    if total > available_bytes:
        return "no"
    return "tight" if total > _TIGHT * available_bytes else "fits"


def facts_from_catalogue(model: Model, variant: Variant) -> ModelFacts:
    """Return what the catalogue knows of a file that is not here, with guesses for what only its header says.

    Guessed: weights are the whole file, and a 4-bit file has four sevenths of it repacked, as a Q4_K_M has
    whose rows fill whole blocks of 256.
    """
    shape = model.shape
    n_attention = len(range(shape.full_attention_interval - 1, shape.n_layers, shape.full_attention_interval))
    is_repacked = variant.quant.startswith(("q4_0", "q4_k")) and shape.n_embd % 256 == 0
    return ModelFacts(
        architecture=model.architecture,
        name=model.name,
        quant=variant.quant,
        context=model.context,
        n_layers=shape.n_layers,
        n_embd=shape.n_embd,
        n_vocab=shape.n_vocab or 151_936,
        kv_values_per_token=n_attention * shape.n_head_kv * (shape.key_length + shape.value_length),
        recurrent_state_bytes=shape.recurrent_state_bytes,
        weights_bytes=variant.size,
        n_parameters=round(model.parameters_b * 1e9),
        template_sha256=None,
        licence=model.licence,
        split_count=len(variant.files),
        n_ff=shape.n_ff,
        repacked_bytes=variant.size * 4 // 7 if is_repacked else 0,
    )

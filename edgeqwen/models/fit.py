"""Says what fits into memory. Pure arithmetic over facts; measures nothing."""

from __future__ import annotations

from typing import NamedTuple

from edgeqwen.models.facts import ModelFacts, kv_bytes

DEFAULT_CONTEXT = 8192
_SMALLEST_DEFAULT = 2048
_KV_SHARE = 4  # at most a quarter of the memory goes to the cache unless asked for


class ContextChoice(NamedTuple):
    """The context to load with."""

    n_ctx: int
    is_reduced: bool
    """Memory, not the model, made it smaller than the default."""


def choose_context(facts: ModelFacts, available_bytes: int) -> ContextChoice:
    """Return the context for somebody who named none: 8,192, less where the model or the memory has less.

    Halved down to 2,048 while its KV cache would take more than a quarter of `available_bytes`.
    """
    wanted = n_ctx = min(facts.context, DEFAULT_CONTEXT)
    while n_ctx // 2 >= _SMALLEST_DEFAULT and kv_bytes(facts, n_ctx) * _KV_SHARE > available_bytes:
        n_ctx //= 2
    return ContextChoice(n_ctx, n_ctx < wanted)

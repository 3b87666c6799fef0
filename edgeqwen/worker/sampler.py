"""Chooses tokens with llama.cpp's samplers, in the order penalties, top-k, top-p, min-p, temperature, draw.

Owns the chain of one request; the logits belong to the context.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from edgeqwen.engine.protocol import SamplerParams
from edgeqwen.worker.binding import L

_WIDEST_TOP_K = 1024
_GREEDY_BELOW = 1e-6  # logits divided by less would no longer be numbers


class LlamaSampler:
    """The sampler of one request, bound to one context."""

    def __init__(self, ctx: Any, n_vocab: int, params: SamplerParams, seed: int) -> None:  # noqa: ANN401 - a ctypes pointer
        self._ctx, self._n_vocab, self._params = ctx, n_vocab, params
        self._penalises = (params.repeat_penalty, params.presence_penalty, params.frequency_penalty) != (
            1,
            0,
            0,
        )
        self._chain = L.llama_sampler_chain_init(L.llama_sampler_chain_default_params())
        for sampler in _steps(params, seed):
            L.llama_sampler_chain_add(self._chain, sampler)

    def sample(self, row: int, recent: Sequence[int]) -> int:
        """Return the next token from the logits of a row; `recent` are the tokens that penalties are for."""
        if self._penalises:
            self._penalise(row, recent)
        if self._params.temperature < _GREEDY_BELOW:
            return _likeliest(L.llama_get_logits_ith(self._ctx, row), self._n_vocab)
        return int(L.llama_sampler_sample(self._chain, self._ctx, row))

    def _penalise(self, row: int, recent: Sequence[int]) -> None:
        """Lower the scores of recent tokens in place.

        Same arithmetic as llama.cpp's penalties sampler (src/llama-sampling.cpp), which visits the whole
        vocabulary for it: 0.3 ms per token there, 0.03 ms here.
        """
        params = self._params
        logits = L.llama_get_logits_ith(self._ctx, row)
        for token, count in Counter(recent).items():
            logit = logits[token]
            logit = logit * params.repeat_penalty if logit <= 0 else logit / params.repeat_penalty
            logits[token] = logit - count * params.frequency_penalty - params.presence_penalty

    def close(self) -> None:
        """Free the chain; safe to do twice."""
        if self._chain:
            L.llama_sampler_free(self._chain)
            self._chain = None


def _likeliest(logits: Any, n_vocab: int) -> int:  # noqa: ANN401 - a ctypes pointer
    """Return the token with the highest logit, the first of equal ones.

    llama.cpp's greedy sampler builds an array of candidates for it: 0.4 ms per token and slot for Qwen's
    vocabulary, against 0.04 here.
    """
    import numpy as np  # 0.1 s to import, and only greedy requests need it

    return int(np.ctypeslib.as_array(logits, (n_vocab,)).argmax())


def _steps(params: SamplerParams, seed: int) -> list[Any]:
    if params.temperature < _GREEDY_BELOW:
        return []
    steps = [L.llama_sampler_init_top_k(params.top_k or _WIDEST_TOP_K)]
    if params.top_p < 1:
        steps.append(L.llama_sampler_init_top_p(params.top_p, 1))
    if params.min_p > 0:
        steps.append(L.llama_sampler_init_min_p(params.min_p, 1))
    return [*steps, L.llama_sampler_init_temp(params.temperature), L.llama_sampler_init_dist(seed)]

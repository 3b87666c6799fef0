"""Picks the model and quant of the catalogue that suits a machine and a purpose, and says why.

Pure arithmetic over the catalogue; what the machine has is told to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeqwen.models.catalogue import Catalogue, Model, Variant
from edgeqwen.models.fit import DEFAULT_CONTEXT, Verdict, estimate, facts_from_catalogue, verdict

Purpose = Literal["chat", "code", "math", "vision"]
PURPOSES: tuple[Purpose, ...] = ("chat", "code", "math", "vision")

# Slower than this nobody likes to wait for an answer; people read about six tokens per second.
READING_TOKENS_PER_S = 6.0
# What a parameter of a generation is worth in those of Qwen2.5: the cards of 3 compare with 2.5 at twice the
# size.
_GENERATION = {"qwen2.5": 1.0, "qwen3": 1.8, "qwen3.5": 2.4}
_QUANT_LOSS = {"q3": 0.85, "q2": 0.6}  # what so few bits leave of it
_SPECIALIST = 2.0  # a model trained for the purpose, against a general one of its size


@dataclass(frozen=True)
class Machine:
    """What matters of a machine, in bytes and bytes per second."""

    available_bytes: int
    memory_bytes_per_s: float


@dataclass(frozen=True)
class Choice:
    """A variant and what it would be like here."""

    model: Model
    variant: Variant
    n_ctx: int
    total_bytes: int
    tokens_per_s: float
    """Expected decode rate: each token reads every weight once."""
    verdict: Verdict

    @property
    def ref(self) -> str:
        """As `model:quant`."""
        return f"{self.model.ref}:{self.variant.quant}"

    @property
    def is_fluent(self) -> bool:
        """Whether it keeps pace with a reader."""
        return self.tokens_per_s >= READING_TOKENS_PER_S


def recommend(catalogue: Catalogue, purpose: Purpose, machine: Machine) -> Choice | None:
    """Return the strongest variant that fits and is fluent; else the best of what is left.

    Where none fits it is the smallest, with its verdict. None: the catalogue has nothing for the purpose.
    Models without commercial use are left to those who ask for them.
    """
    models = [model for model in catalogue.models.values() if _strength_of(model, purpose) > 0]
    models = [model for model in models if catalogue.licences[model.licence].commercial_use]
    choices = [_choice(model, variant, machine) for model in models for variant in _offered(model)]
    fitting = [choice for choice in choices if choice.verdict == "fits"]
    fluent = [choice for choice in fitting if choice.is_fluent]
    if fluent:
        return max(fluent, key=lambda c: (_strength(c, purpose), _is_default(c), c.variant.size))
    if fitting:
        return max(fitting, key=lambda c: (c.tokens_per_s, _is_default(c)))
    return min(choices, key=lambda c: c.total_bytes, default=None)


def _offered(model: Model) -> list[Variant]:
    """Return the usual quant and the smaller ones, which come in when it does not fit."""
    usual = model.variant(model.default_quant)
    return [variant for variant in model.variants if usual and variant.size <= usual.size]


def _is_default(choice: Choice) -> bool:
    return choice.variant.quant == choice.model.default_quant


def _choice(model: Model, variant: Variant, machine: Machine) -> Choice:
    n_ctx = min(DEFAULT_CONTEXT, model.context)
    total = estimate(facts_from_catalogue(model, variant), n_ctx).total
    rate = machine.memory_bytes_per_s / variant.size
    return Choice(model, variant, n_ctx, total, rate, verdict(total, machine.available_bytes))


def _strength(choice: Choice, purpose: Purpose) -> float:
    quant = choice.variant.quant.removeprefix("ud-").lstrip("i")
    return _strength_of(choice.model, purpose) * _QUANT_LOSS.get(quant[:2], 1.0)


def _strength_of(model: Model, purpose: Purpose) -> float:
    """Return how much to expect of a model, in billions of Qwen2.5 parameters; 0: it cannot do it."""
    general = model.parameters_b * _GENERATION.get(model.family.partition("-")[0], 1.0)
    if purpose == "math":
        if "math" in model.capabilities:
            return general * _SPECIALIST
        return general if "chat" in model.capabilities and model.thinking != "none" else 0.0
    if purpose not in model.capabilities:
        return 0.0
    if purpose == "code":
        return general * _SPECIALIST if "coder" in model.ref else general
    # Sight costs a model of its size some of its words.
    return general * 0.9 if purpose == "chat" and "-vl-" in model.ref else general

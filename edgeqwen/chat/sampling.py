"""Decides how a turn is sampled: the model card's values for its mode, then what was asked for. Pure."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from edgeqwen.config import SamplerConfig
from edgeqwen.engine.protocol import SamplerParams
from edgeqwen.errors import InvalidInput
from edgeqwen.models.catalogue import Model


def check_setting(key: str, value: object) -> None:
    """Raise InvalidInput for a sampler setting that no request could carry, such as a temperature of -5."""
    table, _, name = key.partition(".")
    if table == "sampler" and name in {field.name for field in dataclasses.fields(SamplerConfig)}:
        try:
            SamplerParams(**{name: value})  # type: ignore[arg-type]
        except TypeError as error:
            raise InvalidInput(f"{key} is a number, not {value}") from error


class TurnPlan(NamedTuple):
    """What goes with every request of a session until the mode changes."""

    sampler: SamplerParams
    think: bool | None
    """Handed to the template; None where the model knows no such switch."""
    notice: str | None
    """What could not be followed, in one sentence."""


def plan_turns(model: Model | None, think: bool | None, given: dict[str, Any]) -> TurnPlan:
    """Return sampler and thinking for a model, with `given` sampler fields over the model card's.

    `think` None follows the model card. A model that is not in the catalogue gets the protocol's defaults.
    """
    if model is None:
        return TurnPlan(SamplerParams(**given), think, None)
    notice = None
    thinks = model.thinks_unless_told
    if model.thinking == "toggle":
        thinks = thinks if think is None else think
    elif think is not None and think != thinks:
        notice = f"{model.ref} cannot think" if think else f"{model.ref} always thinks"
    card = {
        key: value
        for key, value in dataclasses.asdict(model.sampling_for(thinks)).items()
        if value is not None
    }
    sampler = SamplerParams(**{**card, **given})
    return TurnPlan(sampler, thinks if model.thinking == "toggle" else None, notice)

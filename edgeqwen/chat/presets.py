"""System prompts with a name, blanks to fill in and sampler settings: shipped ones, and the user's own.

Owns the form of presets.toml; knows no screen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edgeqwen import tomlfile
from edgeqwen.errors import InvalidConfig

_SHIPPED = Path(__file__).with_name("presets.toml")


@dataclass(frozen=True)
class Preset:
    """One way to begin a chat."""

    title: str
    system: str = ""
    """The system prompt; `{name}` stands for a blank."""
    blanks: dict[str, str] = field(default_factory=dict)
    """What to fill in, with what is meant where nobody says."""
    think: bool | None = None
    """None follows the model card."""
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None

    def fill(self, values: dict[str, str]) -> str:
        """Return the system prompt with its blanks filled in; other braces stay as they are."""
        text = self.system
        for name, meant in self.blanks.items():
            text = text.replace("{" + name + "}", values.get(name, "").strip() or meant)
        return text.strip()

    @property
    def sampler(self) -> dict[str, float | int]:
        """Fields of SamplerParams that the preset sets."""
        fields = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens}
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True)
class _File:
    presets: dict[str, Preset] = field(default_factory=dict)


def load_presets(user: Path) -> dict[str, Preset]:
    """Return all presets by their key, the user's own replacing shipped ones. Raises InvalidConfig."""
    shipped = tomlfile.decode(tomlfile.read(_SHIPPED), _File, _SHIPPED).presets
    own = tomlfile.decode(tomlfile.read(user), _File, user).presets
    for key, preset in own.items():
        for name in preset.blanks:
            if "{" + name + "}" not in preset.system:
                message = f"{user}: presets.{key}.blanks: the system prompt has no {{{name}}}"
                raise InvalidConfig(message, file=str(user), key=f"presets.{key}.blanks.{name}")
    return {**shipped, **own}

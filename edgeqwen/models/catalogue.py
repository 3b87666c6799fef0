"""What can be had: the models of models.toml, typed, and how to find one.

Knows nothing of what is installed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgeqwen import tomlfile
from edgeqwen.errors import InvalidConfig, UnknownModel
from edgeqwen.models.ref import ModelRef, normal_name

Evidence = Literal["local", "gitblob", "multi", "single", "own"]
Thinking = Literal["none", "toggle", "always"]


@dataclass(frozen=True)
class Licence:
    """A licence of weights."""

    name: str
    commercial_use: bool
    url: str


@dataclass(frozen=True)
class Shape:
    """The numbers of an architecture that memory estimates need; the header of a real file wins."""

    n_layers: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    key_length: int
    value_length: int
    n_vocab: int | None = None
    full_attention_interval: int = 1
    """Each so-manieth layer has attention and with it a KV cache; 1: all have."""
    recurrent_state_bytes: int = 0
    """State of the other layers, per sequence, whatever its length."""


@dataclass(frozen=True)
class Sampling:
    """The model card's sampler settings for one mode; None where the card says nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None


@dataclass(frozen=True)
class CatalogueFile:
    """One file as its publisher has it."""

    name: str
    size: int
    """Bytes."""
    sha256: str
    """64 hex digits, lower case."""


@dataclass(frozen=True)
class Variant:
    """One downloadable form of a model, as one file or as shards in their order."""

    quant: str
    """Lower case."""
    files: tuple[CatalogueFile, ...]
    evidence: Evidence = "own"
    """How far the hashes can be trusted; the head of models.toml explains each level."""
    repo: str | None = None
    """Hub repository, where it is not the model's own."""
    revision: str | None = None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Model:
    """One set of trained weights as a user knows it."""

    name: str
    """As on the model card."""
    family: str
    parameters_b: float
    """Nominal parameters in billions."""
    licence: str
    """A key of the catalogue's licences."""
    architecture: str
    """general.architecture of its GGUF files."""
    context: int
    """Native context in tokens."""
    capabilities: tuple[str, ...]
    thinking: Thinking
    repo: str
    """Hub repository; empty for what comes with edgeqwen."""
    revision: str
    default_quant: str
    shape: Shape
    variants: tuple[Variant, ...]
    context_yarn: int | None = None
    """Context with YaRN scaling, which costs quality on short texts; None: not documented."""
    thinking_by_default: bool = True
    """For models that can switch it: what the model card starts with."""
    sampling: dict[str, Sampling] = field(default_factory=dict)
    """By mode: `chat` (no thinking), `thinking`, and special ones such as `thinking-coding`."""
    projectors: tuple[Variant, ...] = ()
    """Vision towers (mmproj files), which are no models of their own."""
    ref: str = ""
    """Set by the catalogue: the key of the model's table."""

    @property
    def can_chat(self) -> bool:
        """Whether it answers questions; an embedding model does not."""
        return "chat" in self.capabilities or "demo" in self.capabilities

    def variant(self, quant: str) -> Variant | None:
        """Return the first variant of this quant, which is the one to offer."""
        return next((v for v in self.variants if v.quant == quant.lower()), None)

    def sampling_for(self, thinking: bool) -> Sampling:
        """Return the card's settings for a mode; a mode the card leaves out has none."""
        return self.sampling.get("thinking" if thinking else "chat", Sampling())

    @property
    def thinks_unless_told(self) -> bool:
        """Whether it thinks when nothing is said of it."""
        return self.thinking == "always" or (self.thinking == "toggle" and self.thinking_by_default)


@dataclass(frozen=True)
class Catalogue:
    """All models, licences and known templates."""

    version: int
    models: dict[str, Model] = field(default_factory=dict)
    licences: dict[str, Licence] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)
    """Name of each known chat template by the sha256 of its text."""

    def find(self, ref: ModelRef) -> Model:
        """Return the model that a name means. Raises UnknownModel with the nearest names."""
        name = normal_name(ref.model or "")
        # `qwen3:4b` is how another program spells qwen3-4b.
        spellings = [name, f"{name}-{ref.quant}"] if ref.quant else [name]
        for spelling in spellings:
            if spelling in self.models:
                return self.models[spelling]
        near = self.nearest(spellings[-1])
        advice = f"did you mean {' or '.join(near)}?" if near else "no known model has a similar name"
        raise UnknownModel(f"unknown model: {ref}; {advice}", ref=str(ref), suggestions=near)

    def nearest(self, name: str) -> tuple[str, ...]:
        """Return up to three refs that look like `name`, best first."""
        prefixed = [ref for ref in self.models if ref.startswith(name)][:3] if len(name) > 2 else []
        close = difflib.get_close_matches(name, list(self.models), n=3, cutoff=0.5)
        return tuple(dict.fromkeys(prefixed + close))[:3]

    def files(self) -> Iterator[tuple[Model, Variant, CatalogueFile]]:
        """Yield every model file with its variant and model; projectors are not among them."""
        for model in self.models.values():
            for variant in model.variants:
                for file in variant.files:
                    yield model, variant, file

    def recognise(self, files: Iterable[tuple[int, str]]) -> tuple[Model, Variant] | None:
        """Return the model and variant whose files these very bytes are, all of them: sizes and sha256."""
        given = set(files)
        return next(
            (
                (model, variant)
                for model in self.models.values()
                for variant in model.variants
                if {(file.size, file.sha256) for file in variant.files} == given
            ),
            None,
        )


def load_catalogue(shipped: Path, user: Path) -> Catalogue:
    """Read the shipped models.toml with the user's own merged over it. Raises InvalidConfig."""
    tables = tomlfile.read(shipped)
    if not tables:
        raise InvalidConfig(f"{shipped} is missing or empty; reinstall edgeqwen", file=str(shipped))
    own = tomlfile.read(user)
    for ref in own.get("models", {}) if isinstance(own.get("models"), dict) else ():
        if ref != normal_name(ref):
            key = f'models."{ref}"'
            message = f'{user}: {key}: refs are lower case without -instruct: write "{normal_name(ref)}"'
            raise InvalidConfig(message, file=str(user), key=key, nearest=normal_name(ref))
    _merge(tables, own)
    if isinstance(models := tables.get("models"), dict):
        for ref, table in models.items():
            if isinstance(table, dict):
                table["ref"] = ref
    # A mistake is far likelier in the user's file than in the shipped one, which the checks have read.
    catalogue = tomlfile.decode(tables, Catalogue, user if own else shipped)
    _check_links(catalogue, user if own else shipped)
    return catalogue


def _merge(base: dict[str, Any], over: dict[str, Any]) -> None:
    """Lay `over` on `base`, table by table; lists and plain values replace."""
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _check_links(catalogue: Catalogue, file: Path) -> None:
    for ref, model in catalogue.models.items():
        key = f'models."{ref}"'
        if model.licence not in catalogue.licences:
            near = tomlfile.nearest(model.licence, list(catalogue.licences))
            message = f"{file}: {key}.licence: unknown licence {model.licence}"
            raise InvalidConfig(message, file=str(file), key=f"{key}.licence", nearest=near)
        if model.variant(model.default_quant) is None:
            message = f"{file}: {key}.default_quant: no variant has the quant {model.default_quant}"
            raise InvalidConfig(message, file=str(file), key=f"{key}.default_quant")

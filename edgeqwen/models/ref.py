"""The grammar of what a person types to name a model. Pure text; knows no catalogue and no store.

    ref   = path | hub | name
    path  = anything that ends in .gguf, or .script.json for a scripted engine
    hub   = "hf:" owner "/" repo [":" quant]
    name  = model [":" quant]

Case never matters outside a path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgeqwen.errors import InvalidInput
from edgeqwen.paths import expand

SHARD_IN_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
QUANT_IN_NAME = re.compile(r"[-_.](?P<quant>(ud-)?(i?q\d[a-z0-9_]*|bf16|fp?16|fp?32|mxfp4))$", re.IGNORECASE)
"""Found at the end of a file's name without its extension and shard number."""

_LONGEST_NAME = 64
_NAME = re.compile(rf"[a-z0-9][a-z0-9._-]{{0,{_LONGEST_NAME - 1}}}")
_DEVICE_NAMES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
)
_RESERVED = frozenset({"partial", "trash"})
_LONGEST = 4096  # a path may be that long
_NOISE = re.compile(r"-?(instruct|gguf)(?=-|$)")


@dataclass(frozen=True)
class ModelRef:
    """A parsed ref: exactly one of `path`, `hub` and `model` is set."""

    model: str | None = None
    quant: str | None = None
    """Lower case; None leaves the choice to whoever resolves the ref."""
    hub: str | None = None
    """owner/repo on the Hugging Face hub, in its own case."""
    path: Path | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return str(self.path)
        name = f"hf:{self.hub}" if self.hub else str(self.model)
        return f"{name}:{self.quant}" if self.quant else name


def parse_ref(text: str) -> ModelRef:
    """Parse what was typed. Raises InvalidInput when it is no ref at all."""
    text = text.strip()
    if not text:
        raise InvalidInput("the model name is empty")
    if len(text) > _LONGEST or not text.isprintable():
        raise InvalidInput(f"a model name has at most {_LONGEST} printable characters")
    if text.lower().endswith((".gguf", ".script.json")) and not text.lower().startswith("hf:"):
        return ModelRef(path=expand(text))
    if text.lower().startswith("hf:"):
        repo, _, quant = text[3:].partition(":")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII):
            raise InvalidInput(f"not a hub ref: {text}; write hf:OWNER/REPO or hf:OWNER/REPO:QUANT")
        return ModelRef(hub=repo, quant=quant.lower() or None)
    model, _, quant = text.lower().partition(":")
    return ModelRef(model=normal_name(model.rpartition("/")[2]), quant=quant or None)


def normal_name(text: str) -> str:
    """Return the spelling that names are compared in: `Qwen2.5-0.5B-Instruct-GGUF` is `qwen2.5-0.5b`."""
    return _NOISE.sub("", text.lower().replace("_", "-")).strip("-")


def folder_name(text: str) -> str:
    """Return the nearest name that may be a folder and that a ref reaches: it is its own normal name."""
    name, shorter = "", re.sub(r"[^a-z0-9._-]+", "-", text.lower())
    while name != shorter:
        name, shorter = shorter, normal_name(shorter).strip("-._")[:_LONGEST_NAME].strip("-._")
    return name


def is_safe_name(text: str) -> bool:
    """Say whether `text` may be a folder name of the store on every system, Windows and exFAT included."""
    stem = text.split(".")[0]
    return (
        bool(_NAME.fullmatch(text))
        and not text.endswith(".")
        and stem not in _DEVICE_NAMES
        and text not in _RESERVED
    )


def is_safe_file_name(text: str) -> bool:
    """Say whether `text` may be a file name of the store: one plain component that ends in .gguf."""
    return (
        len(text) <= 200
        and text.lower().endswith(".gguf")
        and bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text))
        and text.lower().split(".")[0] not in _DEVICE_NAMES
    )

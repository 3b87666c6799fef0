"""The user's settings: one TOML file, typed, with the meaning of every key beside it.

Owns config.toml; knows nothing of who uses a setting.
"""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgeqwen import tomlfile
from edgeqwen.errors import InvalidConfig


@dataclass(frozen=True)
class StoreConfig:
    """Where models are looked for."""

    roots: tuple[str, ...] = ()
    """More folders to search for models, after the user's own store; they are never written to."""
    path: str | None = None
    """The user's own store; unset: `models` in the data folder. Setting it moves the models."""
    moving_from: str | None = None
    """Where the store was while a move is unfinished; it is searched as well. Set by the move itself."""


@dataclass(frozen=True)
class RunConfig:
    """What `run` uses when the command line does not say."""

    ctx: int | None = None
    """Context in tokens; unset: 8192, or less where the model or the memory has less."""
    threads: int | None = None
    """CPU threads; unset: the physical cores that this process may use."""
    full: Literal["stop", "drop-oldest", "drop-thinking", "keep-ends"] = "stop"
    """What to do when a conversation does not fit its context: refuse, or leave something out and say so."""
    think: bool | None = None
    """Whether models that can switch thinking do it; unset: as the model card says."""


@dataclass(frozen=True)
class SamplerConfig:
    """How tokens are chosen; whatever is unset is the model card's."""

    temperature: float | None = None
    """0 always takes the likeliest token."""
    top_p: float | None = None
    """Only the likeliest tokens that together reach this probability; 1 takes all."""
    top_k: int | None = None
    """Only so many of the likeliest tokens; 0 is 1,024."""
    min_p: float | None = None
    """Only tokens at least this likely, as a share of the likeliest's probability; 0 takes all."""
    repeat_penalty: float | None = None
    """Makes tokens less likely that were said a moment ago; 1 leaves them alone."""
    max_tokens: int | None = None
    """After which an answer ends; unset: at the end of the context."""

    def given(self) -> dict[str, Any]:
        """Return the fields that are set, by their names in SamplerParams."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class TuiConfig:
    """The full-screen chat."""

    theme: Literal["dark", "light", "ansi", "contrast"] = "dark"
    """ansi takes the terminal's own 16 colours; contrast is for tired eyes and bad screens."""
    language: Literal["en", "zh_CN", "hu"] | None = None
    """Unset: the language of the locale, where we speak it."""
    enter_sends: bool = True
    """False: Enter breaks the line and Ctrl+J sends."""
    low_bandwidth: bool = False
    """Draw once a second, in the terminal's colours, without plots and mouse."""
    mouse: bool = True
    """False leaves clicks and selections to the terminal."""
    kitty_keys: bool | None = None
    """The keyboard protocol that tells Shift+Enter from Enter; unset: where input methods survive it."""
    keys: dict[str, str] = field(default_factory=dict)
    """Other keys for commands, such as `new = "ctrl+k"`; /help names the commands."""


@dataclass(frozen=True)
class KvConfig:
    """The KV cache on disk, by which a conversation goes on without being read again."""

    max_mib: int = 2048
    """MiB of all files together, the longest unused go first; a larger one is not kept, 0 keeps none."""


@dataclass(frozen=True)
class PullConfig:
    """Where `pull` gets its bytes."""

    sources: tuple[str, ...] = ("https://huggingface.co", "https://modelscope.cn")
    """Web addresses of hubs and mirrors, and folders, in the order they are tried. HF_ENDPOINT goes first."""


@dataclass(frozen=True)
class Config:
    """Everything in config.toml."""

    store: StoreConfig = field(default_factory=StoreConfig)
    run: RunConfig = field(default_factory=RunConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    tui: TuiConfig = field(default_factory=TuiConfig)
    kv: KvConfig = field(default_factory=KvConfig)
    pull: PullConfig = field(default_factory=PullConfig)


def load(path: Path) -> Config:
    """Read the settings; a missing file is all defaults. Raises InvalidConfig."""
    return tomlfile.decode(tomlfile.read(path), Config, path)


def set_value(path: Path, key: str, text: str | None) -> None:
    """Write one dotted key, keeping the file's comments; None removes it. Raises InvalidConfig.

    The file is checked as a whole before it replaces the old one, so it is never left unreadable.
    """
    import tomlkit  # 30 ms to import, and only this function writes TOML

    load(path)
    document = tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else tomlkit.document()
    *tables, name = key.split(".")
    table: Any = document
    for part in tables:
        table = table.setdefault(part, tomlkit.table())
    if text is None:
        table.pop(name, None)
    else:
        table[name] = parse_value(text)
    tomlfile.decode(document.unwrap(), Config, path)
    try:
        _replace(path, tomlkit.dumps(document))
    except OSError as error:
        raise InvalidConfig(f"cannot write {path}: {error.strerror}", file=str(path), key=key) from error


def parse_value(text: str) -> Any:  # noqa: ANN401 - a TOML value of any type
    """Read `text` as a TOML value; what is none is taken as a plain string."""
    import tomllib

    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _replace(path: Path, text: str) -> None:
    path = path.resolve()  # a link, as into a folder of settings that is kept elsewhere, stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        if path.exists():
            Path(name).chmod(stat.S_IMODE(path.stat().st_mode))
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

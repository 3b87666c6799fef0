"""Every failure a person can meet, as one shallow tree with a plain sentence on each.

    EdgeQwenError
    ├── InvalidInput
    │   ├── InvalidConfig
    │   ├── InvalidGGUF
    │   └── ContextOverflow
    ├── NotFound
    │   ├── UnknownModel
    │   └── NotInstalled
    ├── StoreError
    ├── DownloadError
    └── EngineError
        ├── LoadFailed
        ├── EngineBusy
        └── WorkerLost

Knows no exit code, no HTTP status and no hint: those belong to the front ends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(eq=False)
class EdgeQwenError(Exception):
    """One sentence for a person, a stable `code` for programs, and typed data on the object."""

    code: ClassVar[str] = "edgeqwen_error"
    message: str

    def __str__(self) -> str:
        return self.message

    def data(self) -> dict[str, Any]:
        """Return the typed attributes as plain values, without the sentence."""
        fields = dataclasses.asdict(self)
        del fields["message"]
        return fields


@dataclass(eq=False)
class InvalidInput(EdgeQwenError):
    """What was given cannot be used as it is."""

    code: ClassVar[str] = "invalid_input"


@dataclass(eq=False)
class InvalidConfig(InvalidInput):
    """A TOML file of settings or models has a mistake in it."""

    code: ClassVar[str] = "invalid_config"
    file: str = ""
    key: str = ""
    """Dotted path of the key, with [i] for list positions."""
    nearest: str | None = None
    """The valid key that looks most like the given one."""


@dataclass(eq=False)
class InvalidGGUF(InvalidInput):
    """The file is not a GGUF model that edgeqwen can run."""

    code: ClassVar[str] = "invalid_gguf"
    path: str = ""
    reason: str = ""


@dataclass(eq=False)
class ContextOverflow(InvalidInput):
    """The prompt has more tokens than the context can hold."""

    code: ClassVar[str] = "context_length_exceeded"
    needed: int = 0
    """Tokens of the prompt, plus one for an answer."""
    available: int = 0
    """Tokens of the context."""


@dataclass(eq=False)
class NotFound(EdgeQwenError):
    """A named thing is not there."""

    code: ClassVar[str] = "not_found"


@dataclass(eq=False)
class UnknownModel(NotFound):
    """No model goes by this ref."""

    code: ClassVar[str] = "model_not_found"
    ref: str = ""
    suggestions: tuple[str, ...] = ()


@dataclass(eq=False)
class NotInstalled(NotFound):
    """The model is known but its file is not in the store."""

    code: ClassVar[str] = "model_not_installed"
    ref: str = ""
    download_bytes: int | None = None


@dataclass(eq=False)
class StoreError(EdgeQwenError):
    """The store or a file in it is damaged, full or not writable."""

    code: ClassVar[str] = "store_error"
    path: str = ""
    cause: str = ""
    """One of: disk_full, no_permission, bad_manifest, wrong_digest, missing_file, in_use, name_taken,
    untrusted, io."""


@dataclass(eq=False)
class DownloadError(EdgeQwenError):
    """Bytes could not be fetched."""

    code: ClassVar[str] = "download_failed"
    url: str = ""
    retryable: bool = False


@dataclass(eq=False)
class EngineError(EdgeQwenError):
    """The engine could not do what was asked."""

    code: ClassVar[str] = "engine_error"


@dataclass(eq=False)
class LoadFailed(EngineError):
    """The model could not be loaded."""

    code: ClassVar[str] = "load_failed"
    path: str = ""
    reason: str = ""
    """Empty where llama.cpp itself refused; with any other the message says what to do."""


@dataclass(eq=False)
class EngineBusy(EngineError):
    """Too many requests wait already."""

    code: ClassVar[str] = "engine_busy"
    queue_length: int = 0


@dataclass(eq=False)
class WorkerLost(EngineError):
    """The worker process ended while it was needed."""

    code: ClassVar[str] = "worker_lost"
    exit_status: int | None = None
    """As the system reports it; negative is the signal that killed it, None is unknown."""
    log_tail: tuple[str, ...] = ()
    """The last lines of its log."""
    log_file: str = ""


def walk(root: type[EdgeQwenError] = EdgeQwenError) -> Iterator[type[EdgeQwenError]]:
    """Yield `root` and every class below it."""
    yield root
    for child in root.__subclasses__():
        yield from walk(child)


def from_wire(code: str, message: str, data: dict[str, Any]) -> EdgeQwenError:
    """Rebuild an error that crossed the pipe; an unknown code becomes an EngineError."""
    found = next((cls for cls in walk() if cls.code == code), EngineError)
    known = {field.name for field in dataclasses.fields(found)} - {"message"}
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    return found(message, **{key: value for key, value in fields.items() if key in known})

"""Where the bytes of a known file may be: hubs, mirrors, folders, and what other programs have here.

Makes addresses and candidates; opens no connection and believes none of them: size and sha256 decide.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from edgeqwen.errors import InvalidConfig
from edgeqwen.models.remote import Address
from edgeqwen.paths import expand
from edgeqwen.text import clean_line

_HUGGING_FACE = "https://huggingface.co"
_MODELSCOPE = "https://modelscope.cn"
_TOKEN = re.compile(r"[\x21-\x7e]{1,400}")


@dataclass(frozen=True)
class Origin:
    """Where a publisher has a file."""

    repo: str
    """owner/name on a hub."""
    revision: str
    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Sources:
    """The places to look, in order."""

    hubs: tuple[str, ...]
    """Web addresses."""
    folders: tuple[Path, ...]
    token: str | None = None
    """For `token_hub` alone."""
    token_hub: str = _HUGGING_FACE
    modelscope: str = _MODELSCOPE
    """The hub that speaks ModelScope's language; the others speak Hugging Face's, or are plain folders."""

    def address(self, hub: str, path: str) -> Address:
        """Return a page of a hub, with the token where it may go."""
        return Address(f"{hub}/{path}", self.token if hub == self.token_hub else None)

    def addresses(self, origin: Origin) -> list[Address]:
        """Return where a file may be downloaded, likeliest first."""
        return [self.address(hub, path) for hub in self.hubs for path in self._paths(hub, origin)]

    def _paths(self, hub: str, origin: Origin) -> tuple[str, ...]:
        repo, name = quote(origin.repo), quote(origin.name)
        if hub == self.modelscope:
            return (f"models/{repo}/resolve/master/{name}",)
        resolved = f"{repo}/resolve/{quote(origin.revision)}/{name}"
        return (resolved,) if hub == _HUGGING_FACE else (resolved, name, origin.sha256)

    def local_files(self, origin: Origin) -> Iterator[Path]:
        """Yield files on this machine that have the right size, likeliest first."""
        for path in self._candidates(origin):
            try:
                if path.is_file() and path.stat().st_size == origin.size:
                    yield path
            except OSError:
                continue

    def _candidates(self, origin: Origin) -> Iterator[Path]:
        home = Path.home()
        for folder in self.folders:
            yield folder / origin.name
            yield folder / f"{origin.sha256}.gguf"
            yield from _quietly(folder, f"*/*/{origin.name}")
        ollama = Path(os.environ.get("OLLAMA_MODELS") or home / ".ollama/models")
        for folder in (ollama, Path("/usr/share/ollama/.ollama/models")):
            yield folder / "blobs" / f"sha256-{origin.sha256}"
        cache = Path(os.environ.get("HF_HUB_CACHE") or _hf_home() / "hub")
        yield from _quietly(cache, f"models--*/blobs/{origin.sha256}")
        for folder in (home / ".lmstudio/models", home / ".cache/lm-studio/models"):
            yield from _quietly(folder, "*/*/*.gguf")


def user_sources(configured: Sequence[str]) -> Sources:
    """Return the places of the settings, as the hubs' own variables change them. Raises InvalidConfig.

    HF_ENDPOINT goes first, MODELSCOPE_ENDPOINT replaces modelscope.cn, HF_TOKEN is for
    HF_ENDPOINT, or else for huggingface.co, and HF_HUB_OFFLINE leaves no hub at all.
    """
    endpoint, modelscope = _endpoint("HF_ENDPOINT"), _endpoint("MODELSCOPE_ENDPOINT") or _MODELSCOPE
    hubs, folders = [endpoint] if endpoint else [], []
    for source in configured:
        scheme = source.partition(":")[0].lower() if "://" in source else ""
        if scheme in ("http", "https"):
            _check_address(source, "pull.sources")
            hub = source.rstrip("/")
            hubs.append(modelscope if hub in (_MODELSCOPE, "https://www.modelscope.cn") else hub)
        elif scheme:
            message = f"pull.sources: {source} is neither a web address nor a folder"
            raise InvalidConfig(message, key="pull.sources")
        else:
            folders.append(expand(source))
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        hubs = []
    token_hub = endpoint or _HUGGING_FACE
    token = _token() if _is_private(token_hub) else None
    return Sources(tuple(dict.fromkeys(hubs)), tuple(folders), token, token_hub, modelscope)


def _endpoint(variable: str) -> str | None:
    """Return a hub's address from the environment. Raises InvalidConfig."""
    address = (os.environ.get(variable) or "").rstrip("/")
    if not address:
        return None
    _check_address(address, variable)
    return address


def _check_address(address: str, key: str) -> None:
    """Raise InvalidConfig for what is no web address."""
    try:
        parts = urlsplit(address)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and address.isprintable()
        _ = parts.port
    except ValueError:
        is_address = False
    if not is_address:
        raise InvalidConfig(f"{key}: {clean_line(address, 80)} is no web address", key=key)


def _is_private(hub: str) -> bool:
    """Say whether nobody on the way can read what is sent: a token needs that."""
    parts = urlsplit(hub)
    return parts.scheme == "https" or parts.hostname in ("127.0.0.1", "::1", "localhost")


def _token() -> str | None:
    """Return the hub token as huggingface_hub keeps it: HF_TOKEN, else its file. Raises InvalidConfig."""
    token = (os.environ.get("HF_TOKEN") or "").strip()
    if not token:
        try:
            token = (_hf_home() / "token").read_text(errors="replace").strip()
        except OSError:
            return None
    if token and not _TOKEN.fullmatch(token):
        raise InvalidConfig(
            "the hub token (HF_TOKEN, or its file) is not one line of plain letters", key="HF_TOKEN"
        )
    return token or None


def _hf_home() -> Path:
    return Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface")


def _quietly(folder: Path, pattern: str) -> Iterator[Path]:
    try:
        yield from sorted(folder.glob(pattern))
    except OSError:
        return

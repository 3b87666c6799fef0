"""Asks hubs what they have: the models of a repository, and repositories by words.

What a hub says is checked by pattern and believed this once; the sha256 it names is then held to.
Source of the answers: the Hugging Face hub's API, GET /api/models/{repo}?blobs=true and /api/models?search=,
and ModelScope's, GET /api/v1/models/{repo}/repo/files.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from edgeqwen.errors import DownloadError, EdgeQwenError, InvalidInput, NotFound
from edgeqwen.jsonfile import NOT_JSON
from edgeqwen.models.digest import is_sha256
from edgeqwen.models.facts import ARCHITECTURES
from edgeqwen.models.ref import QUANT_IN_NAME, SHARD_IN_NAME, is_safe_file_name
from edgeqwen.models.remote import Address, Refused, TryAgain, read_start
from edgeqwen.models.sources import Origin, Sources
from edgeqwen.text import clean_line

T = TypeVar("T")

Quants = dict[str, tuple[Origin, ...]]
"""The models of a repository: files by quant, shards in order."""

_MAX_ANSWER = 8 << 20
_TRIES = 3
_LONGEST_WAIT_S = 60.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
_NO_COMMIT = "0" * 40  # ModelScope names none: its addresses go by branch


@dataclass(frozen=True)
class _Lfs:
    sha256: str = ""
    size: int = 0


@dataclass(frozen=True)
class _Sibling:
    rfilename: str
    lfs: _Lfs | None = None


@dataclass(frozen=True)
class _Repository:
    sha: str
    siblings: list[_Sibling] = field(default_factory=list)


class _ScopeFile(msgspec.Struct, rename="pascal"):
    path: str = ""
    size: int = 0
    sha256: str | None = None


class _ScopeFiles(msgspec.Struct, rename="pascal"):
    files: list[_ScopeFile] = msgspec.field(default_factory=list)


class _ScopeAnswer(msgspec.Struct, rename="pascal"):
    data: _ScopeFiles | None = None


@dataclass(frozen=True)
class _Hit:
    id: str
    tags: list[str] = field(default_factory=list)
    gguf: dict[str, Any] | None = None
    downloads: int = 0


@dataclass(frozen=True)
class Found:
    """A repository that a search has brought."""

    repo: str
    downloads: int
    quants: Quants


def list_quants(repo: str, sources: Sources) -> Quants:
    """Return the GGUF models of a repository, from the first hub that knows it. Blocking.

    Raises DownloadError when no hub answers, NotFound when none has such models.
    """
    if not sources.hubs:
        raise InvalidInput("no hub is among `pull.sources`, or HF_HUB_OFFLINE is set, so no hub can be asked")
    failures: list[EdgeQwenError] = []
    for hub in sources.hubs:
        try:
            ask_hub = _scope_files if hub == sources.modelscope else list_files
            files = ask_hub(repo, hub, sources)
        except DownloadError as error:
            failures.append(error)
            continue
        if quants := _by_quant(files):
            return quants
        failures.append(NotFound(f"{repo} has no GGUF models that could be used"))
    raise failures[0]


def search(words: str, sources: Sources, limit: int) -> list[Found]:
    """Return Qwen repositories with GGUF files whose names have these words, most downloaded first. Blocking.

    The first hub is asked, and then once for each repository. Raises DownloadError.
    """
    if not sources.hubs:
        raise InvalidInput("no hub is among `pull.sources`, or HF_HUB_OFFLINE is set, so no hub can be asked")
    asked = {"search": words, "filter": "gguf", "sort": "downloads", "direction": "-1", "limit": "50"}
    expand = [("expand[]", key) for key in ("gguf", "tags", "downloads")]
    address = sources.address(sources.hubs[0], f"api/models?{urlencode([*asked.items(), *expand])}")
    found: list[Found] = []
    for hit in _decode(address, list[_Hit]):
        if len(found) == limit:
            break
        if not _REPO.fullmatch(hit.id) or not _is_qwen(hit):
            continue
        try:
            quants = _by_quant(list_files(hit.id, sources.hubs[0], sources))
        except DownloadError as error:
            if error.retryable:
                raise
            continue  # gated, or gone meanwhile
        if quants:
            found.append(Found(hit.id, hit.downloads, quants))
    return found


def choose_quant(repo: str, quants: Quants, wanted: str | None) -> str:
    """Return the quant that is asked for, or the usual one. Raises InvalidInput with the ones there are."""
    quant = wanted or next((usual for usual in ("q4_k_m", *quants) if usual in quants), "")
    if quant not in quants or (wanted is None and quant != "q4_k_m" and len(quants) > 1):
        raise InvalidInput(f"{repo} comes as {', '.join(sorted(quants))}; name one: hf:{repo}:QUANT")
    return quant


def ask(
    address: Address, n_bytes: int, tries: int = _TRIES, timeout_s: float = 30.0
) -> tuple[bytes, int | None]:
    """Return the first bytes of an answer and the size of the whole. Blocking. Raises DownloadError."""
    reason, is_passing, pause = "", True, 0.0
    for number in range(tries):
        if number:
            time.sleep(pause)
        try:
            return read_start(address, n_bytes, timeout_s)
        except TryAgain as error:
            reason = str(error)
            pause = min(2.0**number if error.wait_s is None else error.wait_s, _LONGEST_WAIT_S)
        except Refused as error:
            reason, is_passing = str(error), False
            break
    raise DownloadError(f"{address.host}: {reason}", url=address.url, retryable=is_passing)


def list_files(repo: str, hub: str, sources: Sources) -> list[Origin]:
    """Return every large file of a repository, as a hub of Hugging Face's kind has it now.

    Raises DownloadError.
    """
    address = sources.address(hub, f"api/models/{quote(repo)}?blobs=true")
    answer = _decode(address, _Repository)
    if not _COMMIT.fullmatch(answer.sha):
        raise DownloadError(f"{address.host} names no commit for {clean_line(repo)}", url=address.url)
    files = ((sibling.rfilename, sibling.lfs) for sibling in answer.siblings)
    return [Origin(repo, answer.sha, name, lfs.sha256, lfs.size) for name, lfs in files if lfs]


def _scope_files(repo: str, hub: str, sources: Sources) -> list[Origin]:
    query = "Revision=master&Recursive=True"
    address = sources.address(hub, f"api/v1/models/{quote(repo)}/repo/files?{query}")
    data = _decode(address, _ScopeAnswer).data
    files = data.files if data else []
    return [Origin(repo, _NO_COMMIT, file.path, (file.sha256 or "").lower(), file.size) for file in files]


def _decode(address: Address, kind: type[T]) -> T:
    body, _ = ask(address, _MAX_ANSWER)
    try:
        return msgspec.json.decode(body, type=kind)
    except NOT_JSON as error:
        message = f"{address.host} answers something that is no list of files"
        raise DownloadError(message, url=address.url) from error


def _is_qwen(hit: _Hit) -> bool:
    """Say whether a repository may hold models we can run, by its architecture, else by its words."""
    architecture = (hit.gguf or {}).get("architecture")
    if isinstance(architecture, str):
        return architecture in ARCHITECTURES
    return "qwen" in hit.id.lower() or any("qwen" in tag.lower() for tag in hit.tags)


def _by_quant(files: list[Origin]) -> Quants:
    """Sort a listing into models; names, sizes and hashes that are out of form are left out."""
    quants: dict[str, list[Origin]] = {}
    for file in files:
        if is_safe_file_name(file.name) and is_sha256(file.sha256) and file.size > 0:
            quant = _quant(file.name)
            if quant:
                quants.setdefault(quant, []).append(file)
    sorted_ = {quant: tuple(sorted(mine, key=lambda f: f.name)) for quant, mine in quants.items()}
    return {quant: mine for quant, mine in sorted_.items() if _is_whole(mine)}


def _quant(name: str) -> str | None:
    """Return the quant a file's name tells; None for what is no chat model."""
    stem = name[: -len(".gguf")]
    shard = SHARD_IN_NAME.fullmatch(name)
    found = QUANT_IN_NAME.search(shard["stem"] if shard else stem)
    return found["quant"].lower() if found and "mmproj" not in name.lower() else None


def _is_whole(files: tuple[Origin, ...]) -> bool:
    """Say whether files are one model: a single one, or all shards of one."""
    matches = [SHARD_IN_NAME.fullmatch(file.name) for file in files]
    if len(files) == 1 and matches[0] is None:
        return True
    places = [(match["stem"], int(match["number"]), int(match["count"])) for match in matches if match]
    stem = places[0][0] if places else ""
    return places == [(stem, number, len(files)) for number in range(1, len(files) + 1)]

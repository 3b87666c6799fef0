"""Asks a hub what a repository holds, and looks at the head of a file before gigabytes of it come.

What a hub says is checked by pattern and believed this once; the sha256 it names is then held to.
Source of the answers: the Hugging Face hub's API, GET /api/models/{repo}?blobs=true.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from urllib.parse import quote

import msgspec

from edgeqwen.errors import DownloadError, InvalidGGUF, InvalidInput, NotFound
from edgeqwen.models.facts import ModelFacts, facts_of
from edgeqwen.models.gguf import read_header
from edgeqwen.models.ref import QUANT_IN_NAME, SHARD_IN_NAME, is_safe_file_name
from edgeqwen.models.remote import Address, Refused, TryAgain, read_start
from edgeqwen.models.sources import Origin, Sources

_MAX_ANSWER = 8 << 20
_HEAD = 8 << 20  # holds the header of a vocabulary of 152,000 tokens
_LONGEST_HEAD = 64 << 20
_TRIES = 3
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


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


def list_quants(repo: str, sources: Sources) -> dict[str, tuple[Origin, ...]]:
    """Return the GGUF models of a repository by quant, shards in order. Blocking.

    Raises DownloadError when the hub does not answer, NotFound when it has no such models.
    """
    if not sources.hubs:
        raise InvalidInput("no hub is among `pull.sources`, so hf: refs cannot be asked for")
    hub = sources.hubs[0]
    address = Address(f"{hub}/api/models/{quote(repo)}?blobs=true", sources.token)
    body, _ = _ask(address, _MAX_ANSWER)
    try:
        answer = msgspec.json.decode(body, type=_Repository)
    except msgspec.DecodeError as error:
        raise DownloadError(f"{address.host} answers something that is no list of files") from error
    if not _COMMIT.fullmatch(answer.sha):
        raise DownloadError(f"{address.host} names no commit for {repo}")
    quants: dict[str, list[Origin]] = {}
    for sibling in answer.siblings:
        lfs, name = sibling.lfs, sibling.rfilename
        if lfs and is_safe_file_name(name) and _SHA256.fullmatch(lfs.sha256) and lfs.size > 0:
            quant = _quant(name)
            if quant:
                quants.setdefault(quant, []).append(Origin(repo, answer.sha, name, lfs.sha256, lfs.size))
    whole = {quant: tuple(sorted(files, key=lambda f: f.name)) for quant, files in quants.items()}
    whole = {quant: files for quant, files in whole.items() if _is_whole(files)}
    if not whole:
        raise NotFound(f"{repo} has no GGUF models that could be used")
    return whole


def read_remote_facts(origins: tuple[Origin, ...], sources: Sources) -> ModelFacts:
    """Look at the head of a model's first file on the hub. Blocking; proves nothing about the rest.

    Raises InvalidGGUF when it is no model for edgeqwen, DownloadError when it cannot be read.
    """
    first = origins[0]
    address = sources.addresses(first)[0]
    n_bytes = _HEAD
    while True:
        head, size = _ask(address, min(n_bytes, first.size))
        if size != first.size:
            raise DownloadError(f"{first.name} has another size than {address.host} says", url=address.url)
        try:
            return facts_of(read_header(io.BytesIO(head), first.size, first.name), first.name)
        except InvalidGGUF as error:
            if "ends inside its header" not in error.reason or n_bytes >= min(_LONGEST_HEAD, first.size):
                raise
            n_bytes *= 2


def choose_quant(repo: str, quants: dict[str, tuple[Origin, ...]], wanted: str | None) -> str:
    """Return the quant that is asked for, or the usual one. Raises InvalidInput with the ones there are."""
    quant = wanted or next((usual for usual in ("q4_k_m", *quants) if usual in quants), "")
    if quant not in quants or (wanted is None and quant != "q4_k_m" and len(quants) > 1):
        raise InvalidInput(f"{repo} comes as {', '.join(sorted(quants))}; name one: hf:{repo}:QUANT")
    return quant


def _ask(address: Address, n_bytes: int) -> tuple[bytes, int | None]:
    """Return the first bytes of an answer and the size of the whole. Raises DownloadError."""
    reason = ""
    for _ in range(_TRIES):
        try:
            return read_start(address, n_bytes)
        except TryAgain as error:
            reason = str(error)
        except Refused as error:
            reason = str(error)
            break
    raise DownloadError(f"{address.host}: {reason}", url=address.url, retryable=True)


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

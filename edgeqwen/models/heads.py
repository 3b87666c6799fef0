"""Looks at the head of a remote model before gigabytes of it come, and remembers what it said.

A head proves nothing about its file: facts from here are for display and planning, never for identity.
"""

from __future__ import annotations

import io
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from edgeqwen.errors import DownloadError, InvalidGGUF
from edgeqwen.jsonfile import NOT_JSON
from edgeqwen.models.facts import ModelFacts, facts_of
from edgeqwen.models.gguf import read_header
from edgeqwen.models.hub import ask
from edgeqwen.models.sources import Origin, Sources

_HEAD = 8 << 20  # holds the header of a vocabulary of 152,000 tokens
_LONGEST_HEAD = 64 << 20
_MAX_FACTS = 1 << 16
_TIMEOUT_S = 10.0


class Heads:
    """The heads seen so far, by sha256 of their files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, origins: tuple[Origin, ...], sources: Sources) -> ModelFacts:
        """Return what the head of a model says, shards as a whole. Blocking; a known one asks nobody.

        Raises InvalidGGUF when it is no model for edgeqwen, DownloadError when no source lets it be read.
        """
        facts = self.known(origins)
        if facts is None:
            facts = _whole(_read(origins[0], sources), origins)
            self._keep(origins[0].sha256, facts)
        return facts

    def known(self, origins: tuple[Origin, ...]) -> ModelFacts | None:
        """Return what a head said before, if it was read before."""
        file = self._file(origins[0].sha256)
        try:
            if file.stat().st_size <= _MAX_FACTS:
                return msgspec.json.decode(file.read_bytes(), type=ModelFacts)
        except (OSError, *NOT_JSON):
            pass
        return None

    def _file(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.json"

    def _keep(self, sha256: str, facts: ModelFacts) -> None:
        with suppress(OSError):  # it costs a few megabytes next time
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = self._folder / f"{sha256}.{os.getpid()}"
            temporary.write_bytes(msgspec.json.encode(facts))
            temporary.replace(self._file(sha256))


def _read(first: Origin, sources: Sources) -> ModelFacts:
    failures = []
    for address in sources.addresses(first):
        n_bytes = _HEAD
        while True:
            try:
                head, size = ask(address, min(n_bytes, first.size), tries=1, timeout_s=_TIMEOUT_S)
            except DownloadError as error:
                failures.append(error)
                break
            if size != first.size:
                message = f"{first.name} has another size than {address.host} says"
                failures.append(DownloadError(message, url=address.url))
                break
            try:
                return facts_of(read_header(io.BytesIO(head), first.size, first.name), first.name)
            except InvalidGGUF as error:
                if "ends inside its header" not in error.reason or n_bytes >= min(_LONGEST_HEAD, first.size):
                    raise
                n_bytes *= 2
    raise failures[0] if failures else DownloadError(f"no source is known for {first.name}")


def _whole(facts: ModelFacts, origins: tuple[Origin, ...]) -> ModelFacts:
    """Return a first shard's facts as those of the model: what it has of tensors, the others have too."""
    if len(origins) == 1:
        return facts
    total = sum(origin.size for origin in origins)
    share = facts.repacked_bytes / facts.weights_bytes if facts.weights_bytes else 0
    return replace(facts, weights_bytes=total, repacked_bytes=round(total * share))

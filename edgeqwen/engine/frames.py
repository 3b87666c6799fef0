"""Frames on the pipe: how commands and events become bytes and come back, however the pipe cuts them.

A frame is a 4-byte big-endian length and that many bytes of JSON, tagged by its kind. Pure; knows no pipe.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TypeVar

import msgspec

from edgeqwen.engine.protocol import Command, Event
from edgeqwen.errors import EngineError, InvalidInput

MAX_FRAME = 64 << 20
_LENGTH = struct.Struct(">I")
F = TypeVar("F")

_encoder = msgspec.json.Encoder()
_commands: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)
_events: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def encode(frame: Command | Event) -> bytes:
    """Return the frame as it goes on the pipe. Raises EngineError when it is too long, InvalidInput."""
    try:
        body = _encoder.encode(frame)
    except UnicodeEncodeError as error:
        raise InvalidInput("the text has characters that cannot be encoded as UTF-8") from error
    if len(body) > MAX_FRAME:
        raise EngineError(f"a frame of {len(body):,} bytes is too long for the pipe; at most {MAX_FRAME:,}")
    return _LENGTH.pack(len(body)) + body


class _Address(msgspec.Struct):
    id: int | None = None


_addresses: msgspec.json.Decoder[_Address] = msgspec.json.Decoder(_Address)


class FrameReader:
    """Cuts a stream of bytes into frame bodies, however the stream arrives."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take more bytes and yield each body that is complete. Raises EngineError on a false length."""
        self._held += data
        while len(self._held) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._held)
            if length > MAX_FRAME:
                raise EngineError(f"the pipe announced a frame of {length:,} bytes; at most {MAX_FRAME:,}")
            if len(self._held) < _LENGTH.size + length:
                return
            body = bytes(self._held[_LENGTH.size : _LENGTH.size + length])
            del self._held[: _LENGTH.size + length]
            yield body


def request_of(body: bytes) -> int | None:
    """Return the request that a frame is about, however wrong the rest of it is; None for the load."""
    try:
        return _addresses.decode(body).id
    except (msgspec.DecodeError, RecursionError):
        return None


def decode_command(body: bytes) -> Command:
    """Parse what a front end sent. Raises EngineError; InvalidInput for a frame with a value that is not."""
    return _decode(_commands, body)


def decode_event(body: bytes) -> Event:
    """Parse what the worker sent. Raises EngineError or InvalidInput."""
    return _decode(_events, body)


def _decode(decoder: msgspec.json.Decoder[F], body: bytes) -> F:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"this cannot be asked of the engine: {error}") from error
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise EngineError(f"the pipe carried something that is no frame: {error}") from error

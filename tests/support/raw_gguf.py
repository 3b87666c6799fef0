"""Spells GGUF bytes by hand, right or wrong, for the header scanner's tests.

Source of the format: ggml docs/gguf.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

U8, U32, I32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 5, 6, 7, 8, 9, 10
_FORMS = {U8: "<B", U32: "<I", I32: "<i", F32: "<f", BOOL: "<?", U64: "<Q"}


def text(value: str | bytes, length: int | None = None) -> bytes:
    """Return a string with its length, or with a false one."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data) if length is None else length) + data


def key(name: str | bytes, kind: int, value: object) -> bytes:
    """Return one key with a scalar or a string."""
    body = text(value) if isinstance(value, str | bytes) else struct.pack(_FORMS[kind], value)
    return text(name) + struct.pack("<I", kind) + body


def array(name: str, kind: int, items: bytes, count: int) -> bytes:
    """Return one key with an array whose items are spelt already."""
    return text(name) + struct.pack("<IIQ", ARRAY, kind, count) + items


def strings(name: str, items: Iterable[str]) -> bytes:
    """Return one key with an array of strings."""
    spelt = [text(item) for item in items]
    return array(name, STRING, b"".join(spelt), len(spelt))


def tensor(
    name: str | bytes, dims: tuple[int, ...], kind: int = 0, offset: int = 0, n_dims: int | None = None
) -> bytes:
    """Return one row of the tensor table."""
    count = len(dims) if n_dims is None else n_dims
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, kind, offset)


def gguf(
    keys: Iterable[bytes] = (),
    tensors: Iterable[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """Return a whole file; the counts may be false."""
    keys, tensors = list(keys), list(tensors)
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(keys) if n_keys is None else n_keys,
    )
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data

"""Reads the header of a GGUF file in bounded time and memory, trusting nothing it says.

Owns the structure of the format: every count, length and offset is checked before it is used. Refuses to know
what the keys mean (facts.py) and never reads tensor data.
Source of the format: ggml docs/gguf.md; block sizes: ggml's type traits as of ggml 0.25.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from edgeqwen.errors import InvalidGGUF
from edgeqwen.text import clean_line

Value = int | float | bool | str | tuple[int | float | bool, ...]

_MAX_ITEMS = 65_536  # keys, and tensors
_MAX_NAME = 1024
_MAX_STRING = 16 << 20
_MAX_ARRAY = 16 << 20
_MAX_HEADER = 512 << 20
_MAX_ELEMENTS = 1 << 40
_MAX_ALIGNMENT = 1 << 20
_MAX_KEPT_ARRAY = 1024  # longer arrays are vocabularies: checked, not kept
_WINDOW = 1 << 20

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_SIZES = {kind: struct.calcsize(form) for kind, form in _SCALARS.items()}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

# id: (name, elements per block, bytes per block)
TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip


@dataclass(frozen=True)
class ArrayInfo:
    """What an array is, without its items."""

    kind: int
    """Value type id of the items."""
    count: int


@dataclass(frozen=True)
class TensorInfo:
    """One row of the tensor table."""

    name: str
    dims: tuple[int, ...]
    """Elements per dimension, the row length first."""
    kind: int
    offset: int
    """Bytes from the start of the tensor data."""

    @property
    def n_bytes(self) -> int:
        """Bytes of the data: elements / block length * block bytes."""
        _, block, block_bytes = TENSOR_TYPES[self.kind]
        elements = 1
        for dim in self.dims:
            elements *= dim
        return elements // block * block_bytes


@dataclass(frozen=True)
class GGUFHeader:
    """Everything before the tensor data."""

    metadata: dict[str, Value]
    """Scalars, strings and short arrays of numbers."""
    arrays: dict[str, ArrayInfo]
    """Every array, also those too long to keep."""
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    """Byte at which tensor data begins."""
    expected_size: int
    """Bytes the whole file must at least have."""


def read_header(file: BinaryIO, size: int, name: str) -> GGUFHeader:
    """Scan the header of a file of `size` bytes; `file` may hold a prefix only. Blocking.

    Raises InvalidGGUF with one sentence that says what is wrong. `name` is used in that sentence.
    """
    scan = _Scan(file, size, clean_line(name))
    n_tensors, n_keys = scan.preamble()
    metadata: dict[str, Value] = {}
    arrays: dict[str, ArrayInfo] = {}
    for _ in range(n_keys):
        scan.key_value(metadata, arrays)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        raise scan.refuse(f"its alignment is {clean_line(str(alignment))}, not a power of two up to 2^20")
    tensors = tuple(scan.tensor() for _ in range(n_tensors))
    data_offset = -(-scan.position // alignment) * alignment
    expected = data_offset + _check_layout(scan, tensors, alignment)
    if expected > size:
        raise scan.refuse(f"it is cut short: {size:,} of {expected:,} bytes are there")
    return GGUFHeader(metadata, arrays, tensors, data_offset, expected)


def _check_layout(scan: _Scan, tensors: tuple[TensorInfo, ...], alignment: int) -> int:
    """Check that tensors lie one after the other, as llama.cpp demands, and return the bytes of all."""
    seen: set[str] = set()
    end = padded = 0
    for tensor in tensors:
        if tensor.name in seen:
            raise scan.refuse(f"tensor {clean_line(tensor.name)} is listed twice")
        seen.add(tensor.name)
        if tensor.offset != padded:
            raise scan.refuse(
                f"tensor {clean_line(tensor.name)} lies at byte {tensor.offset:,} of the data, not {padded:,}"
            )
        end = tensor.offset + tensor.n_bytes
        padded = -(-end // alignment) * alignment
    return end


class _Scan:
    """A forward reader over a window of at most a few MiB."""

    def __init__(self, file: BinaryIO, size: int, name: str) -> None:
        self._file, self._size, self._name = file, size, name
        self._buffer = b""
        self._start = 0  # file position of the window
        self._at = 0  # position inside the window

    @property
    def position(self) -> int:
        return self._start + self._at

    def refuse(self, reason: str) -> InvalidGGUF:
        message = f"{self._name} cannot be used: {reason}"
        return InvalidGGUF(message, path=self._name, reason=reason)

    def preamble(self) -> tuple[int, int]:
        """Check magic and version; return the numbers of tensors and keys."""
        if self._size == 0:
            raise self.refuse("the file is empty")
        head = self._file.read(512)
        self._file.seek(0)
        if head[:4] != b"GGUF":
            raise self.refuse(_not_gguf(head))
        self._take(4)
        version = self._u32()
        if version in (2 << 24, 3 << 24):
            raise self.refuse("it is a big-endian GGUF, made for another kind of processor")
        if version == 1:
            raise self.refuse("it is a GGUF of version 1, which is too old; get a newer file")
        if version not in (2, 3):
            raise self.refuse(f"it is a GGUF of version {version}, newer than this program knows")
        n_tensors, n_keys = self._u64(), self._u64()
        for count, what in ((n_tensors, "tensors"), (n_keys, "metadata keys")):
            if count > _MAX_ITEMS:
                raise self.refuse(f"it claims to have {count:,} {what}; at most {_MAX_ITEMS:,} are accepted")
        return n_tensors, n_keys

    def key_value(self, metadata: dict[str, Value], arrays: dict[str, ArrayInfo]) -> None:
        key = self._name_text("metadata key")
        if key in metadata or key in arrays:
            raise self.refuse(f"metadata key {clean_line(key)} is given twice")
        kind = self._u32()
        if kind == _STRING:
            metadata[key] = self._string(key)
        elif kind == _ARRAY:
            self._array(key, metadata, arrays)
        elif kind in _SCALARS:
            metadata[key] = struct.unpack(_SCALARS[kind], self._take(_SIZES[kind]))[0]
        else:
            raise self.refuse(f"metadata key {clean_line(key)} has the unknown type {kind}")

    def tensor(self) -> TensorInfo:
        name = self._name_text("tensor name")
        n_dims = self._u32()
        if not 1 <= n_dims <= 4:
            raise self.refuse(f"tensor {clean_line(name)} has {n_dims:,} dimensions; 1 to 4 are accepted")
        dims = tuple(self._u64() for _ in range(n_dims))
        elements = 1
        for dim in dims:
            elements *= dim
        if not 0 < elements <= _MAX_ELEMENTS:
            raise self.refuse(
                f"tensor {clean_line(name)} has an impossible size: {' x '.join(map(str, dims))}"
            )
        kind, offset = self._u32(), self._u64()
        if kind not in TENSOR_TYPES:
            raise self.refuse(f"tensor {clean_line(name)} is of type {kind}, newer than this program knows")
        if dims[0] % TENSOR_TYPES[kind][1]:
            raise self.refuse(
                f"rows of tensor {clean_line(name)} do not fill whole {TENSOR_TYPES[kind][0]} blocks"
            )
        return TensorInfo(name, dims, kind, offset)

    def _array(self, key: str, metadata: dict[str, Value], arrays: dict[str, ArrayInfo]) -> None:
        kind, count = self._u32(), self._u64()
        if kind == _ARRAY:
            raise self.refuse(f"metadata key {clean_line(key)} holds arrays inside an array")
        if count > _MAX_ARRAY:
            raise self.refuse(
                f"metadata key {clean_line(key)} claims {count:,} items; at most {_MAX_ARRAY:,}"
            )
        arrays[key] = ArrayInfo(kind, count)
        if kind == _STRING:
            self._skip_strings(key, count)
        elif kind not in _SCALARS:
            raise self.refuse(f"metadata key {clean_line(key)} has items of the unknown type {kind}")
        elif count <= _MAX_KEPT_ARRAY:
            form = f"<{count}{_SCALARS[kind][1]}"
            metadata[key] = struct.unpack(form, self._take(count * _SIZES[kind]))
        else:
            self._skip(count * _SIZES[kind])

    def _skip_strings(self, key: str, count: int) -> None:
        """Walk a vocabulary: lengths are checked, texts are not looked at."""
        unpack = _U64.unpack_from
        while count:
            self._fill(8)
            buffer, at, last, length = self._buffer, self._at, len(self._buffer) - 8, 0
            # 300,000 rounds for a Qwen vocabulary: a huge length ends the loop and is judged after it.
            for done in range(count):  # noqa: B007 - read after the loop
                if at > last:
                    break
                length = unpack(buffer, at)[0]
                at += 8 + length
            else:
                done = count
            if length > _MAX_STRING:
                raise self.refuse(f"a text in {clean_line(key)} claims {length:,} bytes")
            count -= done
            self._at = min(at, len(buffer))
            self._skip(at - self._at)

    def _string(self, key: str) -> str:
        length = self._u64()
        if length > _MAX_STRING:
            raise self.refuse(f"the text of {clean_line(key)} claims {length:,} bytes")
        return self._take(length).decode("utf-8", "replace")

    def _name_text(self, what: str) -> str:
        length = self._u64()
        if length > _MAX_NAME:
            raise self.refuse(f"a {what} claims {length:,} bytes; at most {_MAX_NAME:,}")
        if length == 0:
            raise self.refuse(f"a {what} is empty")
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.refuse(f"a {what} is not UTF-8 text") from error

    def _u32(self) -> int:
        return int(_U32.unpack(self._take(4))[0])

    def _u64(self) -> int:
        return int(_U64.unpack(self._take(8))[0])

    def _take(self, count: int) -> bytes:
        self._fill(count)
        piece = self._buffer[self._at : self._at + count]
        self._at += count
        return piece

    def _skip(self, count: int) -> None:
        held = len(self._buffer) - self._at
        if count <= held:
            self._at += count
            return
        target = self.position + count
        self._check_end(target)
        self._file.seek(target)
        self._buffer, self._start, self._at = b"", target, 0

    def _fill(self, count: int) -> None:
        """Make `count` bytes available at the current position, or refuse the file."""
        if len(self._buffer) - self._at >= count:
            return
        self._check_end(self.position + count)
        rest = self._buffer[self._at :]
        more = self._file.read(max(_WINDOW, count) - len(rest))
        self._start, self._at, self._buffer = self.position, 0, rest + more
        if len(self._buffer) < count:
            raise self.refuse(f"it ends inside its header, at byte {self._start + len(self._buffer):,}")

    def _check_end(self, end: int) -> None:
        if end > self._size:
            raise self.refuse(f"it ends inside its header, at byte {self._size:,}")
        if end > _MAX_HEADER:
            raise self.refuse(f"its header is longer than {_MAX_HEADER >> 20} MiB")


def _not_gguf(head: bytes) -> str:
    """Say what the first bytes of a file look like instead."""
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")) or b"<html" in start:
        return "it is an HTML page, not a GGUF file; a web site answered instead of the download"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself; run `git lfs pull` where it came from"
    if head[8:9] == b"{":
        return "it is a safetensors file, not a GGUF; get the model's GGUF files"
    if head.startswith(b"PK\x03\x04"):
        return "it is a zip archive (or a PyTorch checkpoint), not a GGUF file"
    if head.startswith(b"FUGG"):
        return "it is a big-endian GGUF, made for another kind of processor"
    return "it is not a GGUF file"

"""Reads a TOML file into a typed dataclass and names the exact key of every mistake.

Knows nothing about what the files mean.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from edgeqwen.errors import InvalidConfig

T = TypeVar("T")

# msgspec ends its messages with the place of the fault, as in: ... - at `$.models[...].files[2]`
_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `(?:key in )?\$(?P<path>.*)`)?$", re.DOTALL)


def read(path: Path) -> dict[str, Any]:
    """Return the file's tables, or an empty dict when there is no such file. Raises InvalidConfig."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidConfig(f"cannot read {path}: {error.strerror}", file=str(path)) from error
    except UnicodeDecodeError as error:
        raise InvalidConfig(f"{path} is not UTF-8 text", file=str(path)) from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfig(f"{path} is not valid TOML: {error}", file=str(path)) from error


def decode(tables: dict[str, Any], kind: type[T], file: Path) -> T:
    """Turn tables into `kind`, a frozen dataclass. Raises InvalidConfig with file, key and nearest key."""
    _check_keys(tables, inspect.type_info(kind), "", file)
    try:
        return msgspec.convert(tables, kind)
    except msgspec.ValidationError as error:
        place = _PLACE.match(str(error))
        what, path = (place["what"], place["path"] or "") if place else (str(error), "")
        key = _name_map_keys(path.lstrip("."), tables, kind)
        message = f"{file}: {key or 'the file'}: {_in_words(what)}"
        raise InvalidConfig(message, file=str(file), key=key) from error


def _in_words(what: str) -> str:
    missing = re.fullmatch(r"Object missing required field `(.+)`", what)
    if missing:
        return f"the key {missing[1]} is missing"
    return what[:1].lower() + what[1:].replace("`", "")


def _check_keys(value: object, kind: inspect.Type, where: str, file: Path) -> None:
    """Walk tables and types side by side; refuse the first key that no type knows, and nan and inf."""
    if isinstance(value, float) and not math.isfinite(value):
        message = f"{file}: {where}: {value} is no number to reckon with"
        raise InvalidConfig(message, file=str(file), key=where)
    if isinstance(kind, inspect.UnionType):
        kind = next((t for t in kind.types if isinstance(t, inspect.DataclassType)), kind)
    if isinstance(kind, inspect.DataclassType) and isinstance(value, dict):
        fields = {field.encode_name: field.type for field in kind.fields}
        for key, item in value.items():
            path = f"{where}.{key}" if where else key
            if key not in fields:
                raise _unknown_key(path, key, list(fields), file)
            _check_keys(item, fields[key], path, file)
    elif isinstance(kind, inspect.DictType) and isinstance(value, dict):
        for key, item in value.items():
            _check_keys(item, kind.value_type, f'{where}."{key}"', file)
    elif isinstance(kind, inspect.VarTupleType) and isinstance(value, list):
        for index, item in enumerate(value):
            _check_keys(item, kind.item_type, f"{where}[{index}]", file)


def _unknown_key(path: str, key: str, known: list[str], file: Path) -> InvalidConfig:
    near = nearest(key, known)
    advice = f"did you mean {near}?" if near else f"valid keys: {', '.join(sorted(known))}"
    return InvalidConfig(f"{file}: unknown key {path}; {advice}", file=str(file), key=path, nearest=near)


def nearest(word: str, known: list[str]) -> str | None:
    """Return the known word most like `word`, or None when nothing is close."""
    found = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    return found[0] if found else None


def _name_map_keys(path: str, tables: dict[str, Any], kind: type) -> str:
    """Replace the `[...]` that msgspec writes for a table name by the first name that fails there."""
    if "[...]" not in path:
        return path
    head, _, tail = path.partition("[...]")
    info: Any = inspect.type_info(kind)
    for part in head.split("."):
        info = next((f.type for f in getattr(info, "fields", ()) if f.encode_name == part), None)
        tables = tables.get(part, {})
    value_type = getattr(info, "value_type", None)
    wanted = str if isinstance(value_type, inspect.StrType) else getattr(value_type, "cls", object)
    failing = (name for name, item in tables.items() if not _converts(item, wanted))
    name = next(failing, None)
    return head + tail if name is None else f'{head}."{name}"{tail}'


def _converts(value: object, kind: type) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True

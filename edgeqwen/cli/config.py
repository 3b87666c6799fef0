"""`edgeqwen config`: read and change settings."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from edgeqwen.chat.sampling import check_setting
from edgeqwen.cli import output
from edgeqwen.cli.invocation import Invocation
from edgeqwen.cli.options import json_option
from edgeqwen.cli.space import move_store
from edgeqwen.config import Config, parse_value, set_value
from edgeqwen.errors import InvalidConfig
from edgeqwen.tomlfile import nearest


@click.group()
def config() -> None:
    """Read and change settings."""


@config.command("list")
@json_option
@click.pass_obj
def list_(invocation: Invocation) -> None:
    """List every setting with its value."""
    values = _flat(invocation.config)
    if invocation.as_json:
        output.document(values)
        return
    output.table(("SETTING", "VALUE"), [(key, _text(value)) for key, value in values.items()])


@config.command("get")
@click.argument("key")
@json_option
@click.pass_obj
def get(invocation: Invocation, key: str) -> None:
    """Print the value of one setting, such as run.ctx."""
    values = _known(invocation, key)
    if invocation.as_json:
        output.document(values[key])
    else:
        output.line(_text(values[key]))


@config.command("set")
@click.argument("key")
@click.argument("value")
@json_option
@click.pass_obj
def set_(invocation: Invocation, key: str, value: str) -> None:
    """Set one setting; VALUE is a TOML value or a plain word.

    Setting store.path moves the installed models there; stopped, the same command goes on.
    """
    _known(invocation, key)
    check_setting(key, parse_value(value))
    if key == "store.path":
        move_store(invocation, str(parse_value(value)))
    else:
        set_value(invocation.paths.config_file, key, value)
    _confirm(invocation, key)


@config.command("unset")
@click.argument("key")
@json_option
@click.pass_obj
def unset(invocation: Invocation, key: str) -> None:
    """Take one setting back to its default."""
    _known(invocation, key)
    if key == "store.path":
        move_store(invocation, None)
    else:
        set_value(invocation.paths.config_file, key, None)
    _confirm(invocation, key)


@config.command("path")
@json_option
@click.pass_obj
def path(invocation: Invocation) -> None:
    """Print the folders and files edgeqwen uses."""
    paths = invocation.paths
    found = {
        "config": paths.config_file,
        "catalogue": paths.user_catalogue,
        "presets": paths.presets,
        "signing_key": paths.signing_key,
        "trusted_keys": paths.trusted_keys,
        "models": invocation.store.root,
        "chats": paths.chats,
        "exports": paths.exports,
        "kv": paths.kv,
        "bench": paths.bench,
        "logs": paths.logs,
        "cache": paths.cache,
    }
    if invocation.as_json:
        output.document({name: str(path) for name, path in found.items()})
    else:
        output.table(("WHAT", "PATH"), [(name.replace("_", " "), str(path)) for name, path in found.items()])


def _known(invocation: Invocation, key: str) -> dict[str, Any]:
    """Return all settings, `key` among them. Raises InvalidConfig."""
    values = _flat(invocation.config)
    if key not in values:
        near = nearest(key, list(values))
        advice = f"did you mean {near}?" if near else f"there are {', '.join(values)}"
        raise InvalidConfig(f"unknown setting: {key}; {advice}", key=key, nearest=near)
    return values


def _confirm(invocation: Invocation, key: str) -> None:
    del invocation.config  # read before the change
    value = _flat(invocation.config)[key]
    if invocation.as_json:
        output.document({key: value})
    else:
        output.note(f"{key} is {_text(value)} now")


def _flat(settings: Config) -> dict[str, Any]:
    tables = dataclasses.asdict(settings)
    return {f"{table}.{key}": value for table, values in tables.items() for key, value in values.items()}


def _text(value: object) -> str:
    if value is None:
        return "(default)"
    if value == ():
        return "(none)"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)

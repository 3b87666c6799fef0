"""What the store takes on disk: `edgeqwen du` and `edgeqwen prune`, and moving it elsewhere."""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path

import click

from edgeqwen.cli import output
from edgeqwen.cli.invocation import Invocation
from edgeqwen.cli.options import json_option, yes_option
from edgeqwen.config import set_value
from edgeqwen.errors import InvalidConfig, InvalidInput, StoreError
from edgeqwen.models import move as moving
from edgeqwen.models.store import Entry, Store
from edgeqwen.models.volume import nearest_there
from edgeqwen.paths import expand
from edgeqwen.text import size_text


@click.command()
@json_option
@click.pass_obj
def du(invocation: Invocation) -> None:
    """Say what the models take on disk.

    A file that another program holds too (a hard link) takes no room of its own, and removing it frees none.
    """
    store = invocation.store
    entries = [(entry, _own_bytes(entry)) for entry in store.entries()]
    left_bytes = sum(leftover.size for leftover in store.leftovers())
    usage = shutil.disk_usage(nearest_there(store.root))
    if invocation.as_json:
        rows = [
            {"ref": entry.ref, "folder": str(entry.folder), "size_bytes": entry.size, "own_bytes": own}
            for entry, own in entries
        ]
        output.document(
            {"path": str(store.root), "models": rows, "leftover_bytes": left_bytes, "free_bytes": usage.free}
        )
        return
    cells = [(entry.ref, size_text(entry.size), size_text(own)) for entry, own in entries]
    left = [("(unfinished)", size_text(left_bytes), size_text(left_bytes))] if left_bytes else []
    size, own = sum(entry.size for entry, _ in entries), sum(own for _, own in entries)
    total_row = ("(all)", size_text(size + left_bytes), size_text(own + left_bytes))
    output.table(("MODEL", ">SIZE", ">OWN"), [*cells, *left, total_row])
    output.note(f"{size_text(usage.free)} are free at {store.root}")
    if left_bytes:
        output.note("\nhint: `edgeqwen list --partial` shows what is unfinished, `edgeqwen prune` removes it")


@click.command()
@yes_option
@json_option
@click.pass_obj
def prune(invocation: Invocation, yes: bool) -> None:
    """Remove what unfinished downloads and imports have left.

    Nothing that is installed is touched, nothing that another edgeqwen works on now, and no model file
    without a manifest, which may be somebody else's.
    """
    leftovers = [leftover for leftover in invocation.store.leftovers() if leftover.kind == "part"]
    size = sum(leftover.size for leftover in leftovers)
    if leftovers and not yes:
        if not sys.stdin.isatty():
            raise InvalidInput(
                f"removing {size_text(size)} needs a yes: give `--yes` where nobody can be asked"
            )
        click.confirm(f"remove {len(leftovers)} files ({size_text(size)})?", abort=True, err=True)
    pruned = invocation.store.prune()
    size = sum(leftover.size for leftover in pruned)
    if invocation.as_json:
        output.document({"files": len(pruned), "freed_bytes": size})
    else:
        output.note(f"removed {len(pruned)} files, {size_text(size)} freed")


def list_leftovers(invocation: Invocation) -> None:
    """Show what `prune` would remove."""
    leftovers = invocation.store.leftovers()
    if invocation.as_json:
        rows = [{"path": str(left.path), "kind": left.kind, "size_bytes": left.size} for left in leftovers]
        output.document(rows)
    elif leftovers:
        table = [(str(left.path), left.kind, size_text(left.size)) for left in leftovers]
        output.table(("FILE", "KIND", ">SIZE"), table)
        output.note("\nhint: pull or import the same model again to go on, or `edgeqwen prune`")
    else:
        output.note("nothing was left unfinished")


def move_store(invocation: Invocation, to: str | None) -> None:
    """Make `to` the store's folder and move every model there; None is the default folder.

    While it moves both folders are searched, and the settings say so: a second call goes on.
    Raises InvalidInput, InvalidConfig or StoreError.
    """
    settings, file = invocation.config.store, invocation.paths.config_file
    default = invocation.paths.models
    target = expand(to).absolute() if to else default
    current = expand(settings.path).absolute() if settings.path else default
    source = Path(settings.moving_from) if settings.moving_from else current
    if settings.moving_from and _is_same(target, source):
        source = current  # back to where an unfinished move began
    elif settings.moving_from and not _is_same(target, current):
        message = (
            f"a move from {source} to {current} is unfinished; "
            "`edgeqwen config set store.path` with one of the two ends it"
        )
        raise InvalidInput(message)
    if _is_same(source, target):
        set_value(file, "store.path", _toml(target) if to else None)
        set_value(file, "store.moving_from", None)
        return
    if source.resolve() in target.resolve().parents or target.resolve() in source.resolve().parents:
        raise InvalidInput(f"{target} and {source} lie inside each other; name another folder")
    _make(target)
    moving.check(Store(source), Store(target))
    set_value(file, "store.moving_from", _toml(source))
    set_value(file, "store.path", _toml(target) if to else None)
    try:
        with output.Status() as status:
            told = partial(status.share, f"moving to {target}")
            n_moved = moving.move(Store(source), Store(target), told)
    except KeyboardInterrupt:
        output.note(f"stopped; the rest is still used from {source}, and the same command goes on")
        raise
    output.note(f"moved {n_moved} models to {target}")
    set_value(file, "store.moving_from", None)


def _is_same(one: Path, other: Path) -> bool:
    """Say whether two names mean one folder, which need not exist."""
    try:
        return one.samefile(other)
    except OSError:
        return one.resolve() == other.resolve()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".edgeqwen"
        probe.touch()
        probe.unlink()
    except OSError as error:
        message = f"cannot write to {folder}: {error.strerror}"
        raise StoreError(message, path=str(folder), cause="no_permission") from error


def _toml(path: Path) -> str:
    """Return a path as a TOML string. Raises InvalidConfig for names that are no text."""
    text = str(path)
    if "'" in text or not text.isprintable():
        raise InvalidConfig(f"the settings cannot hold the name {text!r}; name another folder")
    return f"'{text}'"


def _own_bytes(entry: Entry) -> int:
    """Return what would be free without an entry."""
    statuses = [path.stat() for path in entry.paths() if path.exists()]
    return sum(status.st_size for status in statuses if status.st_nlink == 1)

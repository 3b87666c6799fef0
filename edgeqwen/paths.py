"""Says where things live on this machine. Creates nothing and reads no file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from edgeqwen.errors import InvalidInput

_APP = "edgeqwen"


@dataclass(frozen=True)
class Paths:
    """The four folders of one user; each may not exist yet."""

    data: Path
    config: Path
    cache: Path
    state: Path

    @property
    def models(self) -> Path:
        """The store that this user writes to."""
        return self.data / "models"

    @property
    def chats(self) -> Path:
        """All chats."""
        return self.data / "chats.db"

    @property
    def last_model(self) -> Path:
        """The ref that was loaded last."""
        return self.state / "last-model"

    @property
    def clip(self) -> Path:
        """What was copied last, for terminals that have no clipboard."""
        return self.data / "clip.txt"

    @property
    def exports(self) -> Path:
        """Where chats and answers are written that have no path of their own."""
        return self.data / "exports"

    @property
    def presets(self) -> Path:
        """The user's own ways to begin a chat."""
        return self.config / "presets.toml"

    @property
    def logs(self) -> Path:
        """The last logs of engines, and of faults of ours."""
        return self.state / "logs"

    @property
    def stamps(self) -> Path:
        """Which model files were found right."""
        return self.state / "stamps.json"

    @property
    def measured(self) -> Path:
        """What loaded models took on this machine."""
        return self.state / "measured.json"

    @property
    def kv(self) -> Path:
        """Saved KV caches: they hold conversations, so nobody else may read them."""
        return self.state / "kv"

    @property
    def running(self) -> Path:
        """What runs now, a file per front end."""
        return self.state / "running"

    @property
    def bench(self) -> Path:
        """What was measured of models, a run per line."""
        return self.state / "bench.jsonl"

    @property
    def heads(self) -> Path:
        """What the heads of remote files said."""
        return self.cache / "heads"

    @property
    def config_file(self) -> Path:
        """The settings."""
        return self.config / "config.toml"

    @property
    def signing_key(self) -> Path:
        """The secret key that this user's bundles are signed with."""
        return self.config / "signing.key"

    @property
    def trusted_keys(self) -> Path:
        """Public keys whose bundles are taken: a key and a name per line."""
        return self.config / "trusted_keys"

    @property
    def user_catalogue(self) -> Path:
        """The user's own models, merged over the shipped ones."""
        return self.config / "models.toml"


def expand(text: str) -> Path:
    """Return a typed path with ~ for the home folder. Raises InvalidInput."""
    try:
        return Path(text).expanduser()
    except (RuntimeError, ValueError) as error:
        raise InvalidInput(f"{text} names the home of somebody who is not known here") from error


def user_paths() -> Paths:
    """Return this user's folders: all under EDGEQWEN_HOME when that is set, else the platform's own."""
    if home := os.environ.get("EDGEQWEN_HOME"):
        root = expand(home).absolute()
        return Paths(root / "data", root / "config", root / "cache", root / "state")
    dirs = platformdirs.PlatformDirs(_APP, appauthor=False)
    return Paths(dirs.user_data_path, dirs.user_config_path, dirs.user_cache_path, dirs.user_state_path)


def site_stores() -> tuple[Path, ...]:
    """Return the system-wide stores that exist; they are only ever read."""
    site = platformdirs.PlatformDirs(_APP, appauthor=False, multipath=True).site_data_dir
    folders = (Path(part) / "models" for part in site.split(os.pathsep))
    return tuple(dict.fromkeys(folder for folder in folders if folder.is_dir()))


def shipped_catalogue() -> Path:
    """Return models.toml as installed: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    inside = package / "models.toml"
    return inside if inside.is_file() else package.parent / "models.toml"


def shipped_models() -> Path:
    """Return the store of what comes with edgeqwen; it is only ever read."""
    return Path(__file__).resolve().parent / "demo"


def shipped_licence(key: str) -> Path | None:
    """Return the text of a licence by its key in models.toml, where edgeqwen carries it."""
    package = Path(__file__).resolve().parent
    if key != "apache-2.0":
        return None
    inside = package / "licences" / "apache-2.0.txt"
    return inside if inside.is_file() else package.parent / "LICENSE"

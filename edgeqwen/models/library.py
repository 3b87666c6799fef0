"""This user's models: folders, settings, catalogue, store and what was measured, each read when needed.

Decides nothing; front ends take from it what they pass on.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edgeqwen.paths import Paths, expand, shipped_catalogue, shipped_models, site_stores, user_paths

if TYPE_CHECKING:
    from edgeqwen.config import Config
    from edgeqwen.models.catalogue import Catalogue
    from edgeqwen.models.heads import Heads
    from edgeqwen.models.measured import Measured
    from edgeqwen.models.stamps import Stamps
    from edgeqwen.models.store import Store


class Library:
    """Made once per process; reads nothing by itself."""

    @cached_property
    def paths(self) -> Paths:
        """This user's folders."""
        return user_paths()

    @cached_property
    def config(self) -> Config:
        """The settings. Raises InvalidConfig."""
        from edgeqwen import config

        return config.load(self.paths.config_file)

    @cached_property
    def catalogue(self) -> Catalogue:
        """All known models, with the user's own. Raises InvalidConfig."""
        from edgeqwen.models.catalogue import load_catalogue

        return load_catalogue(shipped_catalogue(), self.paths.user_catalogue)

    @cached_property
    def store(self) -> Store:
        """What is installed. Raises InvalidConfig, InvalidInput."""
        from edgeqwen.models.store import Store

        settings = self.config.store
        roots = (settings.moving_from, *settings.roots) if settings.moving_from else settings.roots
        own = expand(settings.path) if settings.path else self.paths.models
        return Store(own, (*(expand(root) for root in roots), *site_stores()), shipped_models())

    def usual_model(self) -> str | None:
        """Return the model that was used last, else the first installed that chats; None: there is none."""
        entries = self.store.entries()
        refs = {entry.ref for entry in (*entries, *self.store.shipped())}
        with suppress(OSError, UnicodeDecodeError):
            last = self.paths.last_model.read_text(encoding="utf-8").strip()
            if last in refs or (last.endswith((".gguf", ".json")) and Path(last).exists()):
                return last
        known = self.catalogue.models
        models = {entry.ref: known.get(entry.manifest.catalogue_ref or "") for entry in entries}
        return next((ref for ref, model in models.items() if model is None or model.can_chat), None)

    def remember_model(self, ref: str) -> None:
        """Make a model the usual one. A disk that refuses costs nothing but that."""
        with suppress(OSError):
            self.paths.last_model.parent.mkdir(parents=True, exist_ok=True)
            self.paths.last_model.write_text(ref, encoding="utf-8")

    @cached_property
    def stamps(self) -> Stamps:
        """Which files were found right."""
        from edgeqwen.models.stamps import Stamps

        return Stamps(self.paths.stamps)

    @cached_property
    def measured(self) -> Measured:
        """What loaded models really took."""
        from edgeqwen.models.measured import Measured

        return Measured(self.paths.measured)

    @cached_property
    def heads(self) -> Heads:
        """What the heads of remote files said."""
        from edgeqwen.models.heads import Heads

        return Heads(self.paths.heads)

"""This user's models: folders, settings, catalogue, store and what was measured, each read when needed.

Decides nothing; front ends take from it what they pass on.
"""

from __future__ import annotations

from functools import cached_property
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
        return user_paths()

    @cached_property
    def config(self) -> Config:
        from edgeqwen import config

        return config.load(self.paths.config_file)

    @cached_property
    def catalogue(self) -> Catalogue:
        from edgeqwen.models.catalogue import load_catalogue

        return load_catalogue(shipped_catalogue(), self.paths.user_catalogue)

    @cached_property
    def store(self) -> Store:
        from edgeqwen.models.store import Store

        settings = self.config.store
        roots = (settings.moving_from, *settings.roots) if settings.moving_from else settings.roots
        own = expand(settings.path) if settings.path else self.paths.models
        return Store(own, (*(expand(root) for root in roots), *site_stores()), shipped_models())

    @cached_property
    def stamps(self) -> Stamps:
        from edgeqwen.models.stamps import Stamps

        return Stamps(self.paths.stamps)

    @cached_property
    def measured(self) -> Measured:
        from edgeqwen.models.measured import Measured

        return Measured(self.paths.measured)

    @cached_property
    def heads(self) -> Heads:
        from edgeqwen.models.heads import Heads

        return Heads(self.paths.heads)

"""How many tokens a step had best read, as the kernels of a CPU take them in fours and in tiles.

Pure arithmetic; knows no slots, no cache and no library. docs/decisions/0012-kernels.md has the figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_CELL_PADDING = 256  # llama.cpp rounds the cells that attention looks over up to this
_GAIN = 1.05  # less is not worth reading anything twice


@dataclass(frozen=True)
class Kernels:
    """What the kernels of a device are fastest with; as it stands, of one without such steps."""

    rows: int = 1
    """Rows that matrix products take together; a row left over costs almost as much as all these."""
    tile: int = 1
    """Rows of a batch from which on attention is computed in tiles."""
    per_cell: float = 0.0
    """Time that a row's attention, in tiles, takes per cell; the unit is the time of the row's products."""
    untiled: Callable[[], float] = lambda: 1.0
    """Gives the time of attention without tiles, in times of that with."""

    def to_read(self, n_pending: int, n_cached: int) -> int:
        """Return how many of a prompt's last tokens to read, at least those that are not in the cache.

        More are as soon done where they fill a group of rows, and sooner where they make a tile: behind 2,000
        tokens, 50 rows without tiles take longer than 64 with.
        """
        if n_pending < self.rows:
            return n_pending
        n_rows = -(-n_pending // self.rows) * self.rows
        attention = self.per_cell * n_cached
        if n_rows < self.tile <= n_cached:
            tiled = self.tile * (1 + attention)
            if n_rows * (1 + self.untiled() * attention) > _GAIN * tiled:
                n_rows = self.tile
        return min(n_rows, n_pending + n_cached)

    def chunk(self, start: int, n_pending: int, room: int) -> int:
        """Return how many of a prompt's pending tokens to read next, at most `room`, from position `start`.

        A chunk ends where the cell padding does, when that costs no further chunk: behind a short cached
        prefix each would else look over up to 255 cells that hold nothing (2,012 tokens behind 24: 1.4 %
        slower). And neither it nor the last one is less than a tile, where there is room for two.
        """
        if not 0 < room < n_pending:
            return min(n_pending, room)
        least = self.tile if 2 * self.tile <= room else 1
        most_left = (-(-n_pending // room) - 1) * room  # or it takes a further chunk
        n_rows = self._in_groups(room - (start + room) % _CELL_PADDING)
        if n_rows < least or n_pending - n_rows > most_left:
            n_rows = room
        n_rows = min(n_rows, n_pending - least)
        grouped = self._in_groups(n_rows)
        return grouped if n_pending - grouped <= most_left else n_rows

    def _in_groups(self, n_rows: int) -> int:
        return n_rows - n_rows % self.rows or n_rows

"""How often a growing answer is drawn: as often as it is cheap. Pure.

After a draw that took `cost` seconds the next one waits four times as long, so that drawing takes a fifth of
a core at most, whatever the length of the text.
"""

from __future__ import annotations

_LOCAL_S, _REMOTE_S, _SLOW_S = 0.1, 0.25, 1.0
_ALL_CORES_S = 0.3  # each draw stops an engine that uses every core
_LONGEST_S = 2.0


def base_interval(*, is_remote: bool, low_bandwidth: bool, all_cores: bool) -> float:
    """Return the seconds between draws that cost nothing."""
    if low_bandwidth:
        return _SLOW_S
    return max(_REMOTE_S if is_remote else _LOCAL_S, _ALL_CORES_S if all_cores else 0.0)


def next_interval(base: float, cost: float) -> float:
    """Return the seconds to wait after a draw of `cost` seconds."""
    return min(max(base, 4 * cost), max(base, _LONGEST_S))

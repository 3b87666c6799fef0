"""What decoding JSON that others wrote, or that a disk has damaged, may raise."""

from __future__ import annotations

import msgspec

NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # msgspec lets the latter two out

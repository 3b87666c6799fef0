"""Loads the ctypes layer of llama-cpp-python as `L` and the libraries beside it, and nothing else of it.

The package's own __init__ brings numpy, a disk cache and the high-level class along: 0.42 s and 47 MB instead
of 0.08 s and 19 MB here. A bare package object with the same search path lets the submodule load alone.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

from edgeqwen.errors import LoadFailed
from edgeqwen.text import clean_line

LLAMA_VERSION = "0.5.0-dev"
"""What llama_version() of the pinned package says; struct layouts hold for this build only."""


def _open_package() -> None:
    if "llama_cpp" in sys.modules:
        return
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.submodule_search_locations is None:
        raise LoadFailed("llama-cpp-python is not installed; run scripts/run again", reason="not installed")
    package = types.ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations)
    package.__spec__ = importlib.machinery.ModuleSpec("llama_cpp", None, is_package=True)
    sys.modules["llama_cpp"] = package


def package_version() -> str:
    """Return what pip calls the package, as in `llama_cpp_python-0.3.36`; "" where it was not pip's.

    Read off a folder's name, as importlib.metadata takes 15 ms to import.
    """
    folder = Path(sys.modules["llama_cpp"].__path__[0]).parent
    return next((one.stem for one in folder.glob("llama_cpp_python-*.dist-info")), "")


def ggml_library(name: str) -> Any:  # noqa: ANN401 - a ctypes library
    """Open one of the shipped libraries that the package does not bind, as "ggml-base". Raises OSError."""
    suffix = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
    prefix = "" if sys.platform == "win32" else "lib"
    return ctypes.CDLL(str(Path(L.__file__).parent / "lib" / f"{prefix}{name}.{suffix}"))


os.environ.pop("LLAMA_CPP_LIB_PATH", None)  # another build's library would not fit these structs
os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # or an abort forks a debugger
_open_package()

try:
    import llama_cpp.llama_cpp as L
except (OSError, RuntimeError, AttributeError) as error:  # another build's, or a library it needs is missing
    message = f"llama.cpp's library cannot be used here ({clean_line(str(error))}); run scripts/run again"
    raise LoadFailed(message, reason="wrong library") from error

__all__ = ["LLAMA_VERSION", "L", "ggml_library", "package_version"]

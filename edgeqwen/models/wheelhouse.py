"""Gathers what installs edgeqwen itself on a machine without a network: wheels, and a script.

pip does the work, in the versions that are installed here. Asks the package index that pip is set up with.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distribution, distributions, version
from pathlib import Path
from urllib.parse import unquote, urlsplit

from edgeqwen.errors import DownloadError, InvalidInput
from edgeqwen.text import clean_line

INSTALL_SCRIPT = "install.sh"
_PLATFORM = re.compile(r"[a-z0-9_]{3,40}")

_SCRIPT = """#!/bin/sh
# Installs edgeqwen from the wheels beside this file. Asks no network. sh install.sh [FOLDER]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$HOME/.local/share/edgeqwen/app}
python=${PYTHON:-python@VERSION@}
command -v "$python" >/dev/null || python=python3
"$python" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "@VERSION@")' || {
  echo "error: Python @VERSION@ is needed, which these wheels were made for; PYTHON=... names another" >&2
  exit 2
}
if command -v sha256sum >/dev/null; then
  (cd "$here/.." && grep ' app/' SHA256SUMS | sha256sum -c >/dev/null) || {
    echo "error: the files of the app are damaged; carry the bundle over again" >&2
    exit 4
  }
fi
"$python" -m venv "$folder" || {
  echo "error: no virtual environment could be made; on Debian the package python@VERSION@-venv helps" >&2
  exit 2
}
"$folder/bin/python" -m pip install --no-index --find-links "$here/wheels" --disable-pip-version-check \\
  --quiet "edgeqwen==@EDGEQWEN@"
echo "installed: $folder/bin/edgeqwen"
echo "next: $folder/bin/edgeqwen trust add KEY"
echo "      $folder/bin/edgeqwen bundle import $(cd "$here/.." && pwd)"
"""


def gather(folder: Path, platform: str | None = None) -> list[Path]:
    """Put wheels and install script into `folder` and return their paths. Blocking, up to minutes.

    `platform` is a pip platform tag such as manylinux2014_aarch64; None is this machine.
    Raises InvalidInput, DownloadError when pip cannot get them all, and OSError.
    """
    if platform is not None and not _PLATFORM.fullmatch(platform):
        raise InvalidInput("a platform is a tag such as manylinux2014_aarch64")
    wheels = folder / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    for stray in wheels.glob("*.whl"):  # of an export that was stopped, or of anybody
        stray.unlink()
    (folder / INSTALL_SCRIPT).unlink(missing_ok=True)
    source = _source()
    with tempfile.TemporaryDirectory() as scratch:
        pins = Path(scratch) / "pins.txt"
        pins.write_text("".join(f"{name}=={number}\n" for name, number in _versions()))
        common = ["-c", str(pins)]
        if platform is None:
            _pip("wheel", "--wheel-dir", str(wheels), *common, source)
        else:
            only = ["--dest", str(wheels), "--only-binary=:all:", f"--platform={platform}"]
            # First, and alone: most indexes have no ready-made wheel of it, and pip then says so plainly.
            _pip("download", *only, "--no-deps", f"llama-cpp-python=={version('llama-cpp-python')}")
            _pip("wheel", "--no-deps", "--wheel-dir", str(wheels), source)
            own = str(next(wheels.glob("edgeqwen-*.whl")))
            _pip("download", *only, f"--find-links={wheels}", *common, own)
    script = folder / INSTALL_SCRIPT
    python = "{}.{}".format(*sys.version_info[:2])
    script.write_text(
        _SCRIPT.replace("@VERSION@", python).replace("@EDGEQWEN@", version("edgeqwen")), encoding="utf-8"
    )
    script.chmod(0o755)
    return [script, *sorted(wheels.glob("*.whl"))]


def _source() -> str:
    """Return what pip makes edgeqwen's own wheel of: the checkout it was installed from, else its name."""
    try:
        found = distribution("edgeqwen")
    except PackageNotFoundError as error:
        raise InvalidInput("edgeqwen was not installed by pip, so its wheels cannot be gathered") from error
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    url = urlsplit(origin.get("url", ""))
    if url.scheme == "file" and Path(unquote(url.path)).exists():
        return unquote(url.path)
    return f"edgeqwen=={found.version}"


def _versions() -> list[tuple[str, str]]:
    found = ((dist.metadata["Name"], dist.version) for dist in distributions())
    return sorted({(name, version) for name, version in found if name and name != "edgeqwen"})


def _pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        errors = [line for line in done.stdout.splitlines() if line.startswith("ERROR: ")]
        reason = clean_line(errors[-1].removeprefix("ERROR: ")) if errors else "pip failed"
        raise DownloadError(f"the wheels of edgeqwen cannot be gathered: {reason}")

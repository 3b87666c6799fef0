"""Measures pull, repair and the memory estimate on a real file: the figures of the README's second half.

    python scripts/bench_models.py MODEL.gguf [--rounds N]

A hub on loopback serves the file. pull and curl take turns; a pull ends with hash and fsync, curl with a sync
of its file. Then one byte is flipped and repaired, and the model answers a prompt of 700 tokens at several
contexts. Before that, how long the program, a header and a load take. Prints one JSON object per measurement.
The file must be one of the catalogue's, whatever its name.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # for the hub of the tests

from edgeqwen.models.catalogue import CatalogueFile, load_catalogue
from edgeqwen.models.digest import digest_of
from edgeqwen.models.facts import read_facts
from edgeqwen.paths import shipped_catalogue
from tests.support.hub import REVISION, Hub

_PROGRAM = (sys.executable, "-m", "edgeqwen")
# A process of its own: a child's peak counts from its fork, and this one holds the hub's file.
_WITH_PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, capture_output=True)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(peak // 1000 if sys.platform == "darwin" else peak)
"""
_PROMPT = "The old bridge leads from one half of the city to the other. " * 50


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    path = options.model.absolute()
    catalogue = load_catalogue(shipped_catalogue(), Path("none"))
    hit = catalogue.recognise(path.stat().st_size, digest_of(path).sha256)
    if hit is None:
        print(f"{path.name} is not a file of the catalogue", file=sys.stderr)
        return 1
    model, variant, file = hit
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        folder = Path(scratch)
        repo = folder / "hub" / (variant.repo or model.repo)
        repo.mkdir(parents=True)
        shutil.copy(path, repo / file.name)
        os.environ.update(EDGEQWEN_HOME=str(folder / "home"), HOME=str(folder))
        with Hub(folder / "hub") as hub:
            os.environ["HF_ENDPOINT"] = hub.url
            ref = f"{model.ref}:{variant.quant}"
            address = f"{variant.repo or model.repo}/resolve/{REVISION}/{file.name}"
            _pulls(hub, ref, address, folder, options.rounds)
            _starts(path, ref, options.rounds)
            _repair(hub, ref, folder / "home", file)
            _fit(ref)
    return 0


def _pulls(hub: Hub, ref: str, path: str, folder: Path, rounds: int) -> None:
    url = f"{hub.url}/{path}"
    _timed(["curl", "-sf", "-o", os.devnull, url])  # the hub reads its file for the first time
    ratios, peaks = [], []
    for number in range(rounds):
        os.sync()
        if number:
            _run("rm", ref, "--yes")
        start = time.perf_counter()
        peaks.append(int(subprocess.check_output([sys.executable, "-c", _WITH_PEAK, *_PROGRAM, "pull", ref])))
        ours = time.perf_counter() - start
        target = folder / "curl.gguf"
        file, address = shlex.quote(str(target)), shlex.quote(url)
        theirs = _timed(["sh", "-c", f"curl -sf -o {file} {address} && sync {file}"])
        target.unlink()
        ratios.append(theirs / ours)
        _tell("pull", seconds=ours, curl_seconds=theirs, of_curls_speed=theirs / ours)
    _tell("pull, median", of_curls_speed=statistics.median(ratios), puller_peak_mb=max(peaks) / 1000)


def _starts(path: Path, ref: str, rounds: int) -> None:
    """Tell the medians of what happens before an answer: the program's start, a file's header, a load."""
    helps = [_timed([*_PROGRAM, "--help"]) for _round in range(rounds)]
    headers = [_seconds(lambda: read_facts(path)) for _round in range(rounds)]
    answers = [_run("run", ref, "x", "--max-tokens", "1", "--json") for _round in range(rounds)]
    loads = [json.loads(answer)["stats"]["load_s"] for answer in answers]
    for what, seconds in (("--help", helps), ("header", headers), ("load", loads)):
        _tell(what, seconds=statistics.median(seconds))


def _repair(hub: Hub, ref: str, home: Path, file: CatalogueFile) -> None:
    [path] = (home / "data" / "models").glob(f"*/*/{file.name}")
    path.chmod(0o644)
    with path.open("r+b") as opened:
        opened.seek(file.size // 3)
        byte = opened.read(1)
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte[0] ^ 1]))
    before = hub.sent
    _run("verify", ref, "--repair")
    is_right = digest_of(path).sha256 == file.sha256
    _tell("repair of one flipped byte", sent_mb=(hub.sent - before) / 1e6, is_right=is_right)


def _fit(ref: str) -> None:
    for n_ctx in (2048, 8192, 32768):
        for kv_type in ("f16", "q8_0"):
            setting = ("--ctx", str(n_ctx), "--kv", kv_type, "--json")
            [row] = json.loads(_run("fit", ref, *setting))["rows"][:1]
            estimated = sum(row["parts_bytes"].values()) - row["parts_bytes"]["correction"]
            answer = json.loads(_run("run", ref, _PROMPT, "--max-tokens", "16", *setting))
            measured = answer["stats"]["rss_bytes"]
            sizes = {"estimated_mb": estimated / 1e6, "measured_mb": measured / 1e6}
            _tell("fit", n_ctx=n_ctx, kv_type=kv_type, ratio=estimated / measured, **sizes)


def _run(*arguments: str) -> str:
    done = subprocess.run([*_PROGRAM, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def _timed(command: list[str]) -> float:
    return _seconds(lambda: subprocess.run(command, check=True, capture_output=True))


def _seconds(do: Callable[[], object]) -> float:
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def _tell(what: str, **figures: str | float) -> None:
    rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in figures.items()}
    print(json.dumps({"what": what, **rounded}), flush=True)


if __name__ == "__main__":
    sys.exit(main())

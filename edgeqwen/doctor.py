"""Looks at what can be wrong before a model answers: Python, the build, memory, disk, store, settings.

Asks no network and changes nothing. Each check is a function from what it needs to a Check.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from edgeqwen import config
from edgeqwen.chat.presets import load_presets
from edgeqwen.engine.protocol import Device, Devices
from edgeqwen.errors import EdgeQwenError
from edgeqwen.machine.cpu import cpu_features, usable_cores
from edgeqwen.machine.health import Check
from edgeqwen.machine.memory import available_bytes
from edgeqwen.machine.monitor import Monitor, Sample, advice
from edgeqwen.models.library import Library
from edgeqwen.models.store import Store
from edgeqwen.models.volume import is_fat

_LEAST_MEMORY = 800_000_000  # bytes: a 0.5B model at q4_k_m with a context of 4,096
_LEAST_DISK = 2_000_000_000  # bytes: one small model and a large chat's KV cache
_LIBRARY = "llama-cpp-python"
# What llama.cpp calls a feature, and what /proc/cpuinfo calls it.
_FEATURES = {
    "AVX": "avx",
    "AVX2": "avx2",
    "FMA": "fma",
    "F16C": "f16c",
    "BMI2": "bmi2",
    "AVX512": "avx512f",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "DOTPROD": "asimddp",
    "MATMUL_INT8": "i8mm",
    "FP16_VA": "asimdhp",
    "SVE": "sve",
}


def examine(library: Library, devices: Devices | EdgeQwenError) -> list[Check]:
    """Run every check. Blocking, about 0.1 s.

    `devices` is the engine's own answer about itself, or why it gave none.
    """
    checks: list[Callable[[], Check]] = [
        check_python,
        check_versions,
        partial(check_build, devices, cpu_features()),
        partial(check_devices, devices, has_nvidia=shutil.which("nvidia-smi") is not None),
        partial(check_cpu, library),
        check_memory,
        partial(check_config, library),
    ]
    found = [check() for check in checks]
    if found[-1].state != "fail":  # the folders that the rest looks into stand in the settings
        found += [check_disk(library.store.root), *check_store(library)]
    return [
        *found,
        check_chats(library),
        check_network(os.environ),
        check_terminal(os.environ),
        *check_now(Monitor().sample(None)),
    ]


def check_python() -> Check:
    """Look at the interpreter."""
    return Check("python", "ok", f"{platform.python_version()}, {sys.executable}")


def check_versions() -> Check:
    """Compare the binding with the one release whose structures we know."""
    says = []
    for name in ("edgeqwen", _LIBRARY, "textual"):
        try:
            says.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            return Check("versions", "fail", f"{name} is not installed", "./scripts/run installs it")
    return Check("versions", "ok", ", ".join(says))


def check_build(devices: Devices | EdgeQwenError, cpu: frozenset[str]) -> Check:
    """Compare what llama.cpp was built for with what this CPU has; `cpu` holds names of /proc/cpuinfo."""
    if isinstance(devices, EdgeQwenError):
        todo = f"see its log; to build it anew: {rebuild_command()}"
        return Check("llama.cpp", "fail", devices.message, todo)
    unused = [name for name, flag in _FEATURES.items() if flag in cpu and name not in devices.features]
    used = ", ".join(name for name in _FEATURES if name in devices.features) or "no vector unit"
    if unused:
        says = f"built for {used}; this CPU also has {', '.join(unused)}"
        return Check(
            "llama.cpp", "warn", says, f"build it for this CPU, it may be faster: {rebuild_command()}"
        )
    return Check("llama.cpp", "ok", f"built for this CPU: {used}")


def rebuild_command(*flags: str) -> str:
    """Return the command that builds llama.cpp for this machine, with more CMake flags if need be."""
    arguments = " ".join(("-DGGML_NATIVE=ON", *flags))
    with suppress(PackageNotFoundError):
        return (
            f"CMAKE_ARGS='{arguments}' {sys.executable} -m pip install --force-reinstall --no-deps "
            f"--no-cache-dir --no-binary {_LIBRARY} {_LIBRARY}=={version(_LIBRARY)}"
        )
    return "./scripts/run"


def check_devices(devices: Devices | EdgeQwenError, *, has_nvidia: bool) -> Check:
    """Say what computes; a GPU that the build leaves idle is a warning."""
    if isinstance(devices, EdgeQwenError):
        return Check("devices", "fail", "the engine could not be asked")
    gpus = [device for device in devices.devices if device.kind in ("gpu", "igpu")]
    if has_nvidia and not gpus:
        todo = f"build it with CUDA: {rebuild_command('-DGGML_CUDA=ON')}"
        return Check("devices", "warn", "there is an NVIDIA GPU, but this build cannot use it", todo)
    return Check("devices", "ok", ", ".join(_device_text(one) for one in gpus) or "CPU")


def _device_text(device: Device) -> str:
    return f"{device.description or device.name}, {_gigabytes(device.free_bytes)} free"


def check_cpu(library: Library) -> Check:
    """Compare the threads that are set with the cores there are."""
    cores = usable_cores()
    wanted = None
    with suppress(EdgeQwenError):
        wanted = library.config.run.threads
    if wanted and wanted > cores:
        todo = "`edgeqwen config unset run.threads` takes as many threads as there are cores"
        return Check("cpu", "warn", f"{cores} cores, but run.threads is {wanted}, which is slower", todo)
    return Check("cpu", "ok", f"{platform.machine()}, {cores} cores for edgeqwen")


def check_memory() -> Check:
    """Say what a model may take."""
    available, swap = available_bytes(), psutil.swap_memory()
    says = f"{_gigabytes(available)} of {_gigabytes(psutil.virtual_memory().total)} available"
    if available < _LEAST_MEMORY:
        todo = "close other programs; the smallest models need about 0.8 GB"
        return Check("memory", "fail" if available < _LEAST_MEMORY // 2 else "warn", says, todo)
    return Check("memory", "ok", says + (f", {_gigabytes(swap.used)} in swap" if swap.used else ""))


def check_config(library: Library) -> Check:
    """Read the settings, the user's catalogue and the presets; the first mistake is told."""
    paths = library.paths
    try:
        config.load(paths.config_file)
        _ = library.catalogue
        load_presets(paths.presets)
    except EdgeQwenError as error:
        return Check("settings", "fail", error.message, "correct the file, or remove it for the defaults")
    return Check("settings", "ok", str(paths.config_file if paths.config_file.exists() else "all defaults"))


def check_disk(folder: Path) -> Check:
    """Say what is free where models go, and whether large files may lie there."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        todo = "`edgeqwen config set store.path FOLDER` puts models elsewhere"
        return Check("disk", "fail", f"{there} cannot be written to", todo)
    if is_fat(there):
        todo = "models above 4 GiB do not fit there; `edgeqwen config set store.path FOLDER` moves the store"
        return Check("disk", "warn", f"{folder} lies on a FAT file system", todo)
    says = f"{_gigabytes(free)} free at {folder}"
    if free < _LEAST_DISK:
        todo = "`edgeqwen du` shows what models take; `edgeqwen prune` removes unfinished downloads"
        return Check("disk", "warn", says, todo)
    return Check("disk", "ok", says)


def check_store(library: Library) -> Iterator[Check]:
    """Look at every installed file's size, at manifests that cannot be read, and at unfinished downloads."""
    store = library.store
    harmed = list(_harmed(store))
    if harmed:
        todo = "`edgeqwen verify --all` says more, `verify --repair` mends what came from a hub"
        yield Check("models", "fail", "; ".join(harmed), todo)
    else:
        refs = [entry.ref for entry in store.entries()]
        yield Check("models", "ok", f"{len(refs)} installed: {', '.join(refs[:4])}{' …' * (len(refs) > 4)}")
    leftovers = store.leftovers()
    if leftovers:
        says = f"{len(leftovers)} unfinished, {_gigabytes(sum(one.size for one in leftovers))}"
        todo = "the same `edgeqwen pull` goes on with a download; `edgeqwen prune` removes them"
        yield Check("downloads", "warn", says, todo)
    else:
        yield Check("downloads", "ok", "none unfinished")


def _harmed(store: Store) -> Iterator[str]:
    for entry in (*store.entries(), *store.shipped()):
        for path, file in zip(entry.paths(), entry.manifest.files, strict=True):
            try:
                size = path.stat().st_size
            except OSError as error:
                yield f"{path.name} of {entry.ref}: {error.strerror}"
            else:
                if size != file.size:
                    yield f"{path.name} of {entry.ref} has {size:,} bytes instead of {file.size:,}"
    for manifest in store.broken_manifests():
        yield f"{manifest} cannot be read"


def check_chats(library: Library) -> Check:
    """Say whether the history is there and can be read, without opening it for writing."""
    import sqlite3

    file = library.paths.chats
    if not file.exists():
        return Check("chats", "ok", "none yet")
    try:
        with sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True) as db:
            db.execute("PRAGMA quick_check(1)")
            n_chats = db.execute("SELECT count(*) FROM chats WHERE deleted IS NULL").fetchone()[0]
    except sqlite3.Error as error:
        todo = "`edgeqwen chat` keeps such a file aside and begins a new one"
        return Check("chats", "fail", f"{file} cannot be read: {error}", todo)
    return Check("chats", "ok", f"{n_chats} in {file}")


def check_network(environment: Mapping[str, str]) -> Check:
    """Say whether the hub may be asked. Nothing is asked here."""
    if environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return Check("network", "ok", "offline: HF_HUB_OFFLINE is set, so `pull` asks nobody")
    endpoint = environment.get("HF_ENDPOINT")
    return Check(
        "network", "ok", f"`pull` asks {endpoint} first" if endpoint else "only `pull` and `search` use it"
    )


def check_terminal(environment: Mapping[str, str]) -> Check:
    """Say what the full-screen chat can show here."""
    term = environment.get("TERM", "")
    stream = sys.__stdout__  # the full screen puts another one in its place
    encoding = (stream.encoding if stream else "").lower().replace("-", "")
    if not stream or not stream.isatty():
        return Check("terminal", "ok", "none: answers go to a pipe or a file")
    if term in ("", "dumb"):
        return Check(
            "terminal", "warn", "it shows lines only", "set TERM, as to xterm-256color, for the full screen"
        )
    if encoding != "utf8":
        todo = "use a UTF-8 locale, such as LANG=C.UTF-8"
        return Check("terminal", "warn", f"its encoding is {encoding}", todo)
    colours = "true colour" if environment.get("COLORTERM") in ("truecolor", "24bit") else "basic colours"
    columns, rows = shutil.get_terminal_size()
    return Check("terminal", "ok", f"{term}, {columns}x{rows}, {colours}")


def check_now(sample: Sample) -> list[Check]:
    """Say what the system's counters warn of right now: swapping, pressure, heat, throttling."""
    return [Check("now", "warn", *warning.split(": ", 1)) for warning in advice(sample)]


def _gigabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB"

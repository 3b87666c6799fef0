"""Looks at what can be wrong before a model answers: Python, the build, memory, disk, store, settings.

Asks no network and changes nothing. Each check is a function from what it needs to a Check.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from edgeqwen import config
from edgeqwen.chat.presets import load_presets
from edgeqwen.chat.sampling import check_setting
from edgeqwen.engine.client import WorkerClient
from edgeqwen.engine.protocol import Device, Devices
from edgeqwen.errors import EdgeQwenError, EngineError, StoreError
from edgeqwen.machine.cpu import cpu_features, usable_cores
from edgeqwen.machine.health import Check
from edgeqwen.machine.memory import available_bytes
from edgeqwen.machine.monitor import Monitor, Sample, advice
from edgeqwen.models.library import Library
from edgeqwen.models.store import Store
from edgeqwen.models.volume import is_fat, nearest_there
from edgeqwen.text import size_text

_LEAST_MEMORY = 800_000_000  # bytes: a 0.5B model at q4_k_m with a context of 4,096
_LEAST_DISK = 2_000_000_000  # bytes: one small model and a large chat's KV cache
_LIBRARY = "llama-cpp-python"
_WITHOUT_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
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
# llama-bench pp256 and tg32, 0.5B and 1.5B at Q4_K_M, 2026-11-25, medians of three: GGML_NATIVE=OFF, which on
# x86 is AVX2, against a native build (docs/laptop.md).
_AVX512_GAIN = "on an AMD EPYC that read prompts 1.3 to 1.5 times as fast, and wrote 1.05 times as fast"


async def examine(library: Library) -> list[Check]:
    """Ask an engine of its own about itself, then run every check; about a second, in the background."""
    devices: Devices | EdgeQwenError
    try:
        async with WorkerClient(library.paths.logs) as client:
            devices = await client.devices()
    except EdgeQwenError as error:
        devices = error
    except OSError as error:
        devices = EngineError(f"the engine cannot be started: {error.strerror}")
    return await asyncio.to_thread(run_checks, library, devices)


def run_checks(library: Library, devices: Devices | EdgeQwenError) -> list[Check]:
    """Run every check. Blocking, about 0.3 s.

    `devices` is the engine's own answer about itself, or why it gave none.
    """
    monitor = Monitor()
    sample = monitor.sample(None)
    checks: dict[str, Callable[[], Check | Iterable[Check]]] = {
        "python": check_python,
        "versions": check_versions,
        "llama.cpp": partial(check_build, devices, cpu_features()),
        "devices": partial(check_devices, devices, [gpu.name for gpu in sample.gpus]),
        "cpu": partial(check_cpu, library),
        "memory": check_memory,
        "settings": partial(check_config, library),
        "disk": partial(check_disk, library),
        "models": partial(check_store, library),
        "chats": partial(check_chats, library),
        "network": partial(check_network, library, os.environ),
        "terminal": partial(check_terminal, os.environ),
        "now": lambda: check_now(sample),
    }
    return [check for name, run in checks.items() for check in _guarded(name, run)]


def _guarded(name: str, run: Callable[[], Check | Iterable[Check]]) -> list[Check]:
    """Return what a check says; one that cannot look is a failure like others, and the rest still looks."""
    try:
        found = run()
        return [found] if isinstance(found, Check) else list(found)
    except EdgeQwenError as error:
        return [Check(name, "fail", error.message)]
    except OSError as error:
        return [Check(name, "fail", f"cannot look: {error.strerror} ({error.filename})")]
    except Exception as error:  # noqa: BLE001 - a fault of ours in one check hides no other
        return [Check(name, "fail", f"cannot look: {type(error).__name__}: {error}")]


def check_python() -> Check:
    """Look at the interpreter."""
    return Check("python", "ok", f"{platform.python_version()}, {sys.executable}")


def check_versions() -> Check:
    """Compare the binding with the one release whose structures we know."""
    try:
        says = ", ".join(f"{name} {version(name)}" for name in ("edgeqwen", _LIBRARY, "textual"))
        wanted = next((one for one in requires("edgeqwen") or () if one.startswith(_LIBRARY)), "")
    except PackageNotFoundError as error:
        return Check("versions", "fail", f"{error.name} is not installed", "./scripts/run installs it")
    if wanted and wanted != f"{_LIBRARY}=={version(_LIBRARY)}":
        return Check("versions", "fail", f"{says}; needed: {wanted}", "./scripts/run installs it")
    return Check("versions", "ok", says)


def check_build(devices: Devices | EdgeQwenError, cpu: frozenset[str]) -> Check:
    """Compare what llama.cpp was built for with what this CPU has; `cpu` holds names of /proc/cpuinfo."""
    if isinstance(devices, EdgeQwenError):
        todo = f"see its log; to build it anew: {rebuild_command()}"
        if isinstance(devices, StoreError):  # llama.cpp was not even asked
            todo = "use a folder you may write to: EDGEQWEN_HOME says which"
        return Check("llama.cpp", "fail", devices.message, todo)
    unused = [name for name, flag in _FEATURES.items() if flag in cpu and name not in devices.features]
    used = ", ".join(name for name in _FEATURES if name in devices.features) or "no special features"
    if "AMX_INT8" in devices.features:
        says = "built with AMX, whose kernels are not reliable; edgeqwen goes without, and without repacking"
        return Check("llama.cpp", "warn", says, f"build it without: {rebuild_command()}")
    if unused:
        says = f"built for {used}; this CPU also has {', '.join(unused)}"
        is_measured = all(name.startswith("AVX512") for name in unused)
        gain = _AVX512_GAIN if is_measured else "it may be faster"
        return Check("llama.cpp", "warn", says, f"build it for this CPU, {gain}: {rebuild_command()}")
    if not cpu:
        return Check("llama.cpp", "ok", f"uses {used}; this system does not tell what else the CPU has")
    return Check("llama.cpp", "ok", f"built for this CPU: {used}")


def rebuild_command(*flags: str) -> str:
    """Return the command that builds llama.cpp for this machine, with more CMake flags if need be.

    In the environment of a checkout that is scripts/run, which keeps the flags. It builds nothing that it has
    built so before, so its record of that goes first; nor where an index has ready-made wheels.
    """
    environment = Path(sys.prefix)
    run = environment.parent / "scripts" / "run"
    if run.is_file() and environment.name == ".venv":
        built, program = shlex.quote(str(environment / "edgeqwen-built")), shlex.quote(str(run))
        cmake = shlex.quote(" ".join(["-DGGML_NATIVE=ON", *flags]))
        return f"rm -f {built}; EDGEQWEN_WHEEL_INDEX= CMAKE_ARGS={cmake} {program} doctor"
    arguments = ["-DGGML_NATIVE=ON", "-DLLAVA_BUILD=OFF", *flags]
    if "amx_int8" in cpu_features():  # scripts/bootstrap.sh says why
        arguments += [f"'-DCMAKE_{language}_FLAGS={_WITHOUT_AMX}'" for language in ("C", "CXX")]
    python, cmake = shlex.quote(sys.executable), shlex.quote(" ".join(arguments))
    anew = f"--force-reinstall --no-deps --no-cache-dir --no-binary {_LIBRARY}"
    with suppress(PackageNotFoundError):
        return f"CMAKE_ARGS={cmake} {python} -m pip install {anew} {_LIBRARY}=={version(_LIBRARY)}"
    return "./scripts/run"


def check_devices(devices: Devices | EdgeQwenError, cards: Sequence[str]) -> Check:
    """Say what computes; one of the system's `cards` that the build leaves idle is a warning."""
    if isinstance(devices, EdgeQwenError):
        return Check("devices", "fail", "the engine could not be asked")
    gpus = [device for device in devices.devices if device.kind in ("gpu", "igpu")]
    if cards and not gpus:
        is_nvidia = not cards[0].startswith("card")  # others are known by the kernel's name alone
        kind, flag = ("CUDA", "-DGGML_CUDA=ON") if is_nvidia else ("Vulkan", "-DGGML_VULKAN=ON")
        says = f"there is a GPU ({cards[0]}), but this build cannot use it"
        return Check("devices", "warn", says, f"build it with {kind}: {rebuild_command(flag)}")
    return Check("devices", "ok", ", ".join(_device_text(one) for one in gpus) or "CPU")


def _device_text(device: Device) -> str:
    return f"{device.description or device.name}, {size_text(device.free_bytes)} free"


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
    says = f"{size_text(available)} of {size_text(psutil.virtual_memory().total)} available"
    if available < _LEAST_MEMORY:
        todo = "close other programs; the smallest models need about 0.8 GB"
        return Check("memory", "fail" if available < _LEAST_MEMORY // 2 else "warn", says, todo)
    return Check("memory", "ok", says + (f", {size_text(swap.used)} in swap" if swap.used else ""))


def check_config(library: Library) -> Check:
    """Read the settings, the user's catalogue and the presets; the first mistake is told."""
    paths = library.paths
    try:
        for name, value in config.load(paths.config_file).sampler.given().items():
            check_setting(f"sampler.{name}", value)
        _ = library.catalogue, library.store
        load_presets(paths.presets)
    except EdgeQwenError as error:
        return Check("settings", "fail", error.message, "correct the file, or remove it for the defaults")
    return Check("settings", "ok", str(paths.config_file if paths.config_file.exists() else "all defaults"))


def check_disk(library: Library) -> Check:
    """Say what is free where models go, and whether large files may lie there."""
    folder = library.store.root
    there = nearest_there(folder)
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        todo = "`edgeqwen config set store.path FOLDER` puts models elsewhere"
        return Check("disk", "fail", f"{there} cannot be written to", todo)
    if is_fat(there):
        todo = "models above 4 GiB do not fit there; `edgeqwen config set store.path FOLDER` moves the store"
        return Check("disk", "warn", f"{folder} lies on a FAT file system", todo)
    says = f"{size_text(free)} free at {folder}"
    if free < _LEAST_DISK:
        todo = "`edgeqwen du` shows what models take; `edgeqwen prune` removes unfinished downloads"
        return Check("disk", "warn", says, todo)
    return Check("disk", "ok", says)


def check_store(library: Library) -> Iterator[Check]:
    """Look at every installed file's size, at manifests that cannot be read, and at unfinished downloads."""
    store = library.store
    harmed = list(_harmed(store))
    if harmed:
        todo = "`edgeqwen verify --all` says more, and with `--repair` it mends what came from a hub"
        yield Check("models", "fail", "; ".join(harmed), todo)
    else:
        refs = [entry.ref for entry in store.entries()]
        yield Check("models", "ok", f"{len(refs)} installed: {', '.join(refs[:4])}{' …' * (len(refs) > 4)}")
    leftovers = store.leftovers()
    if leftovers:
        says = f"{len(leftovers)} unfinished, {size_text(sum(one.size for one in leftovers))}"
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
        # A reader of its own leaves files behind, unless it is told that nobody writes.
        mode = "mode=ro" if file.with_name(f"{file.name}-wal").exists() else "immutable=1"
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?{mode}", uri=True)) as db:
            [(found,)] = db.execute("PRAGMA quick_check(1)").fetchall()
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            n_chats = db.execute("SELECT count(*) FROM chat WHERE deleted IS NULL").fetchone()[0]
    except sqlite3.Error as error:
        todo = "`edgeqwen chat` keeps such a file aside and begins a new one"
        return Check("chats", "fail", f"{file} cannot be read: {error}", todo)
    return Check("chats", "ok", f"{n_chats} in {file}")


def check_network(library: Library, environment: Mapping[str, str]) -> Check:
    """Say whether the hub may be asked. Nothing is asked here."""
    if environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return Check("network", "ok", "offline: HF_HUB_OFFLINE is set, so `pull` asks nobody")
    addresses = (environment.get("HF_ENDPOINT", ""), *library.config.pull.sources)
    try:
        hosts = [urlsplit(one).hostname for one in addresses]
    except ValueError as error:
        return Check("network", "fail", f"{error}: see `edgeqwen config get pull.sources` and HF_ENDPOINT")
    asked = ", ".join(dict.fromkeys(filter(None, hosts)))  # without what may stand before the host: a token
    if not asked:
        return Check("network", "ok", "offline: no hub is among pull.sources")
    return Check("network", "ok", f"not asked now; `pull` and `search` ask {asked}")


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

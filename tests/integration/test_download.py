"""The downloader against a hub that does everything wrong: the right bytes, or a kept part and a reason."""

from __future__ import annotations

import hashlib
import random
import re
import resource
import signal
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeqwen.errors import DownloadError
from edgeqwen.models.digest import CHUNK, Digest, Digests
from edgeqwen.models.download import Wanted, Watch, fetch
from edgeqwen.models.remote import Address
from tests.support.hub import REVISION, Hub

REPO, NAME = "Qwen/Tiny-GGUF", "tiny.gguf"
DATA = b"GGUF" + random.Random(7).randbytes(3_000_000)
WANTED = Wanted(NAME, len(DATA), hashlib.sha256(DATA).hexdigest())


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as hub:
        hub.put(REPO, NAME, DATA)
        yield hub


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "x.part"


def address(hub: Hub, token: str | None = None) -> Address:
    return Address(f"{hub.url}/{REPO}/resolve/{REVISION}/{NAME}", token)


class Notes:
    """A watch that remembers what it is told and never waits."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.troubles: list[str] = []
        self.held: list[int] = []
        self.watch = Watch(self.held.append, self.troubles.append, self.waits.append)


def get(hub: Hub, part: Path, notes: Notes | None = None) -> Digests:
    return fetch(WANTED, [address(hub)], part, (notes or Notes()).watch)


def ranges(hub: Hub) -> list[str | None]:
    return [seen.range for seen in hub.seen]


def test_a_file_comes_with_its_digests(hub: Hub, part: Path) -> None:
    notes = Notes()
    fetched = get(hub, part, notes)
    assert part.read_bytes() == DATA
    assert fetched == Digests(WANTED.sha256, (zlib.crc32(DATA),))
    assert notes.held[-1] == len(DATA)
    assert ranges(hub) == [None]


@pytest.mark.parametrize("kind", ["drop", "truncate"])
def test_a_cut_line_goes_on_at_the_very_byte(hub: Hub, part: Path, kind: str) -> None:
    hub.fail(NAME, kind, at=1_234_567)
    get(hub, part)
    assert part.read_bytes() == DATA
    first, second = ranges(hub)
    assert first is None
    if kind == "truncate":  # a reset may take bytes along that were still on their way
        assert second == "bytes=1234567-"
    assert re.fullmatch(r"bytes=[1-9]\d*-", second or "")
    assert hub.sent <= len(DATA) + 1_234_567


def test_a_part_of_an_earlier_run_is_gone_on_with(hub: Hub, part: Path) -> None:
    part.write_bytes(DATA[:2_000_001])
    get(hub, part)
    assert part.read_bytes() == DATA
    assert ranges(hub) == ["bytes=2000001-"]


def test_a_whole_part_needs_no_line(part: Path) -> None:
    part.write_bytes(DATA)
    nobody = Address("http://127.0.0.1:9/x")
    assert fetch(WANTED, [nobody], part, Notes().watch).sha256 == WANTED.sha256


def test_a_part_that_is_too_long_is_no_part(hub: Hub, part: Path) -> None:
    part.write_bytes(DATA + b"x")
    get(hub, part)
    assert part.read_bytes() == DATA


def test_a_wrong_part_is_found_out_and_replaced(hub: Hub, part: Path) -> None:
    part.write_bytes(b"GGUF" + bytes(1_000_000))
    notes = Notes()
    get(hub, part, notes)
    assert part.read_bytes() == DATA
    assert ranges(hub) == ["bytes=1000004-", None]
    assert "the bytes are wrong" in notes.troubles[0]


def test_one_source_goes_on_where_another_stopped(hub: Hub, part: Path, tmp_path: Path) -> None:
    hub.fail(NAME, "truncate", at=1_000_000)
    hub.fail(NAME, "status", at=404)
    with Hub(tmp_path / "hub") as other:
        mirror = Address(f"{other.url}/models/{REPO}/resolve/master/{NAME}")
        fetch(WANTED, [address(hub), mirror], part, Notes().watch)
        assert ranges(other) == ["bytes=1000000-"]
    assert part.read_bytes() == DATA


def test_a_flipped_byte_costs_one_more_download(hub: Hub, part: Path) -> None:
    hub.fail(NAME, "corrupt", at=1_500_000)
    get(hub, part)
    assert part.read_bytes() == DATA
    assert ranges(hub) == [None, None]


def test_bytes_that_stay_wrong_are_an_error_with_both_hashes(hub: Hub, part: Path) -> None:
    hub.fail(NAME, "corrupt", at=1_500_000, times=2)
    with pytest.raises(DownloadError, match=f"not {WANTED.sha256[:12]}…\\), twice"):
        get(hub, part)
    assert not part.exists()


@pytest.mark.parametrize(
    ("kind", "at", "words"),
    [
        ("short", 1000, "has 1000 bytes instead of"),
        ("long", 5, "bytes instead of"),
        ("html", 0, "HTML page"),
        ("packed", 0, "packed"),
        ("status", 401, "HF_TOKEN"),
        ("status", 403, "licence"),
        ("status", 404, "no such file"),
        ("status", 418, "answers 418"),
    ],
)
def test_what_will_not_get_better_is_given_up_at_once(
    hub: Hub, part: Path, kind: str, at: int, words: str
) -> None:
    hub.fail(NAME, kind, at=at, times=9)
    with pytest.raises(DownloadError, match=words):
        get(hub, part)
    assert len(hub.seen) == 1
    assert not part.exists() or part.stat().st_size == 0


@pytest.mark.parametrize("kind", ["badrange", "short", "html"])
def test_a_wrong_answer_to_a_range_leaves_the_part_alone(hub: Hub, part: Path, kind: str) -> None:
    part.write_bytes(DATA[:500_000])
    hub.fail(NAME, kind, at=700_000)
    with pytest.raises(DownloadError):
        get(hub, part)
    assert part.read_bytes() == DATA[:500_000]
    get(hub, part)
    assert part.read_bytes() == DATA


def test_rubbish_costs_no_byte_that_is_held(hub: Hub, part: Path) -> None:
    part.write_bytes(DATA[:2_000_001])
    hub.put(REPO, NAME, b"busy" + DATA[4:])
    hub.fail(NAME, "norange")
    with pytest.raises(DownloadError):
        get(hub, part)
    assert part.read_bytes() == DATA[:2_000_001]


def test_a_server_without_ranges_starts_over(hub: Hub, part: Path) -> None:
    part.write_bytes(DATA[:500_000])
    hub.fail(NAME, "norange")
    get(hub, part)
    assert part.read_bytes() == DATA


def test_another_file_behind_the_same_name_is_refused(hub: Hub, part: Path) -> None:
    """The file is replaced between two ranges by one of the same size: the sha256 decides."""
    hub.fail(NAME, "truncate", at=1_000_000)
    other = b"GGUF" + random.Random(8).randbytes(3_000_000)

    class Swap(Notes):
        pass

    notes = Swap()
    notes.watch.wait = lambda _: hub.put(REPO, NAME, other)
    with pytest.raises(DownloadError, match="the bytes are wrong"):
        get(hub, part, notes)
    assert not part.exists()


@pytest.mark.parametrize(
    ("headers", "wait"), [({"Retry_After": "7"}, 7.0), ({"RateLimit": '"api";r=0;t=4'}, 5.0), ({}, 0.0)]
)
@pytest.mark.parametrize("code", [429, 503])
def test_a_busy_server_is_asked_again_when_it_says(
    hub: Hub, part: Path, code: int, headers: dict[str, str], wait: float
) -> None:
    hub.fail(NAME, "status", at=code, **headers)
    notes = Notes()
    get(hub, part, notes)
    assert part.read_bytes() == DATA
    (waited,) = notes.waits
    assert waited == wait or (not headers and waited <= 2)


def test_a_server_that_stays_busy_is_given_up_and_the_part_kept(hub: Hub, part: Path) -> None:
    part.write_bytes(DATA[:500_000])
    hub.fail(NAME, "status", at=503, times=99)
    notes = Notes()
    with pytest.raises(DownloadError, match="it answers 503, 6 times in a row") as caught:
        get(hub, part, notes)
    assert caught.value.retryable
    assert part.read_bytes() == DATA[:500_000]
    assert len(hub.seen) == 6
    assert notes.waits == sorted(notes.waits) or max(notes.waits) <= 30


def test_nobody_at_home(part: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = Address(f"http://127.0.0.1:{free.getsockname()[1]}/x")
        with pytest.raises(DownloadError, match="refused"):
            fetch(WANTED, [nobody], part, Notes().watch)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "nonsense"])
def test_other_kinds_of_address_are_not_opened(part: Path, url: str) -> None:
    with pytest.raises((DownloadError, ValueError)):
        fetch(WANTED, [Address(url)], part, Notes().watch)


def test_a_cut_line_two_hundred_times(hub: Hub, part: Path) -> None:
    chance = random.Random(3)
    for _ in range(200):
        hub.fail(NAME, chance.choice(["drop", "truncate"]), at=chance.randrange(1, len(DATA) // 110))
    get(hub, part)
    assert part.read_bytes() == DATA
    assert hub.sent < 1.2 * len(DATA)
    assert len(hub.seen) >= 200 or hub.sent == len(DATA)


def test_an_expired_link_is_asked_for_anew(tmp_path: Path, part: Path) -> None:
    with Hub(tmp_path / "hub", with_cdn=True) as hub:
        hub.put(REPO, NAME, DATA)
        hub.fail(NAME, "truncate", at=1_000_000)
        hub.fail(NAME, "status", at=403)
        get(hub, part)
        assert part.read_bytes() == DATA
        assert [seen.origin for seen in hub.seen] == ["hub", "cdn"] * 3


def test_the_token_stays_with_its_host(tmp_path: Path, part: Path) -> None:
    with Hub(tmp_path / "hub", with_cdn=True, token="secret") as hub:
        hub.put(REPO, NAME, DATA)
        fetch(WANTED, [address(hub, "secret")], part, Notes().watch)
        assert [(seen.origin, seen.token) for seen in hub.seen] == [("hub", "Bearer secret"), ("cdn", None)]


def test_stopping_keeps_every_byte(hub: Hub, part: Path) -> None:
    def stop(held: int) -> None:
        if held > 1_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(WANTED, [address(hub)], part, Watch(on_bytes=stop))
    kept = part.read_bytes()
    assert len(kept) > 1_000_000
    assert DATA.startswith(kept)


def test_chunks_are_cut_at_16_mib() -> None:
    digest = Digest()
    data = random.Random(1).randbytes(CHUNK * 2 + 5)
    for start in range(0, len(data), 999_983):
        digest.update(data[start : start + 999_983])
    assert digest.finish() == Digests(
        hashlib.sha256(data).hexdigest(),
        tuple(zlib.crc32(data[n : n + CHUNK]) for n in range(0, len(data), CHUNK)),
    )


def test_a_line_that_falls_silent_is_given_up_and_gone_on_with(
    hub: Hub, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeqwen.models.remote._TIMEOUT_S", 0.3)
    hub.fail(NAME, "stall", at=1_000_000)
    try:
        get(hub, part)
    finally:
        hub.stalled.set()
    assert part.read_bytes() == DATA
    assert hub.sent <= len(DATA) + (1 << 16)


def test_a_dripping_line_is_watched_byte_by_byte(hub: Hub, part: Path) -> None:
    hub.fail(NAME, "slow", at=1_000)
    notes = Notes()
    get(hub, part, notes)
    assert part.read_bytes() == DATA
    assert len(notes.held) > 3
    assert notes.held == sorted(notes.held)


@pytest.mark.parametrize("etag", ['"../../../etc/passwd"', '"' + "0" * 5000 + '"', "W/\x1b[2J"])
def test_an_etag_means_nothing(hub: Hub, part: Path, etag: str) -> None:
    hub.fail(NAME, "etag", ETag=etag)
    get(hub, part)
    assert part.read_bytes() == DATA
    assert [path.name for path in part.parent.iterdir() if path.is_file()] == [part.name]


def test_a_disk_that_fills_keeps_what_it_took(hub: Hub, part: Path) -> None:
    """The kernel refuses writes beyond a limit, as a full disk does; wherever it is, the part is good."""
    rng = random.Random(3)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for limit in sorted(rng.sample(range(1, len(DATA)), 12)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            with pytest.raises(OSError, match="File too large"):
                get(hub, part)
            held = part.read_bytes()
            assert len(held) <= limit
            assert DATA.startswith(held)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    get(hub, part)
    assert part.read_bytes() == DATA
    assert hub.sent < 2 * len(DATA) + 12 * (1 << 22)

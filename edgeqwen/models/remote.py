"""Opens a stretch of a remote file over HTTP and says whether another try makes sense.

The one place that opens a connection. Checks that the answer is the stretch that was asked for; knows nothing
of hashes, files on disk or models. Standard library only: its reads are the fastest, and proxies and
certificates come from the system.
"""

from __future__ import annotations

import http.client
import re
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPMessage
from types import TracebackType
from typing import IO
from urllib.parse import urlsplit

from edgeqwen.text import clean_line

_TIMEOUT_S = 30.0
_LONGEST_START_S = 120.0  # for a listing, or the head of a file
_AGENT = "edgeqwen"
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_READ = 1 << 20


class TryAgain(Exception):
    """The line or the server failed for now."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        """How long the server asks to wait; None when it does not say."""


class Refused(Exception):
    """This address will not give the file, however often it is asked."""


@dataclass(frozen=True)
class Address:
    """Where a file may be had."""

    url: str
    token: str | None = None
    """Sent to the url's own host only."""

    @property
    def host(self) -> str:
        """The part of the address that is shown to people."""
        return clean_line(urlsplit(self.url).netloc, 80)


class Body:
    """The bytes of one answer, from `start` on; a context manager."""

    def __init__(self, answer: http.client.HTTPResponse, start: int) -> None:
        self._answer = answer
        self.start = start
        """Where the stretch begins: as asked, or 0 when the server sends the whole file."""

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._answer.close()

    def read(self) -> bytes:
        """Return what has come, at most 1 MiB, or nothing at the end. Raises TryAgain."""
        try:
            return self._answer.read1(_READ)
        except (OSError, http.client.HTTPException) as error:
            raise TryAgain(_reason(error)) from error


def open_stretch(address: Address, start: int, size: int, end: int | None = None) -> Body:
    """Ask for the bytes from `start` to before `end` (None: to the last) of a file of `size` bytes. Blocking.

    Raises TryAgain or Refused; then nothing of the answer may be used.
    """
    answer = _open(address, start, end)
    try:
        begins = _check(answer, start, size, size if end is None else end)
    except Refused:
        answer.close()
        raise
    return Body(answer, begins)


def read_start(address: Address, n_bytes: int, timeout_s: float = _TIMEOUT_S) -> tuple[bytes, int | None]:
    """Return the first bytes of a file and the size of the whole, where the server says it. Blocking.

    Raises TryAgain or Refused.
    """
    with _open(address, 0, n_bytes, timeout_s) as answer:
        deadline = time.monotonic() + timeout_s + _LONGEST_START_S
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        total = match[3] if match else answer.headers.get("Content-Length", "")
        try:
            return _read_until(answer, n_bytes, deadline), int(total) if re.fullmatch(
                r"[0-9]{1,15}", total
            ) else None
        except (OSError, http.client.HTTPException) as error:
            raise TryAgain(_reason(error)) from error


def _read_until(answer: http.client.HTTPResponse, n_bytes: int, deadline: float) -> bytes:
    """Return the first bytes of an answer. Raises TryAgain when they take too long in all."""
    gathered = bytearray()
    while len(gathered) < n_bytes and (data := answer.read1(min(_READ, n_bytes - len(gathered)))):
        gathered += data
        if time.monotonic() > deadline:
            raise TryAgain("it answers too slowly")
    return bytes(gathered)


def _open(
    address: Address, start: int, end: int | None, timeout_s: float | None = None
) -> http.client.HTTPResponse:
    _refuse_socks(address)
    headers = {"User-Agent": _AGENT, "Accept-Encoding": "identity"}
    if start or end is not None:
        headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
    request = urllib.request.Request(address.url, headers=headers)
    if address.token:
        request.add_unredirected_header("Authorization", f"Bearer {address.token}")
    try:
        answer = _opener().open(request, timeout=timeout_s or _TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(error, address) from error
    except (OSError, http.client.HTTPException) as error:
        raise _failure(error) from error
    except ValueError as error:  # also of a redirect: an address that is none, a host that cannot be a name
        raise Refused("its address cannot be used, or it redirects to one that cannot") from error
    assert isinstance(answer, http.client.HTTPResponse)
    return answer


def _refuse_socks(address: Address) -> None:
    """Raise Refused where the settings want a kind of proxy that this program would silently go around."""
    proxies = urllib.request.getproxies()
    parts = urlsplit(address.url)
    proxy = proxies.get(parts.scheme) or proxies.get("all") or ""
    if proxy.lower().startswith("socks") and not urllib.request.proxy_bypass(parts.hostname or ""):
        raise Refused("the proxy settings name a SOCKS proxy; only HTTP proxies are supported (HTTPS_PROXY)")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, never from https to http. The token is an unredirected header and stays behind."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            raise urllib.error.HTTPError(newurl, 495, "redirected to an unsafe address", headers, fp)
        followed = super().redirect_request(req, fp, code, msg, headers, newurl)
        if followed is not None and "Range" in req.headers:
            followed.add_header("Range", req.headers["Range"])
        return followed


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener for http and https and nothing else: no file:, no ftp:, no data:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _check(answer: http.client.HTTPResponse, start: int, size: int, end: int) -> int:
    """Return where the body begins. Raises Refused when it is not the stretch that was asked for."""
    headers = answer.headers
    if headers.get("Content-Encoding", "identity") != "identity":
        raise Refused("it sends the file packed, which was not asked for")
    if headers.get_content_type() == "text/html":
        raise Refused("it answers with an HTML page; a login page or a proxy may stand in between")
    if answer.status == 206:
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        if match is None or (int(match[1]), int(match[2])) != (start, end - 1):
            raise Refused("it sends another part of the file than was asked for")
        if match[3] not in ("*", str(size)):
            raise Refused(f"its file has {int(match[3]):,} bytes instead of {size:,}")
        return start
    length = headers.get("Content-Length")
    if length is not None and length != str(size):
        raise Refused(f"its file has {clean_line(length, 20)} bytes instead of {size}")
    return 0


def _refusal(error: urllib.error.HTTPError, address: Address) -> TryAgain | Refused:
    """Say what a status means. Source of the codes: the hub's error headers, RFC 9110."""
    code = error.code
    if code in _BUSY:
        return TryAgain(f"it answers {code}", _wait_s(error.headers))
    was_redirected = urlsplit(error.url or "").netloc != urlsplit(address.url).netloc
    if code == 403 and was_redirected:
        return TryAgain("the address it gave has expired")  # the next try gets a fresh one
    if code == 416:
        return Refused("its file ends before the part that was asked for")
    words = {
        401: "it wants a token (set HF_TOKEN), or there is no such repository",
        403: "the licence must be accepted on its web page first, or the token does not allow it",
        404: "it has no such file",
        410: "the file is gone",
        495: "it redirects to an address without encryption",
    }
    return Refused(words.get(code, f"it answers {code}"))


def _failure(error: Exception) -> TryAgain | Refused:
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return Refused(f"its certificate cannot be trusted: {clean_line(reason.verify_message)}")
    if isinstance(error, urllib.error.URLError) and isinstance(reason, str):
        return Refused(clean_line(reason))
    return TryAgain(_reason(reason))


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "nothing came for too long"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return clean_line(str(text))


def _wait_s(headers: Message) -> float | None:
    """Return the wait a server asks for: RateLimit's t, else Retry-After in seconds; at most ten minutes."""
    limit = re.search(r"\bt=(\d{1,6})", headers.get("RateLimit", ""))
    after = headers.get("Retry-After", "")
    if limit:
        return min(int(limit[1]) + 1.0, 600.0)
    return min(float(after), 600.0) if re.fullmatch(r"[0-9]{1,6}", after) else None

"""Signs and checks bytes in minisign's format, so that `minisign -V` can check our bundles without us.

Pure bytes and texts; knows no files and no bundles.
Source of the format: https://jedisct1.github.io/minisign/ (Ed25519 over BLAKE2b-512).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edgeqwen.errors import InvalidInput, StoreError
from edgeqwen.text import clean_line

_ID_BYTES, _KEY_BYTES, _SIGNATURE_BYTES = 8, 32, 64


@dataclass(frozen=True)
class PublicKey:
    """A key that signatures are checked with."""

    id: bytes
    """8 bytes that name the key; they prove nothing."""
    key: bytes

    def __str__(self) -> str:
        return base64.b64encode(b"Ed" + self.id + self.key).decode()

    @property
    def name(self) -> str:
        """The id as minisign prints it."""
        return self.id[::-1].hex().upper()


@dataclass(frozen=True)
class SecretKey:
    """A key to sign with; keep it to yourself."""

    id: bytes
    seed: bytes

    @classmethod
    def new(cls) -> SecretKey:
        """Return a new random key, from the system's source."""
        return cls(secrets.token_bytes(_ID_BYTES), secrets.token_bytes(_KEY_BYTES))

    @classmethod
    def parse(cls, text: str) -> SecretKey:
        """Read what `str` has written. Raises InvalidInput."""
        raw = _decode(text, _ID_BYTES + _KEY_BYTES, "secret key")
        return cls(raw[:_ID_BYTES], raw[_ID_BYTES:])

    def __str__(self) -> str:
        return base64.b64encode(self.id + self.seed).decode()

    def public(self) -> PublicKey:
        """The key that checks what this one signs."""
        return PublicKey(self.id, self._private().public_key().public_bytes_raw())

    def sign(self, data: bytes, comment: str) -> str:
        """Return the text of a signature file; `comment` is signed along with the data."""
        private = self._private()
        signature = private.sign(hashlib.blake2b(data).digest())
        of_all = private.sign(signature + comment.encode())
        head = base64.b64encode(b"ED" + self.id + signature).decode()
        tail = base64.b64encode(of_all).decode()
        return f"untrusted comment: signature of edgeqwen\n{head}\ntrusted comment: {comment}\n{tail}\n"

    def _private(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)


def parse_public(text: str) -> PublicKey:
    """Read a public key: its base64 text, or a .pub file with a comment above. Raises InvalidInput."""
    lines = [line for line in text.strip().splitlines() if not line.startswith("untrusted comment:")]
    raw = _decode(lines[0] if len(lines) == 1 else "", 2 + _ID_BYTES + _KEY_BYTES, "public key")
    if raw[:2] != b"Ed":
        raise InvalidInput("this is no minisign public key")
    return PublicKey(raw[2 : 2 + _ID_BYTES], raw[2 + _ID_BYTES :])


def key_id(signature: str) -> bytes | None:
    """Return the id of the key that a signature says it was made with; None when it is no signature."""
    try:
        return base64.b64decode(signature.splitlines()[1], validate=True)[2:10]
    except (IndexError, binascii.Error, ValueError):
        return None


def check(data: bytes, signature: str, trusted: list[PublicKey]) -> tuple[PublicKey, str]:
    """Return the trusted key that signed `data`, and the signed comment. Raises StoreError."""
    if not signature:
        raise _untrusted("it is not signed")
    lines = signature.splitlines()
    if len(lines) < 4 or not lines[2].startswith("trusted comment: "):
        raise _untrusted("its signature is no minisign signature")
    head = _decode(lines[1], 2 + _ID_BYTES + _SIGNATURE_BYTES, "signature")
    of_all = _decode(lines[3], _SIGNATURE_BYTES, "signature")
    comment = lines[2].removeprefix("trusted comment: ")
    if head[:2] != b"ED":
        raise _untrusted("its signature is of an older kind; sign it again")
    key = next((key for key in trusted if key.id == head[2:10]), None)
    if key is None:
        name = PublicKey(head[2:10], b"").name
        raise _untrusted(f"it is signed by the key {name}, which is not trusted here")
    public = Ed25519PublicKey.from_public_bytes(key.key)
    try:
        public.verify(head[10:], hashlib.blake2b(data).digest())
        public.verify(of_all, head[10:] + comment.encode())
    except InvalidSignature:
        raise _untrusted("its signature is wrong: it was changed after it was signed") from None
    return key, clean_line(comment)


def _decode(text: str, length: int, what: str) -> bytes:
    try:
        raw = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != length:
        raise InvalidInput(f"this is no minisign {what}")
    return raw


def _untrusted(reason: str) -> StoreError:
    return StoreError(f"the bundle cannot be trusted: {reason}", cause="untrusted")

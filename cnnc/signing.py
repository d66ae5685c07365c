"""Signatures: HMACs under a key that this user has in the configuration directory."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

from cnnc.diagnostics import error
from cnnc.files import io_error


def sign(text: bytes) -> bytes:
    """The signature of a text under this user's key, which is made if there is none. CnncError as of `signed_here`."""
    return _hmac(_key(create=True), text)


def signed_here(text: bytes, signature: bytes) -> bool:
    """Whether this user signed the text. CnncError E0711 for a key that others can read, E0901 where the system does
    not let it be read."""
    key = _key(create=False)
    return bool(key) and hmac.compare_digest(signature, _hmac(key, text))


def _hmac(key: bytes, text: bytes) -> bytes:
    return hmac.new(key, text, hashlib.sha256).hexdigest().encode()


def _key(*, create: bool) -> bytes:
    """This user's signing key, b"" if there is none and `create` is not set; E0711 if others can read it."""
    path = _key_path()
    try:
        if create and not path.exists():
            _make_key(path)
        if not path.exists():
            return b""
        if path.stat().st_mode & 0o077:
            raise error("E0711", f"others can read your signing key `{path}`", help=f"remove it: `rm {path}`")
        return path.read_bytes()
    except OSError as e:
        raise io_error("write" if create else "read", path, e) from e


def _key_path() -> Path:
    try:
        base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    except RuntimeError:
        raise error("E0901", "you have no home directory for a signing key", help="set XDG_CONFIG_HOME") from None
    return Path(base) / "cnnc" / "key"


def _make_key(path: Path) -> None:
    """Write a new key in one step, so that of two processes both read the same one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{secrets.token_hex(6)}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()

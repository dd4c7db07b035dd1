"""Access tokens: 256 random bits each, kept as a scrypt hash, compared in constant time, with a role.

The file is JSON, readable by its owner alone. A token is `autofit_<name>_<secret>`; it is shown once, when it is made.
"""

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from autofit.config.base import Frozen
from autofit.errors import UsageError

Role = Literal["read", "write"]
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_TOKEN = re.compile(r"autofit_([a-z0-9][a-z0-9-]{0,31})_([A-Za-z0-9_-]{43})")
_COST = {"n": 2**14, "r": 8, "p": 1, "dklen": 32}
"""scrypt's, OWASP's least but one: 16 MiB and some 50 ms. The secret is random, so that none can be guessed anyway."""
_REMEMBERED = 1024


@dataclass(frozen=True)
class Caller:
    """Who asks."""

    name: str
    role: Role

    def may(self, role: Role) -> bool:
        """Whether it has that role; who may write may read."""
        return self.role in {"write", role}


class _Entry(Frozen):
    role: Role
    salt: str
    hash: str


_FILE = TypeAdapter(dict[str, _Entry])


def add(file: Path, name: str, role: Role) -> str:
    """Makes a token and returns it.

    Raises:
        UsageError: an impossible or taken name, or a file that cannot be read or written.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"token name {name!r}: small letters, digits and -, at most 32")
    entries = _read(file)
    if name in entries:
        raise UsageError(f"there is a token '{name}' already; revoke it first or choose another name")
    secret, salt = secrets.token_urlsafe(32), secrets.token_bytes(16)
    entries[name] = _Entry(role=role, salt=_text(salt), hash=_text(_hash(secret, salt)))
    _write(file, entries)
    return f"autofit_{name}_{secret}"


def listed(file: Path) -> dict[str, Role]:
    """Name -> role of every token."""
    return {name: entry.role for name, entry in _read(file).items()}


def revoke(file: Path, name: str) -> None:
    """Takes a token back; a running server notices.

    Raises:
        UsageError: there is none of that name.
    """
    entries = _read(file)
    if entries.pop(name, None) is None:
        raise UsageError(f"there is no token '{name}'; there are: {', '.join(entries) or 'none'}")
    _write(file, entries)


class Keeper:
    """Recognises tokens. The file is read again when it changes; tokens that were right are remembered by their digest."""

    def __init__(self, file: Path) -> None:
        """
        Raises:
            UsageError: the file cannot be read.
        """
        self._file = file
        self._stamp: tuple[int, int] | None = None
        self._entries: dict[str, _Entry] = {}
        self._known: OrderedDict[bytes, Caller] = OrderedDict()
        self._lock = threading.Lock()
        self._refresh()

    def recognise(self, token: str) -> Caller | None:
        """Whose token it is; None: nobody's."""
        match = _TOKEN.fullmatch(token)
        if match is None:
            return None
        self._refresh()
        digest = hashlib.sha256(token.encode()).digest()
        with self._lock:
            if (known := self._known.get(digest)) is not None:
                return known
        entry = self._entries.get(match[1])
        salt = base64.b64decode(entry.salt) if entry else b"nobody's salt..."
        expected = base64.b64decode(entry.hash) if entry else bytes(32)
        if not hmac.compare_digest(_hash(match[2], salt), expected) or entry is None:
            return None
        caller = Caller(match[1], entry.role)
        with self._lock:
            self._known[digest] = caller
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return caller

    def _refresh(self) -> None:
        try:
            status = self._file.stat()
        except OSError:
            entries, stamp = {}, None
        else:
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp == self._stamp:
                return
            entries = _read(self._file)
        with self._lock:
            self._entries, self._stamp = entries, stamp
            self._known.clear()


def _hash(secret: str, salt: bytes) -> bytes:
    return hashlib.scrypt(secret.encode(), salt=salt, maxmem=64 * 1024**2, **_COST)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _read(file: Path) -> dict[str, _Entry]:
    if not file.exists():
        return {}
    try:
        return _FILE.validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise UsageError(f"{file}: is no file of tokens ({' '.join(str(error).split())[:200]})") from error


def _write(file: Path, entries: dict[str, _Entry]) -> None:
    temporary = file.with_name(f".{file.name}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            json.dump({name: entry.model_dump() for name, entry in entries.items()}, stream, indent=1)
        temporary.replace(file)
    except OSError as error:
        raise UsageError(f"{file}: cannot be written ({error.strerror or error})") from error

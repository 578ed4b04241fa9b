"""API keys and their limits.

Keys come from the environment variable `PROFUSER_API_KEYS` (separated by commas) or from a YAML file, a list of

    - sk-a-key-of-sixteen-or-more            # or with a name for logs and metrics, and separate limits:
    - {name: alice, key: sk-another-secret-key, concurrency: 4, max_tokens: 512}

The file is reloaded when it changes: keys can be added and removed without a restart.
"""

import hashlib
import hmac
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, StringConstraints, ValidationError

from profuser.errors import UserError
from profuser.serving.options import Limits

ENVIRONMENT = "PROFUSER_API_KEYS"
SHORTEST_KEY = 16
"""Minimum number of characters: a shorter key can be guessed."""

Secret = Annotated[str, StringConstraints(min_length=SHORTEST_KEY, pattern=r"^[\x21-\x7e]+$")]


class KeyEntry(Limits):
    """A key in a file, with its own limits; the server's limits apply to those it does not set."""

    key: Secret
    name: str = Field(default="", pattern=r"^[A-Za-z0-9._@-]*$")


@dataclass(frozen=True)
class Client:
    """A client: the name for logs and metrics, never the key, and its limits."""

    name: str
    limits: Limits


@dataclass
class KeyRing:
    """The currently valid keys.

    Args:
        file: YAML list, or None.
        limits: of keys that set none.

    Raises:
        UserError: there is no key, or the file is invalid.
    """

    file: Path | None
    limits: Limits
    _stamp: tuple[int, ...] | None = None
    _clients: dict[bytes, Client] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Loads all keys; any error is raised."""
        self._load()
        if not self._clients:
            raise UserError(
                f"serve: no API key: set {ENVIRONMENT}, or give --keys FILE; or --insecure, for clients on this machine only"
            )

    def find(self, authorization: str | None) -> Client | None:
        """Returns the client with this `Authorization: Bearer KEY`, or None. The time taken does not depend on the key."""
        self._reload()
        scheme, _, key = (authorization or "").partition(" ")
        given, found = _digest(key.strip()), None
        for digest, client in self._clients.items():
            if hmac.compare_digest(digest, given):
                found = client
        return found if scheme.lower() == "bearer" else None

    def _reload(self) -> None:
        """Reloads the file if it has changed; an invalid file leaves the keys unchanged and is reported once."""
        if self.file and self._stamp != _stamp(self.file):
            try:
                self._load()
            except UserError as error:
                print(f"{error}; the keys are unchanged", flush=True)

    def _load(self) -> None:
        keys = [key.strip() for key in os.environ.get(ENVIRONMENT, "").split(",") if key.strip()]
        entries = [(f"{ENVIRONMENT}: key {number}", key) for number, key in enumerate(keys, 1)]
        if self.file:
            self._stamp = _stamp(self.file)  # before reading: a change in between is noticed next time
            entries += [(f"{self.file}: key {number}", entry) for number, entry in enumerate(_read(self.file), 1)]
        clients: dict[bytes, Client] = {}
        for where, entry in entries:
            parsed = _entry(entry, f"serve: {where}")
            own = parsed.model_dump(include=parsed.model_fields_set - {"key", "name"})
            name = parsed.name or f"key-{_digest(parsed.key).hex()[:6]}"
            clients[_digest(parsed.key)] = Client(name, self.limits.model_copy(update=own))
        self._clients = clients


def _entry(entry: Any, where: str) -> KeyEntry:
    try:
        return KeyEntry.model_validate({"key": entry} if isinstance(entry, str) else entry)
    except ValidationError as error:
        first = error.errors()[0]
        name, what = first["loc"][0] if first["loc"] else "it", first["msg"]
        # Never show a key, which pydantic's message may repeat, nor an unknown field's name, which may be a key.
        if name == "key":
            what = f"a key must have {SHORTEST_KEY} or more visible characters"
        elif name not in KeyEntry.model_fields and name != "it":
            name, what = "it", f"unknown field; allowed: {', '.join(KeyEntry.model_fields)}"
        raise UserError(f"{where}: {name}: {what}") from None


def _read(file: Path) -> list[Any]:
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"serve: {file}: no such file of API keys") from None
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise UserError(f"serve: {file}: cannot be read as YAML ({type(error).__name__})") from None
    if not isinstance(entries, list):
        raise UserError(f"serve: {file}: expected a list of keys: `- sk-...` on each line")
    return entries


def _stamp(file: Path) -> tuple[int, ...] | None:
    """Returns a stamp that differs after every change, even to a file of the same age and size; None if there is no file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns, found.st_mtime_ns, found.st_size


def _digest(key: str) -> bytes:
    """Hashes a key to a fixed length, so that the time of a comparison does not depend on it."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()

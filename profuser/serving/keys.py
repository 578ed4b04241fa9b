"""API keys: who may ask, and for how much.

A key comes from the environment variable `PROFUSER_API_KEYS` (several with commas between) or from a YAML file, a list of

    - sk-a-key-of-sixteen-or-more            # or with a name for logs and metrics, and limits of its own:
    - {name: alice, key: sk-another-secret-key, concurrency: 4, max_tokens: 512}

The file is read again when it changes: keys come and go without a restart.
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
"""Characters: a shorter one can be guessed."""

Secret = Annotated[str, StringConstraints(min_length=SHORTEST_KEY, pattern=r"^[\x21-\x7e]+$")]


class KeyEntry(Limits):
    """A key in a file, with its own limits; those that it does not name are the server's."""

    key: Secret
    name: str = Field(default="", pattern=r"^[A-Za-z0-9._@-]*$")


@dataclass(frozen=True)
class Client:
    """Who asks: the name that goes into logs and metrics, never the key."""

    name: str
    limits: Limits


@dataclass
class KeyRing:
    """All keys that are valid now.

    Args:
        file: YAML list, or None.
        limits: of keys that name none.

    Raises:
        UserError: there is no key at all, or the file is not what it should be.
    """

    file: Path | None
    limits: Limits
    _stamp: tuple[int, ...] | None = None
    _clients: dict[bytes, Client] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Reads all keys once, strictly."""
        self._load()
        if not self._clients:
            raise UserError(
                f"serve: no API key: set {ENVIRONMENT}, or give --keys FILE; or --insecure, for this machine alone"
            )

    def find(self, authorization: str | None) -> Client | None:
        """Who has this `Authorization: Bearer KEY`; None where nobody has. Takes as long whatever is wrong with it."""
        self._reload()
        scheme, _, key = (authorization or "").partition(" ")
        given, found = _digest(key.strip()), None
        for digest, client in self._clients.items():
            if hmac.compare_digest(digest, given):
                found = client
        return found if scheme.lower() == "bearer" else None

    def _reload(self) -> None:
        """Reads the file anew where it has changed; what cannot be read leaves the keys as they are, and says so once."""
        if self.file and self._stamp != _stamp(self.file):
            try:
                self._load()
            except UserError as error:
                print(f"{error}; the keys stay as they were", flush=True)

    def _load(self) -> None:
        keys = [key.strip() for key in os.environ.get(ENVIRONMENT, "").split(",") if key.strip()]
        entries = [(f"{ENVIRONMENT}: key {number}", key) for number, key in enumerate(keys, 1)]
        if self.file:
            self._stamp = _stamp(self.file)  # before it is read: a change in between is seen the next time
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
        # Neither a key, which pydantic's message may repeat, nor an unknown field's name, which may be a key, is shown.
        if name == "key":
            what = f"a key has {SHORTEST_KEY} or more visible characters"
        elif name not in KeyEntry.model_fields and name != "it":
            name, what = "it", f"a field is none of {', '.join(KeyEntry.model_fields)}"
        raise UserError(f"{where}: {name}: {what}") from None


def _read(file: Path) -> list[Any]:
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"serve: {file}: no such file of API keys") from None
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise UserError(f"serve: {file}: cannot be read as YAML ({type(error).__name__})") from None
    if not isinstance(entries, list):
        raise UserError(f"serve: {file}: a list of keys is expected: `- sk-...` on each line")
    return entries


def _stamp(file: Path) -> tuple[int, ...] | None:
    """Differs after every change, also where another file of the same age and size took its place; None: there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns, found.st_mtime_ns, found.st_size


def _digest(key: str) -> bytes:
    """Of one length whatever the key's: comparing takes as long."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()

"""Where a model is, whether it is there, and its digest. Light: reads files, loads no weights."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profuser.errors import StorageError, UserError
from profuser.models.lab_paths import resolve
from profuser.storage.cache import local_copy
from profuser.storage.folder import Folder

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tekken.json",
    "chat_template.jinja",
)
WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".gguf"}
SAMPLE_BYTES = 1 << 20


def local_model(location: str, weights: bool = True) -> str:
    """What an engine can load: a folder of this machine, to which a URI is copied, or a Hub name.

    Args:
        location: a folder, a URI or a Hub name.
        weights: False leaves the weights of a URI where they are, for who only wants the tokenizer or the config.
    """
    if "://" not in location:
        return location
    return str(local_copy(Folder.at(location), lambda name: weights or Path(name).suffix not in WEIGHT_SUFFIXES))


@dataclass(frozen=True)
class ModelRef:
    """A model as the recipe names it: a folder, a URI (`s3://`, `gs://`), or a Hub name with a revision."""

    path: str
    revision: str | None = None

    @classmethod
    def of(cls, model: str, revision: str | None, lab: str | None) -> "ModelRef":
        """Resolves what the recipe says."""
        return cls(resolve(model, lab), revision)

    @property
    def is_local(self) -> bool:
        """Whether it is a path or a URI: it exists, or it cannot be a Hub name."""
        return os.path.isdir(self.path) or self.path.startswith((".", "/", "~")) or self.path.count("/") != 1

    def local(self, weights: bool = True) -> str:
        """Folder of this machine or Hub name, see `local_model`."""
        return local_model(self.path, weights)

    def config(self, setting: str) -> dict[str, Any]:
        """The model's config.json.

        Args:
            setting: the recipe's key, for the error.

        Raises:
            UserError: there is no such folder, or the store or the Hub does not give it.
        """
        if "://" in self.path:
            file = f"{self.path}/config.json"
            with _asked_for(setting, self.path):
                data = Folder.at(self.path).without_retry().read_bytes("config.json")
            return _json(data, setting, file)
        if self.is_local:
            file = Path(self.path) / "config.json"
            if not file.is_file():
                why = "no config.json in it" if Path(self.path).is_dir() else "no such folder"
                raise UserError(f"{setting}: {self.path!r} is not a model: {why}")
        else:
            file = Path(_from_hub(self.path, self.revision, "config.json", setting))
        return _json(file.read_bytes(), setting, str(file))

    def digest(self, setting: str) -> str:
        """Sixteen hex digits that tell this model from another.

        A folder or URI: the SHA-256 over its small files and, of each file of weights, name, size and both ends (1 MiB each).
        A Hub model: over its name and the commit that its revision stands for.
        """
        sha = hashlib.sha256()
        if not self.is_local:
            commit = Path(_from_hub(self.path, self.revision, "config.json", setting)).parent.name
            sha.update(f"{self.path}@{commit}".encode())
            return sha.hexdigest()[:16]
        self.config(setting)
        folder = Folder.at(self.path).without_retry()
        with _asked_for(setting, self.path):
            for name, size in sorted(folder.sizes().items()):
                if name.endswith(".md"):
                    continue
                sha.update(name.encode())
                if Path(name).suffix in WEIGHT_SUFFIXES:
                    sha.update(str(size).encode() + folder.read_ends(name, SAMPLE_BYTES))
                else:
                    sha.update(folder.read_bytes(name))
        return sha.hexdigest()[:16]

    def tokenizer_digest(self, setting: str) -> str:
        """Sixteen hex digits that tell its tokenizer from another: the SHA-256 over a folder's tokenizer files.

        A Hub model's is its whole digest.
        """
        if not self.is_local:
            return self.digest(setting)
        sha = hashlib.sha256()
        folder = Folder.at(self.path).without_retry()
        with _asked_for(setting, self.path):
            there = folder.sizes()
            for name in TOKENIZER_FILES:
                if name in there:
                    sha.update(name.encode() + folder.read_bytes(name))
        return sha.hexdigest()[:16]


@contextmanager
def _asked_for(setting: str, path: str) -> Iterator[None]:
    """A store that does not give a model's file is the user's mistake: it is asked at set-up."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{setting}: {path!r} is not a model: no config.json in it, or no such folder") from None
    except StorageError as error:
        raise UserError(f"{setting}: {error}") from None


def _json(data: bytes, setting: str, file: str) -> dict[str, Any]:
    try:
        return json.loads(data)
    except ValueError as error:
        raise UserError(f"{setting}: {file} is not JSON: {error}") from None


def _from_hub(name: str, revision: str | None, file: str, setting: str) -> str:
    """Local path of a Hub model's file, from the cache or downloaded."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return hf_hub_download(name, file, revision=revision)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{setting}: {name!r} is no folder here, and the Hub does not give it: {reason}") from None

"""Locates a model, checks that it exists, and computes its digest. Light: reads files, loads no weights."""

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
"""Bytes of either end of a weights file that its digest covers."""


def local_model(location: str, weights: bool = True) -> str:
    """Returns what an engine can load: a local folder, to which a URI is copied, or a Hub name.

    Args:
        location: a folder, a URI or a Hub name.
        weights: False does not copy the weights of a URI, if only the tokenizer or the config is needed.
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
        """Resolves a recipe's model to a reference."""
        return cls(resolve(model, lab), revision)

    @property
    def is_local(self) -> bool:
        """Whether the model is a path or a URI: it exists, or cannot be a Hub name."""
        return os.path.isdir(self.path) or self.path.startswith((".", "/", "~")) or self.path.count("/") != 1

    def local(self, weights: bool = True) -> str:
        """Returns a local folder or a Hub name, see `local_model`."""
        return local_model(self.path, weights)

    def config(self, setting: str) -> dict[str, Any]:
        """Returns the model's config.json.

        Args:
            setting: the recipe's key, for the error.

        Raises:
            UserError: there is no such folder, or the store or the Hub does not provide it.
        """
        if "://" in self.path:
            file = f"{self.path}/config.json"
            with _user_error(setting, self.path):
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

    def weights_bytes(self, setting: str) -> int | None:
        """Returns the size of the model's weights files: of its safetensors if it has any, else of all. None if it is unknown: of a
        Hub model that is not in the cache while the Hub cannot be reached."""
        if self.is_local:
            with _user_error(setting, self.path):
                sizes = Folder.at(self.path).without_retry().sizes()
        else:
            snapshot = Path(_from_hub(self.path, self.revision, "config.json", setting)).parent
            sizes = {file.name: file.stat().st_size for file in snapshot.iterdir() if file.exists()}
            if not any(Path(name).suffix in WEIGHT_SUFFIXES for name in sizes):
                sizes = _hub_sizes(self.path, self.revision)
        weights = {name: size for name, size in sizes.items() if Path(name).suffix in WEIGHT_SUFFIXES}
        safe = {name: size for name, size in weights.items() if name.endswith(".safetensors")}
        return sum((safe or weights).values()) or None

    def digest(self, setting: str) -> str:
        """Returns sixteen hex digits that identify the model.

        Folder or URI: SHA-256 over its small files and, for each weights file, name, size and both ends (1 MiB each).
        Hub model: SHA-256 over its name and the commit of its revision.
        """
        sha = hashlib.sha256()
        if not self.is_local:
            commit = Path(_from_hub(self.path, self.revision, "config.json", setting)).parent.name
            sha.update(f"{self.path}@{commit}".encode())
            return sha.hexdigest()[:16]
        self.config(setting)
        folder = Folder.at(self.path).without_retry()
        with _user_error(setting, self.path):
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
        """Returns sixteen hex digits that identify the tokenizer: the SHA-256 over a folder's tokenizer files.

        For a Hub model, this is the digest of the whole model.
        """
        if not self.is_local:
            return self.digest(setting)
        sha = hashlib.sha256()
        folder = Folder.at(self.path).without_retry()
        with _user_error(setting, self.path):
            found = folder.sizes()
            for name in TOKENIZER_FILES:
                if name in found:
                    sha.update(name.encode() + folder.read_bytes(name))
        return sha.hexdigest()[:16]


@contextmanager
def _user_error(setting: str, path: str) -> Iterator[None]:
    """Turns a storage's failure to provide a model's file into a UserError: models are read at set-up."""
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
    """Returns the local path of a Hub model's file, from the cache or downloaded."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return hf_hub_download(name, file, revision=revision)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{setting}: {name!r} is not a local folder, and the Hub does not provide it: {reason}"
        ) from None


def _hub_sizes(name: str, revision: str | None) -> dict[str, int]:
    """Returns the sizes of a Hub model's files; nothing if the Hub cannot be reached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        files = HfApi().model_info(name, revision=revision, files_metadata=True).siblings or []
    except (HfHubHTTPError, OSError):
        return {}
    return {file.rfilename: file.size or 0 for file in files}

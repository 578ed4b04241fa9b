"""Where a model is, whether it is there, and its digest. Light: reads files, loads no weights."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profuser.errors import UserError
from profuser.lab import assets_path

LAB_SCHEME = "lab://"
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


def resolve(location: str, lab: str | None) -> str:
    """A path with `lab://` replaced by the laboratory's folder (the shipped one, or the recipe's `lab`)."""
    if not location.startswith(LAB_SCHEME):
        return location
    root = Path(lab).expanduser().absolute() if lab else assets_path()
    return str(root / location.removeprefix(LAB_SCHEME))


@dataclass(frozen=True)
class ModelRef:
    """A model as an engine takes it: a local folder or a Hub name with a revision."""

    path: str
    revision: str | None = None

    @classmethod
    def of(cls, model: str, revision: str | None, lab: str | None) -> "ModelRef":
        """Resolves what the recipe says."""
        return cls(resolve(model, lab), revision)

    @property
    def is_local(self) -> bool:
        """Whether it is a path: it exists, or it cannot be a Hub name."""
        return os.path.isdir(self.path) or self.path.startswith((".", "/", "~")) or self.path.count("/") != 1

    def config(self, setting: str) -> dict[str, Any]:
        """The model's config.json.

        Args:
            setting: the recipe's key, for the error.

        Raises:
            UserError: there is no such folder, or the Hub does not give it.
        """
        if self.is_local:
            file = Path(self.path) / "config.json"
            if not file.is_file():
                why = "no config.json in it" if Path(self.path).is_dir() else "no such folder"
                raise UserError(f"{setting}: {self.path!r} is not a model: {why}")
        else:
            file = Path(_from_hub(self.path, self.revision, "config.json", setting))
        try:
            return json.loads(file.read_text())
        except ValueError as error:
            raise UserError(f"{setting}: {file} is not JSON: {error}") from None

    def digest(self, setting: str) -> str:
        """Sixteen hex digits that tell this model from another.

        A local folder: the SHA-256 over its small files and, of each file of weights, name, size and both ends (1 MiB each).
        A Hub model: over its name and the commit that its revision stands for.
        """
        sha = hashlib.sha256()
        if not self.is_local:
            commit = Path(_from_hub(self.path, self.revision, "config.json", setting)).parent.name
            sha.update(f"{self.path}@{commit}".encode())
            return sha.hexdigest()[:16]
        self.config(setting)
        for file in sorted(Path(self.path).iterdir()):
            if not file.is_file() or file.suffix == ".md":
                continue
            sha.update(file.name.encode())
            with file.open("rb") as stream:
                if file.suffix not in WEIGHT_SUFFIXES:
                    sha.update(stream.read())
                    continue
                size = file.stat().st_size
                sha.update(str(size).encode())
                sha.update(stream.read(SAMPLE_BYTES))
                stream.seek(max(0, size - SAMPLE_BYTES))
                sha.update(stream.read(SAMPLE_BYTES))
        return sha.hexdigest()[:16]

    def tokenizer_digest(self, setting: str) -> str:
        """Sixteen hex digits that tell its tokenizer from another: the SHA-256 over a folder's tokenizer files.

        A Hub model's is its whole digest.
        """
        if not self.is_local:
            return self.digest(setting)
        sha = hashlib.sha256()
        for name in TOKENIZER_FILES:
            file = Path(self.path) / name
            if file.is_file():
                sha.update(name.encode() + file.read_bytes())
        return sha.hexdigest()[:16]


def _from_hub(name: str, revision: str | None, file: str, setting: str) -> str:
    """Local path of a Hub model's file, from the cache or downloaded."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return hf_hub_download(name, file, revision=revision)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{setting}: {name!r} is no folder here, and the Hub does not give it: {reason}") from None

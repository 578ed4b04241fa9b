"""Locates a model, checks that it exists, and computes its digest. Light: it loads weights only where it has to convert them."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from profuser.errors import StorageError, UserError
from profuser.models.formats import (
    ADAPTER_CONFIG,
    FP8,
    GGUF,
    TOKENIZER_FILES,
    Format,
    check_can_be_trained,
    format_of,
    only_gguf,
    quantization,
)
from profuser.models.hub import from_hub, hub_folder, hub_format, split_hub_file
from profuser.models.lab_paths import resolve
from profuser.storage.cache import local_copy
from profuser.storage.folder import Folder

TEMPLATE_FILES = ("chat_template.jinja", "tokenizer_config.json")
WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", GGUF}
BYTE_TOKENIZER = str(Path(__file__).parent / "byte_tokenizer")
"""Folder with the tokenizer of an endpoint for which none is named: a token per byte, and one that ends an answer."""
SAMPLE_BYTES = 1 << 20
"""Bytes of either end of a weights file that its digest covers."""


def local_model(location: str, revision: str | None = None) -> str:
    """Returns what an engine can load: a plain folder, or the Hub name of a plain model. See `ModelRef.local`."""
    return ModelRef(location, revision).local()


@dataclass(frozen=True)
class ModelRef:
    """A model as the recipe names it: a folder, a GGUF file, a URI (`s3://`, `gs://`), or a Hub name with a revision.

    A folder may hold plain weights, one GGUF file, or a LoRA adapter. A GGUF file on the Hub is `owner/name/file.gguf`.
    """

    path: str
    revision: str | None = None

    @classmethod
    def of(cls, model: str, revision: str | None, lab: str | None) -> "ModelRef":
        """Resolves a recipe's model to a reference."""
        return cls(resolve(model, lab), revision)

    @property
    def is_local(self) -> bool:
        """Whether the model is a path or a URI: it exists, or cannot be a Hub name."""
        if os.path.exists(self.path) or self.path.startswith((".", "/", "~")) or "://" in self.path:
            return True
        return self.path.count("/") != 1 and split_hub_file(self.path) is None

    @property
    def has_config(self) -> bool:
        """Whether there is a config.json beside the tokenizer; that of a URI or of the Hub is taken to be there."""
        return not self.is_local or "://" in self.path or (Path(self.path) / "config.json").is_file()

    @cached_property
    def format(self) -> Format:
        """How the model is stored, by its files. Plain for one that cannot be read: whoever reads it says why."""
        if self.path.endswith(GGUF):
            return Format.GGUF
        if not self.is_local:
            return hub_format(self.path, self.revision)
        try:
            names = Folder.at(self.path).without_retry().names()
        except (StorageError, OSError):
            return Format.PLAIN
        return format_of(names)

    def local(self, weights: bool = True, setting: str = "model", trained: bool = False) -> str:
        """Returns what Transformers and vLLM load: a plain folder, or the Hub name of a plain model.

        A URI's files are copied. GGUF files are dequantised and adapters merged, once per machine in the cache.

        Args:
            weights: False if only the tokenizer and the config are needed.
            setting: the recipe's key, for errors.
            trained: whether the model is trained: FP8 weights are dequantised, other quantised weights refused.

        Raises:
            UserError: the model does not exist or cannot be converted; or it is trained and its weights are quantised otherwise.
        """
        # Imported late: only these need it.
        from profuser.models import plain

        what = f"{setting}: {self.path}"
        if self.format is Format.GGUF:
            file = self._gguf_file(setting)
            write = plain.gguf_weights(file) if weights else None
            return str(plain.make_plain(self.digest(setting), f"{what} (GGUF)", plain.gguf_header(file), write))
        if self.format is Format.ADAPTER:
            adapter, base = self.fetched(True, setting), self.base(setting)
            check_can_be_trained(base.config(setting), setting, f"{self.path}, a LoRA adapter for {base.path}")
            under = Path(base._plain_folder(weights, setting))
            write = plain.merged_weights(adapter, under) if weights else None
            how = f"{what} (LoRA adapter for {base.path})"
            return str(plain.make_plain(self.digest(setting), how, plain.adapted_header(adapter, under), write))
        config = self.config(setting) if trained else {}
        if trained:
            check_can_be_trained(config, setting, self.path)
        if (found := quantization(config)) and found.get("quant_method") == FP8:
            source = self.fetched(weights, setting)
            write = plain.dequantised_weights(source) if weights else None
            return str(plain.make_plain(self.digest(setting), f"{what} (FP8)", plain.dequantised_header(source), write))
        return str(self.fetched(weights, setting)) if "://" in self.path else self.path

    def conversion(self, setting: str, trained: bool) -> str | None:
        """Returns what `local` converts, in words; None for a model that is used as it is."""
        if self.format is Format.GGUF:
            found = "a GGUF file: its weights are dequantised"
        elif self.format is Format.ADAPTER:
            found = f"a LoRA adapter: it is merged into {self.base(setting).path}"
        elif trained and (quantization(self.config(setting)) or {}).get("quant_method") == FP8:
            found = "stored in FP8: its weights are multiplied by their scales"
        else:
            return None
        return f"{setting}: {self.path} is {found}, once in the cache of each machine that uses it"

    def _plain_folder(self, weights: bool, setting: str) -> str:
        """Returns the model as a local folder of plain weights, even if it is on the Hub."""
        found = self.local(weights, setting, trained=True)
        return found if os.path.isdir(found) else hub_folder(self.path, self.revision, weights, setting)

    def fetched(self, weights: bool, setting: str) -> Path:
        """Returns the local folder of the model's own files, copied or downloaded where needed."""
        if "://" in self.path:
            with _user_error(setting, self.path):
                return local_copy(
                    Folder.at(self.path), lambda name: weights or Path(name).suffix not in WEIGHT_SUFFIXES
                )
        if self.is_local:
            return Path(self.path)
        return Path(hub_folder(self.path, self.revision, weights, setting))

    def _gguf_file(self, setting: str) -> Path:
        """Returns the local path of the model's GGUF file, copied or downloaded where needed."""
        if not self.is_local:
            name, file = split_hub_file(self.path) or (self.path, "")
            return Path(from_hub(name, self.revision, file, setting))
        folder, file = self._gguf_parts(setting)
        if folder.is_local:
            return Path(folder.path(file).removeprefix("file://"))
        with _user_error(setting, self.path):
            return local_copy(folder, lambda name: name == file) / file

    def _gguf_parts(self, setting: str) -> tuple[Folder, str]:
        """Returns the folder and the name of the GGUF file of a path or URI."""
        if self.path.endswith(GGUF):
            parent, _, file = self.path.rpartition("/")
            folder = Folder.at(parent or ".").without_retry()
            with _user_error(setting, self.path):
                if not folder.exists(file):
                    raise UserError(f"{setting}: {self.path!r} is not a model: no such file")
            return folder, file
        folder = Folder.at(self.path).without_retry()
        return folder, only_gguf(folder.names(), setting, self.path)

    def base(self, setting: str) -> "ModelRef":
        """Returns the model that an adapter belongs to. A relative path is also looked for beside the adapter."""
        from profuser.models.plain import adapter_base

        base = ModelRef(*adapter_base(self.fetched(False, setting), setting))
        beside = Path(self.path).parent / base.path
        if not os.path.exists(base.path) and "://" not in self.path and beside.is_dir():
            return ModelRef(str(beside))
        return base

    def config(self, setting: str) -> dict[str, Any]:
        """Returns the model's config.json; for a GGUF file or an adapter, that of the plain model made from it.

        Args:
            setting: the recipe's key, for the error.

        Raises:
            UserError: there is no such folder, or the store or the Hub does not provide it.
        """
        if self.format is not Format.PLAIN:
            file = Path(self.local(weights=False, setting=setting)) / "config.json"
        elif "://" in self.path:
            name = f"{self.path}/config.json"
            with _user_error(setting, self.path):
                data = Folder.at(self.path).without_retry().read_bytes("config.json")
            return _json(data, setting, name)
        elif self.is_local:
            file = Path(self.path) / "config.json"
            if not file.is_file():
                why = "no config.json in it" if Path(self.path).is_dir() else "no such folder"
                raise UserError(f"{setting}: {self.path!r} is not a model: {why}")
        else:
            file = Path(from_hub(self.path, self.revision, "config.json", setting))
        return _json(file.read_bytes(), setting, str(file))

    def template_files(self) -> bytes:
        """Returns the content of the files that hold the tokenizer's chat template; empty if there is none."""
        if self.format is not Format.PLAIN:
            return ModelRef(self.local(weights=False)).template_files()
        found = []
        for name in TEMPLATE_FILES:
            with suppress(UserError, FileNotFoundError):
                if self.is_local:
                    found.append(Folder.at(self.path).without_retry().read_bytes(name))
                else:
                    found.append(Path(from_hub(self.path, self.revision, name, "template")).read_bytes())
        return b"".join(found)

    def digest(self, setting: str) -> str:
        """Returns sixteen hex digits that identify the model.

        Folder or URI: SHA-256 over its small files and, for each weights file, name, size and both ends (1 MiB each). Adapter: also
        over its base's digest. Hub model: SHA-256 over its name and the commit of its revision.
        """
        sha = hashlib.sha256()
        if self.format is Format.ADAPTER:
            sha.update(self.base(setting).digest(setting).encode())
        if not self.is_local:
            name, file = split_hub_file(self.path) or (self.path, "")
            known = file or (ADAPTER_CONFIG if self.format is Format.ADAPTER else "config.json")
            local = from_hub(name, self.revision, known, setting)
            sha.update(f"{self.path}@{_commit(local, known)}".encode())
            return sha.hexdigest()[:16]
        folder, only = Folder.at(self.path).without_retry(), None
        if self.format is Format.GGUF:
            folder, only = self._gguf_parts(setting)
        elif self.format is Format.PLAIN:
            self.config(setting)
        with _user_error(setting, self.path):
            for name, size in sorted(folder.sizes().items()):
                if name.endswith(".md") or only not in (None, name):
                    continue
                sha.update(name.encode())
                if Path(name).suffix in WEIGHT_SUFFIXES:
                    sha.update(str(size).encode() + folder.read_ends(name, SAMPLE_BYTES))
                else:
                    sha.update(folder.read_bytes(name))
        return sha.hexdigest()[:16]

    def tokenizer_digest(self, setting: str) -> str:
        """Returns sixteen hex digits that identify the tokenizer: the SHA-256 over a folder's tokenizer files.

        For a Hub model, a GGUF file and an adapter, this is the digest of the whole model.
        """
        if not self.is_local or self.format is not Format.PLAIN:
            return self.digest(setting)
        sha = hashlib.sha256()
        folder = Folder.at(self.path).without_retry()
        with _user_error(setting, self.path):
            found = folder.sizes()
            for name in TOKENIZER_FILES:
                if name in found:
                    sha.update(name.encode() + folder.read_bytes(name))
        return sha.hexdigest()[:16]


def _commit(local: str, file: str) -> str:
    """Returns the commit of a file in the Hub's cache: the folder that holds the repository's files."""
    return Path(local).parents[len(Path(file).parts) - 1].name


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

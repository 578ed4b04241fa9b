"""Reads models from the Hugging Face Hub, through its cache on this machine."""

from pathlib import Path

from profuser.errors import UserError
from profuser.models.formats import ADAPTER_CONFIG, GGUF, WEIGHTS, Format

SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py")
WEIGHT_FILES = ("*.safetensors", "*.bin")


def split_hub_file(path: str) -> tuple[str, str] | None:
    """Returns the repository and the file of `owner/name/file.gguf`; None for any other path."""
    parts = path.split("/", 2)
    return ("/".join(parts[:2]), parts[2]) if len(parts) == 3 and path.endswith(GGUF) else None


def from_hub(name: str, revision: str | None, file: str, setting: str) -> str:
    """Returns the local path of a Hub model's file, from the cache or downloaded.

    Raises:
        UserError: the Hub does not provide it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return hf_hub_download(name, file, revision=revision)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        remedy = f"; of a repository of GGUF files name one: {name}/FILE.gguf" if _is_missing(error) else ""
        raise UserError(
            f"{setting}: {name!r} is not a local folder, and the Hub does not provide it: {reason}{remedy}"
        ) from None


def hub_format(name: str, revision: str | None) -> Format:
    """Returns how a Hub model is stored, from the cache if it holds the model. Plain if the Hub cannot be reached."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    def is_cached(file: str) -> bool:
        return isinstance(try_to_load_from_cache(name, file, revision=revision), str)

    try:
        if is_cached(ADAPTER_CONFIG) and not any(map(is_cached, WEIGHTS)):
            return Format.ADAPTER
        if not is_cached("config.json"):
            hf_hub_download(name, "config.json", revision=revision)
        return Format.PLAIN
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        if not _is_missing(error):
            return Format.PLAIN
    try:
        hf_hub_download(name, ADAPTER_CONFIG, revision=revision)
        return Format.ADAPTER
    except (HfHubHTTPError, OSError):
        return Format.PLAIN


def hub_folder(name: str, revision: str | None, weights: bool, setting: str) -> str:
    """Returns the local folder of a Hub model, with or without its weights.

    Raises:
        UserError: the Hub does not provide it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [*SMALL_FILES, *(WEIGHT_FILES if weights else ())]
    try:
        return snapshot_download(name, revision=revision, allow_patterns=patterns)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{setting}: the Hub does not provide {name!r}: {reason}") from None


def _is_missing(error: Exception) -> bool:
    """Returns whether the Hub has the repository, but not the file."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    return isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)


def hub_sizes(name: str, revision: str | None) -> dict[str, int]:
    """Returns the sizes of a Hub model's files, of those in the cache if its weights are there; none if the Hub cannot be asked."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(config, str):
            files = {file.name: file.stat().st_size for file in Path(config).parent.iterdir()}
            if any(name.endswith((".safetensors", ".bin")) for name in files):
                return files
        found = HfApi().model_info(name, revision=revision, files_metadata=True).siblings or []
    except (HfHubHTTPError, HFValidationError, OSError):
        return {}
    return {file.rfilename: file.size or 0 for file in found}

"""Reads models from the Hugging Face Hub, through its cache on this machine."""

from profuser.errors import UserError
from profuser.models.formats import GGUF

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
        raise UserError(
            f"{setting}: {name!r} is not a local folder, and the Hub does not provide it: {reason}{_gguf_remedy(error, name)}"
        ) from None


def hub_has(name: str, revision: str | None, file: str) -> bool:
    """Returns whether a Hub model has a file, as far as the Hub or its cache can say."""
    try:
        from_hub(name, revision, file, "")
    except UserError:
        return False
    return True


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


def _gguf_remedy(error: Exception, name: str) -> str:
    """Returns how to name a GGUF file, where a repository exists and has no such file."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    missing = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
    return f"; of a repository of GGUF files name one: {name}/FILE.gguf" if missing else ""

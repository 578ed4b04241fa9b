"""Reads from a checkpoint's files what decides the memory that it takes and the type that it runs in. Loads no weights."""

from dataclasses import dataclass
from pathlib import Path

from profuser.errors import StorageError
from profuser.models.formats import Format
from profuser.models.hub import hub_sizes
from profuser.models.reference import WEIGHT_SUFFIXES, ModelRef
from profuser.storage.folder import Folder


@dataclass(frozen=True)
class Checkpoint:
    """A model's checkpoint."""

    dtype: str
    """Type of its weights, by its config: `bfloat16`, `float16` or `float32`."""
    weights_bytes: int | None
    """Size of its weights files, of the safetensors if there are any; None if it is unknown: of a GGUF file, an adapter, or a Hub
    model while the Hub cannot be asked."""
    vocab_size: int
    """Width of its logits; 0 if its config does not say."""
    is_quantized: bool
    """Whether its weights are stored in a quantized form."""

    @classmethod
    def of(cls, path: str, revision: str | None = None, setting: str = "model") -> "Checkpoint":
        """Reads the checkpoint of a folder, a URI or a Hub name.

        Args:
            path: where it is.
            revision: revision of a Hub model.
            setting: the recipe's key, for the error.

        Raises:
            UserError: there is no such model.
        """
        ref = ModelRef(path, revision)
        config = ref.config(setting)
        text = config.get("text_config") or {}
        names = [part.get(key) for part in (config, text) for key in ("dtype", "torch_dtype")]
        return cls(
            dtype=next((str(name).removeprefix("torch.") for name in names if name), "float32"),
            weights_bytes=_weights_bytes(ref),
            vocab_size=int(config.get("vocab_size") or text.get("vocab_size") or 0),
            is_quantized="quantization_config" in config,
        )


def _weights_bytes(ref: ModelRef) -> int | None:
    if ref.format is not Format.PLAIN:
        return None
    try:
        sizes = Folder.at(ref.path).without_retry().sizes() if ref.is_local else hub_sizes(ref.path, ref.revision)
    except StorageError:
        return None
    weights = {name: size for name, size in sizes.items() if Path(name).suffix in WEIGHT_SUFFIXES}
    safe = {name: size for name, size in weights.items() if name.endswith(".safetensors")}
    return sum((safe or weights).values()) or None

"""Reads from a checkpoint's files what decides the memory that it takes and the type that it runs in. Loads no weights."""

from dataclasses import dataclass

from profuser.models.reference import ModelRef


@dataclass(frozen=True)
class Checkpoint:
    """A model's checkpoint."""

    dtype: str
    """Type of its weights, by its config: `bfloat16`, `float16` or `float32`."""
    weights_bytes: int | None
    """Size of its weights files; None if the Hub cannot be asked."""
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
            weights_bytes=ref.weights_bytes(setting),
            vocab_size=int(config.get("vocab_size") or text.get("vocab_size") or 0),
            is_quantized="quantization_config" in config,
        )

"""Chooses Transformers' class for a language model, and finds the text part of a multimodal one. Imports Transformers."""

from typing import Any


def language_model_class(config: Any) -> Any:
    """Returns the automatic class that loads a config's language model.

    That is `AutoModelForCausalLM`, or for a multimodal architecture that it does not know `AutoModelForImageTextToText`.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    only_multimodal = type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not config.is_encoder_decoder
    if only_multimodal and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def backbone(model: Any) -> Any:
    """Returns the part of a language model that ends with the last hidden states, before the output layer."""
    # Llama 4's text model names as its base a part that only the multimodal model has.
    return model.model if model.base_model is model else model.base_model


def text_parameters(model: Any) -> dict[str, Any] | None:
    """Returns the parameters of a multimodal model's text part by name: decoder, embeddings, output layer. None for text models."""
    if model.config.get_text_config() is model.config:
        return None
    layers = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    own = {id(parameter) for layer in layers for parameter in layer.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in own}

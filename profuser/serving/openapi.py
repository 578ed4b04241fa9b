"""The API's OpenAPI document: fields that the gateway checks, and OpenAI's most used ones. vLLM accepts and checks more."""

from typing import Any

from profuser import __version__
from profuser.serving.requests import CHAT, COMPLETIONS, RESPONSES

STATUSES = {
    "400": "The body is not JSON, a field is invalid, or the model is not configured for it",
    "401": "No valid key",
    "403": "A server without keys only answers clients on the same machine",
    "404": "No such model",
    "413": "The body is too large",
    "415": "The body's type is not application/json",
    "422": "The request exceeds the key's limits",
    "429": "Too many requests; see Retry-After",
    "500": "The server failed",
    "501": "The installed engine does not offer the path",
    "503": "The replica was lost",
}
SAMPLING: dict[str, Any] = {
    "max_tokens": {"type": "integer", "minimum": 1},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "n": {"type": "integer", "minimum": 1, "maximum": 128},
    "stop": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": 4}]},
    "seed": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    "stream": {"type": "boolean"},
    "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "user": {"type": "string"},
}
TOOL = {
    "type": "object",
    "properties": {"type": {"enum": ["function"]}, "function": {"$ref": "#/components/schemas/Function"}},
    "required": ["type", "function"],
}
FUNCTION = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
        "description": {"type": "string"},
        "parameters": {"type": "object", "description": "JSON schema of the arguments", "properties": {}},
    },
    "required": ["name"],
}
FORMAT = {"type": "object", "properties": {"type": {"enum": ["text", "json_object"]}}, "required": ["type"]}
MESSAGE = {
    "type": "object",
    "properties": {"role": {"enum": ["system", "user", "assistant"]}, "content": {"type": "string"}},
    "required": ["role", "content"],
}


def openapi_document(models: list[str]) -> dict[str, Any]:
    """Builds the OpenAPI 3.1 document."""
    model = {"type": "string", "enum": models}
    chat = {
        "model": model,
        "messages": {"type": "array", "items": MESSAGE, "minItems": 1},
        "max_completion_tokens": {"type": "integer", "minimum": 1},
        "logprobs": {"type": "boolean"},
        "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
        "response_format": FORMAT,
        "tools": {"type": "array", "items": TOOL, "minItems": 1},
        "tool_choice": {"enum": ["none", "auto", "required"]},
        "reasoning_effort": {"enum": ["none", "low", "medium", "high"]},
        **SAMPLING,
    }
    response = {
        "model": model,
        "input": {"type": "string"},
        "instructions": {"type": "string"},
        "max_output_tokens": {"type": "integer", "minimum": 1},
        **{name: SAMPLING[name] for name in ("temperature", "top_p", "stream", "user")},
    }
    text = {"model": model, "prompt": {"type": "string"}, "logprobs": {"type": "integer", "minimum": 0, "maximum": 5}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "ProFuser", "version": __version__},
        "security": [{"key": []}],
        "paths": {
            CHAT: {"post": _completion("A chat completion", chat, ["model", "messages"])},
            COMPLETIONS: {"post": _completion("A text completion", text | SAMPLING, ["model", "prompt"])},
            RESPONSES: {"post": _completion("A response", response, ["model", "input"])},
            "/v1/models": {"get": _get("The models", "401", "403")},
            "/v1/models/{name}": {
                "get": _get("One model", "401", "403", "404") | {"parameters": [_path_parameter("name")]}
            },
            "/metrics": {"get": _get("Prometheus metrics of the gateway", "401", "403", kind="text/plain")},
            "/health": {"get": _get("Whether the gateway is up") | {"security": []}},
        },
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _error(), "Function": FUNCTION},
        },
    }


def _completion(title: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": required}
    done = {
        "description": "Done",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    }
    return {
        "summary": title,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {"200": done} | _errors(*STATUSES),
    }


def _get(title: str, *statuses: str, kind: str = "application/json") -> dict[str, Any]:
    return {
        "summary": title,
        "responses": {"200": {"description": "Done", "content": {kind: {}}}} | _errors(*statuses),
    }


def _errors(*statuses: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": STATUSES[status], "content": content} for status in statuses}


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _error() -> dict[str, Any]:
    fields = {"message": {"type": "string"}, "type": {"type": "string"}}
    fields |= {"param": {"type": ["string", "null"]}, "code": {"type": ["string", "integer", "null"]}}
    return {
        "type": "object",
        "properties": {"error": {"type": "object", "properties": fields, "required": ["message", "type"]}},
        "required": ["error"],
    }

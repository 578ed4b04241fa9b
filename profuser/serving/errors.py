"""Errors in the format of OpenAI's API: a status and `{"error": {"message", "type", "param", "code"}}`."""

import json
from typing import Any


class ApiError(Exception):
    """An error that is sent to the client.

    Args:
        status: HTTP status.
        message: one line for the client, without server internals.
        code: error code as in OpenAI's API.
        param: request field that caused it.
        retry_after: seconds after which the client may retry.
    """

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, retry_after: float | None = None
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """JSON body."""
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers of the response."""
        out = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        return out | ({"Retry-After": f"{max(1, round(self.retry_after))}"} if self.retry_after is not None else {})

    @property
    def event(self) -> bytes:
        """Last events of a stream that has begun."""
        return f"data: {json.dumps(self.body)}\n\ndata: [DONE]\n\n".encode()


def unauthorized() -> ApiError:
    """Returns the 401; it does not reveal whether a key was given."""
    return ApiError(401, "Give a valid API key: Authorization: Bearer KEY.", "invalid_api_key")


def unknown_model(name: str, known: list[str]) -> ApiError:
    """Returns the 404 with the names of the available models."""
    return ApiError(
        404,
        f"The model {name[:96]!r} does not exist; available: {', '.join(known)} (`serve --model` or `--lora` adds one).",
        "model_not_found",
        "model",
    )


def overloaded(name: str) -> ApiError:
    """Returns the 429 for busy replicas and a full queue."""
    return ApiError(429, f"The model {name!r} has too many requests; try again soon.", "overloaded", retry_after=1)


def interrupted() -> ApiError:
    """Returns the 503 for a request whose replicas died at all its attempts, or after its stream had begun."""
    return ApiError(503, "The model's replica was lost; try again.", "replica_lost", retry_after=1)


def not_implemented(path: str) -> ApiError:
    """Returns the 501 for a request that the installed engine cannot answer."""
    return ApiError(501, f"{path}: the installed vLLM does not offer this for the model.", "not_implemented")


def internal() -> ApiError:
    """Returns the 500 for any other failure, which is in the log."""
    return ApiError(500, "The server failed; see its log.", "internal_error")

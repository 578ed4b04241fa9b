"""Errors as OpenAI's API writes them: a status and `{"error": {"message", "type", "param", "code"}}`."""

import json
from typing import Any


class ApiError(Exception):
    """An answer that is no completion.

    Args:
        status: of HTTP.
        message: one line for the client; nothing of the server's inside.
        code: OpenAI's word for it.
        param: the field of the request that is meant.
        retry_after: seconds after which it is worth another try.
    """

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, retry_after: float | None = None
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """In JSON."""
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """That go with it."""
        out = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        return out | ({"Retry-After": f"{max(1, round(self.retry_after))}"} if self.retry_after is not None else {})

    @property
    def event(self) -> bytes:
        """As the last events of a stream that has begun."""
        return f"data: {json.dumps(self.body)}\n\ndata: [DONE]\n\n".encode()


def unauthorized() -> ApiError:
    """Neither says whether a key was given."""
    return ApiError(401, "Give a valid API key: Authorization: Bearer KEY.", "invalid_api_key")


def unknown_model(name: str, known: list[str]) -> ApiError:
    """With the names that there are."""
    return ApiError(
        404, f"The model {name[:96]!r} does not exist; there are: {', '.join(known)}.", "model_not_found", "model"
    )


def overloaded(name: str) -> ApiError:
    """All replicas are busy and the queue is full."""
    return ApiError(429, f"The model {name!r} has too many requests; try again soon.", "overloaded", retry_after=1)


def interrupted() -> ApiError:
    """Replicas died under a request more often than it is tried again, or after it had begun to stream."""
    return ApiError(503, "The model's replica was lost; try again.", "replica_lost", retry_after=1)


def internal() -> ApiError:
    """Whatever else went wrong: the log has it."""
    return ApiError(500, "The server failed; its log says why.", "internal_error")

"""Sends requests to an OpenAI-compatible server: within its rate limits, and again while it is overloaded or unreachable."""

import asyncio
import os
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from aiolimiter import AsyncLimiter
from pydantic import SecretStr
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay, wait_random_exponential

from profuser.errors import EngineError, UserError, one_line
from profuser.recipe.endpoints import EndpointConfig

CONNECT_SECONDS = 20.0
LONGEST_PAUSE_SECONDS = 60.0
"""Longest pause between two attempts, unless the server names one (`Retry-After`)."""
TEMPORARY = frozenset({408, 409, 425, 429})
"""Statuses of requests to send again, with those from 500."""
FATAL = frozenset({401, 402, 404, 405})
"""Statuses that every other request would get too: the key, the account, the address or the model is wrong."""
NO_CREDIT = "insufficient_quota"
"""Code of OpenAI's errors with status 429 that waiting does not change."""


class EndpointError(EngineError):
    """A server cannot be used: it is unreachable for too long, or refuses every request; the message has the remedy.

    Args:
        message: what is wrong, and the remedy.
        status: status of the server's answer; None without one.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


class RefusedRequestError(Exception):
    """A server refuses one request; others may succeed.

    Args:
        reason: the server's message, on one line.
        parameter: field of the request that the server names, if any.
    """

    def __init__(self, reason: str, parameter: str | None = None):
        super().__init__(reason)
        self.reason, self.parameter = reason, parameter


class _TemporaryError(Exception):
    """A failure that may pass."""

    def __init__(self, reason: str, status: int | None = None, pause: float | None = None):
        super().__init__(reason)
        self.status, self.pause = status, pause


def read_key(endpoint: EndpointConfig, setting: str) -> SecretStr | None:
    """Returns the key from its environment variable; raises UserError if that is not set."""
    if endpoint.key_env is None:
        return None
    key = os.environ.get(endpoint.key_env, "").strip()
    if not key:
        raise UserError(f"{setting}.key_env: the environment variable {endpoint.key_env} is not set")
    return SecretStr(key)


class EndpointClient:
    """Client of one server. Its methods run in one event loop.

    Args:
        endpoint: the server and its limits.
        key: key to send.
    """

    def __init__(self, endpoint: EndpointConfig, key: SecretStr | None):
        self.endpoint = endpoint
        headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        self.http = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(endpoint.timeout_seconds, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency),
        )
        minute, rate = 60.0, endpoint.requests_per_minute
        # One at a time: a limiter with room for a minute's requests would send them all in its first second.
        self.requests = AsyncLimiter(1, minute / rate) if rate else None
        self.tokens = AsyncLimiter(endpoint.tokens_per_minute, minute) if endpoint.tokens_per_minute else None
        self.num_answered, self.num_repeated = 0, 0
        self._open_at = 0.0
        """Time before which nothing is sent: the server asked every client to wait."""

    async def send(self, path: str, body: dict[str, Any] | None = None, num_tokens: int = 0) -> dict[str, Any]:
        """Sends a request, a POST if it has a body, and returns the JSON of the answer.

        Args:
            path: path below `base_url`.
            body: JSON to send.
            num_tokens: tokens that count towards `tokens_per_minute`.

        Raises:
            RefusedRequestError: the server refuses this request, or keeps failing on it while it answers others.
            EndpointError: the server is unusable.
        """
        url, answered_before = f"{self.endpoint.base_url}{path}", self.num_answered
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_TemporaryError),
            stop=stop_after_delay(self.endpoint.retry_seconds),
            wait=self._pause,
            before_sleep=self._count,
            reraise=True,
        )
        try:
            found = await retrying(self._attempt, url, body, num_tokens)
        except _TemporaryError as failure:
            if failure.status == httpx.codes.INTERNAL_SERVER_ERROR and self.num_answered > answered_before:
                raise RefusedRequestError(f"the server fails on it again and again: {failure}") from None
            raise EndpointError(
                f"{url}: {failure}, for {self.endpoint.retry_seconds:.0f} s (endpoint.retry_seconds); see that it runs and "
                "is reachable from the nodes, then run again: finished shards are kept",
                failure.status,
            ) from None
        self.num_answered += 1
        return found

    async def close(self) -> None:
        """Closes all connections."""
        await self.http.aclose()

    async def _attempt(self, url: str, body: dict[str, Any] | None, num_tokens: int) -> dict[str, Any]:
        if self.requests:
            await self.requests.acquire()
        if self.tokens:
            await self.tokens.acquire(min(num_tokens, self.tokens.max_rate))
        while (left := self._open_at - time.monotonic()) > 0:
            await asyncio.sleep(left)
        try:
            response = await (self.http.get(url) if body is None else self.http.post(url, json=body))
        except httpx.TransportError as error:
            raise _TemporaryError(f"no answer ({type(error).__name__}: {one_line(error, 120)})") from None
        except httpx.InvalidURL as error:
            raise EndpointError(f"{url}: {error}; correct endpoint.base_url") from None
        if response.is_success:
            return self._json(response)
        reason, parameter, code = _reason(response)
        if response.status_code in TEMPORARY or response.is_server_error:
            if code == NO_CREDIT:
                raise EndpointError(f"{url}: {reason}; raise the account's limit, then run again")
            raise _TemporaryError(reason, response.status_code, self._asked_pause(url, response))
        if response.status_code in FATAL:
            raise EndpointError(
                f"{url}: {reason}; check endpoint.base_url, endpoint.model and the key of endpoint.key_env",
                response.status_code,
            )
        raise RefusedRequestError(reason, parameter)

    def _json(self, response: httpx.Response) -> dict[str, Any]:
        try:
            found = response.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise EndpointError(f"{response.url}: the answer is not a JSON object; check endpoint.base_url") from None
        return found

    def _asked_pause(self, url: str, response: httpx.Response) -> float | None:
        """Returns the seconds that the server asks to wait, if it does; from then on no request is sent before."""
        pause = _retry_after(response.headers.get("retry-after"))
        if pause is None:
            return None
        if pause > self.endpoint.retry_seconds:
            raise EndpointError(
                f"{url}: {response.status_code}: it asks to wait {pause:,.0f} s, longer than endpoint.retry_seconds "
                f"({self.endpoint.retry_seconds:g}); run again then: finished shards are kept"
            )
        self._open_at = max(self._open_at, time.monotonic() + pause)
        return pause

    def _pause(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.pause if isinstance(error, _TemporaryError) else None
        return wait_random_exponential(multiplier=0.5, max=LONGEST_PAUSE_SECONDS)(state) if asked is None else asked

    def _count(self, state: RetryCallState) -> None:
        self.num_repeated += 1


def _retry_after(value: str | None) -> float | None:
    """Returns the seconds of a `Retry-After` header, which has seconds or a date (RFC 9110); None for neither."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _reason(response: httpx.Response) -> tuple[str, str | None, str | None]:
    """Returns status and message of an error, and the parameter and code that it names, in any of the usual forms."""
    try:
        content = response.json()
    except ValueError:
        content = None
    error = content.get("error", content) if isinstance(content, dict) else None
    if not isinstance(error, dict):
        text = error if isinstance(error, str) else response.text
        return f"{response.status_code}: {one_line(text or response.reason_phrase)}", None, None
    message = error.get("message") or error.get("detail") or error
    parameter, code = (str(error[name]) if error.get(name) else None for name in ("param", "code"))
    return f"{response.status_code}: {one_line(str(message))}", parameter, code

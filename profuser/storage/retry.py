"""Retries operations on a storage that is temporarily unavailable: read-only, unreachable, timing out."""

import errno
import logging
import os
import time
from collections.abc import Callable
from typing import TypeVar

from profuser.errors import StorageError, one_line

T = TypeVar("T")

RETRY_SECONDS = 120.0
"""Longest outage that a read or write waits for, by default."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 10.0
FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_AN_OUTAGE = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
"""Errors about the path itself, which waiting does not change. All others (object stores give no errno) may be temporary."""
# Parts of object stores' error messages, by cause.
REFUSED = ("ACCESS_DENIED", "INVALID_ACCESS_KEY", "SIGNATURE_DOES_NOT_MATCH", "EXPIRED_TOKEN", "UNAUTHENTICATED")
NO_BUCKET = ("Bucket '", "NO_SUCH_BUCKET")
NO_NETWORK = ("NETWORK_CONNECTION", "UNAVAILABLE")

log = logging.getLogger(__name__)


def with_retry(path: str, action: Callable[[], T], retry_seconds: float) -> T:
    """Returns the result of `action`, retried with growing pauses while the storage is unavailable.

    Args:
        path: what the action reads or writes, for messages.
        action: may be called several times; each call starts from the beginning.
        retry_seconds: longest outage to wait for; 0 tries once.

    Raises:
        StorageError: the outage lasted longer, or the disk is full (raised at once: nobody frees a disk within minutes).
        OSError: the file or folder does not exist or has the wrong type; as the action raised it.
    """
    began, pause = time.monotonic(), FIRST_PAUSE_SECONDS
    is_unavailable = False
    while True:
        try:
            result = action()
        except NOT_AN_OUTAGE:
            raise
        except OSError as error:
            if error.errno in FULL:
                raise StorageError(f"{path}: {reason(error)}; free some space there and run again") from error
            waited = time.monotonic() - began if is_unavailable else 0.0
            if waited >= retry_seconds:
                after = f" for {waited:.0f} s" if is_unavailable else ""
                raise StorageError(f"{path}: {reason(error)}{after}; {remedy(error)} and run again") from error
            if not is_unavailable:
                is_unavailable, began = True, time.monotonic()
                log.warning("%s: %s; retrying for up to %.0f s", path, reason(error), retry_seconds)
            time.sleep(min(pause, retry_seconds - waited))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        else:
            if is_unavailable:
                log.warning("%s: available again after %.0f s, continuing", path, time.monotonic() - began)
            return result


def reason(error: OSError) -> str:
    """Describes an error of a file system or an object store in one line."""
    return os.strerror(error.errno) if error.errno else one_line(error)


def remedy(error: OSError) -> str:
    """Returns what the user can do about an error."""
    if error.errno:
        return "fix the storage"
    text = str(error)
    # Checked before NO_BUCKET: a message about refused access also names the bucket.
    if any(sign in text for sign in REFUSED):
        return "set credentials that may read and write there (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, a role)"
    if any(sign in text for sign in NO_NETWORK):
        return "check that it runs and is reachable (AWS_ENDPOINT_URL, the network)"
    if any(sign in text for sign in NO_BUCKET):
        return "create the bucket or fix its name"
    return "fix the storage"

"""Runs uv with the indexes, the certificates and the proxy that pip is configured for.

Usage: python locks/uv.py ARGUMENTS

Installs uv from PyPI into this Python's environment first. Variables of uv that are already set are kept.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

VERSION = "0.13.9"
# pip's setting: uv's variable, and what separates the values in it. Not pip's constraints: the locks pin every version.
VARIABLES = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "no-index": ("UV_NO_INDEX", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "client-cert": ("SSL_CLIENT_CERT", " "),
    "proxy": ("ALL_PROXY", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
}
SECTIONS = ("global", "install", ":env:")  # the later one wins


def variables(configured: Iterable[str]) -> dict[str, str]:
    """Returns uv's variables for the lines of `pip config list`.

    pip treats all its indexes as one, so uv does too; the locks' hashes say which files are right.
    """
    given = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    settings = [line.partition("=") for line in configured if "=" in line]
    for section in SECTIONS:
        for name, _, value in settings:
            owner, _, key = name.partition(".")
            if owner == section and key in VARIABLES:
                variable, separator = VARIABLES[key]
                given[variable] = separator.join(ast.literal_eval(value).split())
    return given


def main(arguments: list[str]) -> int:
    """Runs uv and returns its exit status, or pip's where uv cannot be installed."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    try:
        installed = version("uv")
    except PackageNotFoundError:
        installed = None
    if installed != VERSION:
        code = subprocess.run([*pip, "install", "--quiet", "--only-binary=uv", f"uv=={VERSION}"]).returncode
        if code:
            return code
    listed = subprocess.run([*pip, "config", "list"], stdout=subprocess.PIPE, text=True, check=True).stdout
    environment = {**variables(listed.splitlines()), **os.environ}
    return subprocess.run([sys.executable, "-m", "uv", *arguments], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Addresses, headers, keys and certificates that the operator writes: checked before anything is sent."""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OURS = {"connection", "content-length", "content-type", "host", "transfer-encoding"}


def lacking(address: str, environ: Mapping[str, str]) -> list[str]:
    """The variables that an address names and the environment lacks."""
    return [name for name in _PLACEHOLDER.findall(address) if not environ.get(name, "").strip()]


def filled(address: str, environ: Mapping[str, str]) -> str:
    """The address with its variables' values, without slashes at its end.

    Raises:
        ValueError: it is none; the text goes on from the setting's name.
    """
    whole = _PLACEHOLDER.sub(lambda found: environ[found[1]].strip(), address).rstrip("/")
    parts = _http(whole)
    if parts.username is not None or parts.password is not None:
        raise ValueError("holds a user or a password: write them as `key` or in `headers`")
    if parts.query or parts.fragment:
        raise ValueError("has a part behind `?` or `#`: write only the base of the server's URLs")
    return whole


def _http(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("is no address: it must begin with http:// or https:// and name a host")
    return parts


def check_proxy(url: str) -> None:
    """Raises ValueError, whose text goes on from the setting's name."""
    if url and _http(url).scheme != "http":
        raise ValueError("must begin with http://: a proxy is spoken to without TLS")


def is_private(address: str) -> bool:
    """Whether its host is written so that it can only be on this machine or its network."""
    host = (urlsplit(address).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return not ipaddress.ip_address(host.partition("%")[0]).is_global
    except ValueError:
        return False


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """With their names in lower case.

    Raises:
        ValueError: one can't be sent; the text goes on from the setting's name and repeats no value.
    """
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"names {name!r}, which is no header")
        if name.lower() in _OURS:
            raise ValueError(f"names {name!r}, which is set by the call itself")
        if not value.isascii() or not value.isprintable():
            raise ValueError(f"has a value for {name!r} that a header can't carry: use printable ASCII")
    return {name.lower(): value for name, value in headers.items()}


def key_of(variables: str, environ: Mapping[str, str]) -> tuple[str, list[str]]:
    """The key that stands in one or several variables, its parts joined by newlines, and those that lack."""
    parts, lacks = [], []
    for word in variables.split():
        name = word.removesuffix("?")
        value = environ.get(name, "").strip()
        parts.append(value)
        if not value and name == word:
            lacks.append(name)
    return "\n".join(parts), lacks


def is_sendable(key: str) -> bool:
    """Whether each of its parts can stand in a header."""
    return all(part.isascii() and part.isprintable() for part in key.split("\n"))


def certificates(name: str, folder: Path) -> str:
    """The path of a file of certificates; a relative one starts at `folder`.

    Raises:
        ValueError: it is none; the text goes on from the setting's name.
    """
    if not name:
        return ""
    path = folder / Path(name).expanduser()
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError as error:
        raise ValueError(f"names {path}, which holds no certificates in PEM form") from error
    except OSError as error:
        raise ValueError(f"names {path}, which can't be read: {error.strerror}") from error
    return str(path)

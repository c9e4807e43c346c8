"""What a key may do. Pure: names, numbers and addresses; no clock, no request."""

from __future__ import annotations

import fnmatch
from ipaddress import ip_address, ip_network
from typing import Annotated, Literal

from msgspec import Meta, Struct

Window = Literal["day", "month", "total"]
"""A calendar day or month, UTC, or all time."""
WINDOWS: tuple[Window, ...] = ("day", "month", "total")

_Count = Annotated[int, Meta(ge=0, le=2**62)]


class Budget(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What may be spent in a window; the smaller of two bounds that are both set decides."""

    window: Window
    micros: _Count | None = None
    """Millionths of a US dollar."""
    tokens: _Count | None = None
    """Prompt and completion tokens together."""


class Policy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A key's bounds; what is left out is unbounded."""

    owner: str = ""
    """Whose it is, for people and reports."""
    tags: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    """Patterns (`*`, `?`, `[…]`) of whole model names; none: all models."""
    requests_per_minute: _Count | None = None
    tokens_per_minute: _Count | None = None
    concurrent_requests: _Count | None = None
    max_tokens: _Count | None = None
    """The largest `max_tokens` of a request."""
    addresses: tuple[str, ...] = ()
    """Networks (`10.0.0.0/8`) that it may be used from; none: all."""
    budgets: tuple[Budget, ...] = ()

    def allows_model(self, name: str) -> bool:
        """Whether a whole model name may be asked for."""
        return not self.models or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.models)

    def allows_address(self, address: str) -> bool:
        """Whether a caller at this IP address may use the key. One that is no address may not, where any is named."""
        if not self.addresses:
            return True
        try:
            found = ip_address(address)
        except ValueError:
            return False
        mapped = getattr(found, "ipv4_mapped", None) or found
        return any(mapped in ip_network(network, strict=False) for network in self.addresses)


UNBOUNDED = Policy()

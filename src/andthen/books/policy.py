"""What a key may do. Pure: names, numbers and addresses; no clock, no request."""

from __future__ import annotations

import fnmatch
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from msgspec import Struct

from andthen.ledger.records import Budget, Count


class Policy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A key's bounds; what is left out is unbounded."""

    owner: str = ""
    """Whose it is, for people and reports."""
    tags: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    """Patterns (`*`, `?`, `[…]`) of whole model names; none: all models."""
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrent_requests: Count | None = None
    max_tokens: Count | None = None
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
        return any(mapped in _network(network) for network in self.addresses)


UNBOUNDED = Policy()
LIST_MAX = 64
"""Of tags, of patterns and of networks."""
TEXT_MAX = 256


class BadPolicy(ValueError):
    """A policy that can't be held; `field` is its field at fault."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def check_policy(policy: Policy) -> Policy:
    """The policy as it stands. What its types say is not looked at again.

    Raises:
        BadPolicy: names the field and the rule.
    """
    _check_text("owner", policy.owner, least=0)
    for name in ("tags", "models", "addresses"):
        listed = getattr(policy, name)
        if len(listed) > LIST_MAX:
            raise BadPolicy(name, f"{name}: at most {LIST_MAX}, not {len(listed)}")
        for text in listed:
            _check_text(name, text, least=1)
    for network in policy.addresses:
        try:
            _network(network)
        except ValueError:
            raise BadPolicy("addresses", f"addresses: {network!r} is no IP address and no network") from None
    windows = [budget.window for budget in policy.budgets]
    if len(set(windows)) < len(windows):
        raise BadPolicy("budgets", "budgets: one for each window, with a bound in money, in tokens or in both")
    if any(budget.micros is None and budget.tokens is None for budget in policy.budgets):
        raise BadPolicy("budgets", "budgets: each needs a bound, in micros, in tokens or in both")
    return policy


def _check_text(field: str, text: str, *, least: int) -> None:
    if not least <= len(text) <= TEXT_MAX or not text.isprintable():
        raise BadPolicy(field, f"{field}: {least} to {TEXT_MAX} characters that print, each")


@lru_cache(maxsize=1024)
def _network(text: str) -> IPv4Network | IPv6Network:
    return ip_network(text, strict=False)

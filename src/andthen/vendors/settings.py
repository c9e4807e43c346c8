"""What the operator may set about upstream, and what becomes of it: whom a model's name stands for.

Filled in by the configuration; carried to the workers as JSON, secrets included, over a pipe.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import unquote

import msgspec
from msgspec import Meta, Struct

from andthen.vendors.rows import Profile, Resolved, resolved, vendors
from andthen.wire.base import Target

_MODEL = re.compile(r"(?=[!-~]{1,256}\Z)(?!(?:.*[/\\])?\.\.(?:[/\\]|\Z)).*")
"""What a caller may name at a vendor: such names enter URLs, and are kept."""

Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class _Guarded(Struct, frozen=True):
    """Shows no secret where it is printed."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []


class Timeouts(_Guarded, frozen=True, kw_only=True):
    connect_s: Seconds = 10.0
    """How long a connection, TLS included, may take."""
    first_token_s: Seconds = 60.0
    """How long the first byte of a reply's body may take once the request is sent; of a reply that is not streamed,
    the whole of it."""
    between_tokens_s: Seconds = 60.0
    """How long a stream may pause."""
    total_s: Seconds = 600.0
    """How long a call may take in all."""


class UpstreamSettings(Timeouts, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Calls to vendors and other servers. A vendor's own table may set the same for itself."""

    proxy: str = ""
    """An HTTP proxy that calls go through, such as `http://proxy:3128`."""
    ca_file: str = ""
    """A file of certificates (PEM) to trust besides the system's."""
    parallel: Annotated[int, Meta(ge=1, le=1024)] = 16
    """Calls that one request makes at once."""
    retries: Annotated[int, Meta(ge=0, le=16)] = 2
    """Calls that one request may repeat in all, after failures that cost nothing, fallbacks included."""
    deadline_s: Seconds = 600.0
    """How long one request may take upstream, its retries and waits included."""
    cool_after: Annotated[int, Meta(ge=1, le=1000)] = 3
    """So many failures in a row let a deployment cool down; a `retry-after` of its own does at once."""
    cool_s: Seconds = 5.0
    """How long the first time; each further failure doubles it, up to a minute."""


class Access(_Guarded, frozen=True, kw_only=True):
    """How a server is reached."""

    timeouts: Timeouts = Timeouts()
    proxy: str = ""
    ca_file: str = ""
    private: bool = False
    """Its address may be one of this machine or its network."""


class Remote(_Guarded, frozen=True, kw_only=True):
    """A model at a vendor, or (`model` empty) all models of a vendor, by their own names."""

    vendor: str
    """How messages name it."""
    prefix: str = ""
    """The vendor's row, whose models' rows apply; empty for a server that no row knows."""
    address: str
    model: str = ""
    key: str = ""
    headers: dict[str, str] = {}
    language: str
    over: Profile = Profile()
    """What the operator's tables say, over the row."""
    access: Access = Access()

    def resolved(self, model: str = "") -> Resolved:
        """How it is spoken to, and what it takes; `model` is the vendor's own name, where this stands for all."""
        if self.prefix:
            return vendors()[self.prefix].resolve(self.model or model, [self.over])
        return resolved(self.language, [self.over])

    def identity(self, model: str = "") -> str:
        """A digest of all that decides what its texts are: where it is, its own name, its headers, how it is spoken to
        and what it takes. Not of its key."""
        told = (self.address, self.model or model, self.headers, self.resolved(model))
        return hashlib.sha256(msgspec.msgpack.encode(told)).hexdigest()

    @property
    def provider(self) -> str:
        """Who answers, as OpenTelemetry's conventions for generative AI name providers: by the row, else as set."""
        return (vendors()[self.prefix].provider or self.prefix) if self.prefix else self.vendor

    @property
    def secrets(self) -> tuple[str, ...]:
        """What is set here that nobody but the vendor and its proxy may see."""
        words = " ".join(self.headers.values()).split()
        return (self.key, *(word for word in words if "://" not in word), *_credentials(self.access.proxy))

    def target(self, model: str = "", *, at_s: float, secrets: tuple[str, ...] = ()) -> Target:
        """Whom a call at `at_s` (Unix time) is for; `secrets` are those of all vendors."""
        return Target(
            vendor=self.vendor,
            address=self.address,
            model=self.model or model,
            key=self.key,
            headers=tuple(self.headers.items()),
            secrets=secrets,
            at_s=at_s,
        )


def _credentials(proxy: str) -> tuple[str, ...]:
    """The user and the password in a proxy's address, as they stand there and decoded."""
    written = proxy.rpartition("@")[0].rpartition("//")[2]
    return tuple(text for part in written.split(":", 1) for text in (part, unquote(part)))


class Share(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the deployments that a name stands for."""

    model: str
    """The whole name of a configured model."""
    weight: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    """Its share of the requests, beside those of the same order."""
    order: Annotated[int, Meta(ge=0, le=1000)] = 0
    """Those of a higher order are only asked when all of the lower have failed or cool down."""


class Upstream(_Guarded, frozen=True, kw_only=True):
    """Everything that stands behind the endpoint beside the embedded engine."""

    settings: UpstreamSettings = UpstreamSettings()
    vendors: dict[str, Remote] = {}
    """By prefix: vendors that are switched on; any model of theirs may be asked."""
    models: dict[str, Remote] = {}
    """By whole name: models with a table of their own."""
    routes: dict[str, tuple[Share, ...]] = {}
    """By whole name: names that stand for several deployments, or are an alias of one. A share's model is never such a
    name itself."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """Of all vendors and servers, without repetition."""
        everyone = (*self.vendors.values(), *self.models.values())
        return tuple(dict.fromkeys(secret for remote in everyone for secret in remote.secrets if secret))

    def find(self, name: str) -> tuple[Remote, str] | None:
        """The model of a whole name, and the vendor's own name of it; None of a route's or an unknown name, and of
        one that no model of a vendor can have: too long, not printable ASCII, or with a part `..`."""
        if (own := self.models.get(name)) is not None:
            return own, own.model
        prefix, _, model = name.partition("/")
        vendor = self.vendors.get(prefix)
        return (vendor, model) if vendor is not None and _MODEL.fullmatch(model) else None

    def listed(self) -> Iterator[str]:
        """The whole names to show: those with a table of their own, then those that the vendors' rows list."""
        yield from self.models
        for prefix, vendor in self.vendors.items():
            for model in vendors()[vendor.prefix].listed() if vendor.prefix else ():
                if (name := f"{prefix}/{model}") not in self.models:
                    yield name

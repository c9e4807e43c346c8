"""The tables of what stands upstream: vendors, models at them or at servers of one's own, names for several."""

from __future__ import annotations

import msgspec
from msgspec import Struct
from msgspec.structs import fields

from andthen.vendors.rows import Profile
from andthen.vendors.settings import Seconds, Share


class ReachTable(Profile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a server is reached, how it is spoken to, and what its models take."""

    enabled: bool | None = None
    """`false` leaves it out. `true` insists: what lacks for it is then an error."""
    address: str = ""
    """The base of its URLs, such as `http://10.0.0.7:8080/v1`. `{NAME}` stands for an environment variable. Where its
    host is written as a private address or `localhost`, that is permission enough to call it."""
    language: str = ""
    """How it is spoken to: one of the languages of docs/vendors.md. Unset: the vendor's."""
    key: str | None = None
    """The secret that opens it. Better in the environment: see `key_variable`."""
    key_variable: str = ""
    """The environment variable that holds the key. Several with blanks between, where a key has several parts;
    `NAME?` is one that may be absent. Unset: the vendor's, but none for a model with an `address` of its own."""
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    """More headers for each call, by name."""
    private: bool | None = None
    """Whether the name in the address may stand for an address of this machine or its network. Unset: `false`, but
    for servers that usually stand there."""
    proxy: str | None = None
    """As in [upstream], as are all that follow; `""` is none."""
    ca_file: str | None = None
    """A file of certificates (PEM) to trust besides the system's."""
    connect_s: Seconds | None = None
    """How long a connection, TLS included, may take."""
    first_token_s: Seconds | None = None
    """How long the first byte of a reply may take."""
    between_tokens_s: Seconds | None = None
    """How long a stream may pause."""
    total_s: Seconds | None = None
    """How long a call may take in all."""

    def profile(self) -> Profile:
        """What it says over the rows below it."""
        return Profile(**{field.name: getattr(self, field.name) for field in fields(Profile)})


class VendorTable(ReachTable, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A vendor of docs/vendors.md, or with `address` and `language` one of your own: `PREFIX` begins the names of its
    models. It is switched on by its key variable, or by an `address` here."""

    name: str = ""
    """How messages name it."""


class RemoteTable(ReachTable, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model at a vendor, with what differs from the vendor's row, or one at a server of your own, with `address` and
    `language`."""

    vendor: str = ""
    """The vendor's prefix. Unset: how this name begins, if a vendor has that prefix."""
    model: str = ""
    """The name by which the server knows it. Unset: what stands behind the first slash of this name."""


class RouteTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A name that stands for other configured models: one (`alias`), or several (`deployments`)."""

    enabled: bool = True
    """`false` leaves it out."""
    alias: str = ""
    """The whole name of the model that answers."""
    deployments: tuple[Share, ...] = ()
    """`model`: its whole name. `weight` (1): its share of the requests beside those of the same order. `order` (0):
    those of a higher one are asked only when all of the lower have failed or cool down."""

"""Which pages of other origins may call the API: none, unless the operator names them. Never with credentials that a
browser would add by itself."""

from __future__ import annotations

from andthen.gateway.context import RequestContext

_MAX_AGE_S = 600
_SHOWN = (
    b"x-request-id, x-andthen-plan, x-andthen-ignored, x-andthen-cache, idempotent-replayed, x-should-retry, "
    b"retry-after, age, server-timing"
)
_TAKEN = b"authorization, content-type, idempotency-key, x-api-key, x-selected-account-id"


class Cors:
    def __init__(self, origins: tuple[str, ...]) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)

    def mark(self, ctx: RequestContext) -> None:
        """Adds to the reply what lets the page read it."""
        if not self._origins:
            return
        ctx.reply_headers.append((b"vary", b"origin"))
        if (origin := ctx.header(b"origin")) in self._origins and origin is not None:
            ctx.reply_headers += [
                (b"access-control-allow-origin", origin),
                (b"access-control-expose-headers", _SHOWN),
            ]

    def is_preflight(self, ctx: RequestContext) -> bool:
        """A browser asks for a page whether it may ask."""
        return (
            ctx.method == "OPTIONS"
            and ctx.header(b"access-control-request-method") is not None
            and ctx.header(b"origin") in self._origins
        )

    def permit(self, ctx: RequestContext, methods: tuple[str, ...]) -> None:
        ctx.reply_headers += [
            (b"access-control-allow-methods", ", ".join(methods).encode()),
            (b"access-control-allow-headers", _TAKEN),
            (b"access-control-max-age", b"%d" % _MAX_AGE_S),
        ]
        ctx.start(204, [])
        ctx.http.end()

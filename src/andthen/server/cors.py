"""Which pages of other origins may call the API: none, unless the operator names them. Never with credentials that a
browser would add by itself."""

from __future__ import annotations

from andthen.server.http import Exchange

_MAX_AGE_S = 600
_SHOWN = (
    b"x-request-id, x-andthen-plan, x-andthen-ignored, x-andthen-cache, idempotent-replayed, x-should-retry, "
    b"retry-after, age, server-timing"
)
_TAKEN = b"authorization, content-type, idempotency-key, x-api-key, x-selected-account-id"


class Cors:
    def __init__(self, origins: tuple[str, ...]) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)

    def mark(self, exchange: Exchange) -> None:
        """Adds to the reply what lets the page read it."""
        if not self._origins:
            return
        exchange.reply_headers.append((b"vary", b"origin"))
        if (origin := exchange.header(b"origin")) in self._origins and origin is not None:
            exchange.reply_headers += [
                (b"access-control-allow-origin", origin),
                (b"access-control-expose-headers", _SHOWN),
            ]

    def is_preflight(self, exchange: Exchange) -> bool:
        """A browser asks for a page whether it may ask."""
        return (
            exchange.method == "OPTIONS"
            and exchange.header(b"access-control-request-method") is not None
            and exchange.header(b"origin") in self._origins
        )

    async def permit(self, exchange: Exchange, methods: tuple[str, ...]) -> None:
        exchange.reply_headers += [
            (b"access-control-allow-methods", ", ".join(methods).encode()),
            (b"access-control-allow-headers", _TAKEN),
            (b"access-control-max-age", b"%d" % _MAX_AGE_S),
        ]
        await exchange.start(204, [])
        await exchange.write(b"", more=False)

"""The pages that ship with the package: `/`, `/docs` and what they load. Read once; no address outside is in them, and
the browser is told to allow none."""

from __future__ import annotations

import hashlib
from pathlib import Path

from andthen.gateway.context import Handler, Headers, RequestContext

FOLDER = Path(__file__).parent / "page"

_TYPES = {
    ".css": b"text/css; charset=utf-8",
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".json": b"application/json",
    ".svg": b"image/svg+xml",
    ".woff2": b"font/woff2",
}
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SAFETY: Headers = [
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
]


def page(body: bytes, content_type: bytes) -> Handler:
    """A handler that gives this body, and 304 to who has it."""
    tag = b'"' + hashlib.sha256(body).hexdigest()[:32].encode() + b'"'
    headers = [*_SAFETY, (b"etag", tag)]

    async def give(ctx: RequestContext) -> None:
        if tag in (ctx.header(b"if-none-match") or b""):
            ctx.start(304, headers)
            ctx.http.end()
        else:
            await ctx.reply(200, [(b"content-type", content_type), *headers], body)

    return give


def pages() -> dict[str, Handler]:
    """Path → handler, for each file of the folder and the two names."""
    found = {
        f"/page/{file.name}": page(file.read_bytes(), _TYPES[file.suffix])
        for file in sorted(FOLDER.iterdir())
        if file.suffix in _TYPES
    }
    found["/"] = found["/page/index.html"]
    found["/docs"] = found["/page/docs.html"]
    return found

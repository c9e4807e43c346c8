"""What the operator may set about the cache. Knows no file and no environment variable."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class CacheSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Replies that a key is given again where it asks for just the same and the text is settled beforehand."""

    enabled: bool = False
    """Whether replies are kept at all. What is kept are completions, and with `echo` prompts: see docs/cache.md."""
    redis: str = ""
    """Redis or Valkey, in which all workers and machines share what is kept: `redis://user:password@host:6379/0`,
    `rediss://` with TLS, or `unix:///path`. Best one of its own, with a bound on its memory. Unset, each worker keeps
    its own replies in memory."""
    memory_bytes: Annotated[int, Meta(ge=2**16, le=2**40)] = 64 * 2**20
    """What one worker keeps in memory at most, without `redis`; the replies that were not asked for the longest make
    room."""
    reply_bytes: Annotated[int, Meta(ge=1024, le=2**30)] = 2**20
    """Largest reply that is kept, as it is stored; in memory at most an eighth of `memory_bytes`."""
    keep_s: Annotated[float, Meta(ge=1, le=31_536_000)] = 3600.0
    """How long a reply is kept."""

"""How many requests and tokens a key may use a minute, and how many requests it may run at once. Pure: time comes in.

The window slides: what counts is the last 60 seconds before the moment that asks. A request is written down with the
worst that it may need; once it is over, what it did need takes that place, at the same time in the log.

The log has one entry for each 600th of the window. An entry holds what came within its 100 ms and slides out when the
last of it may: a request counts for 60 to 60.1 seconds, so that none is one too many, at most 1/600 are too few, and
a key's log is never longer than 601 entries.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

from msgspec import Struct

from andthen.books.policy import Policy
from andthen.contract.errors import AndthenError, BadRequest, RateLimited

WINDOW_MS = 60_000
SLOTS = 600

Kind = Literal["requests", "tokens", "concurrent"]


class Bounds(Struct, frozen=True):
    """A key's; None is unbounded."""

    requests: int | None = None
    """In a window."""
    tokens: int | None = None
    """In a window."""
    concurrent: int | None = None
    """Requests that run."""

    @classmethod
    def of(cls, policy: Policy) -> Bounds:
        return cls(policy.requests_per_minute, policy.tokens_per_minute, policy.concurrent_requests)

    @property
    def unbounded(self) -> bool:
        return self.requests is None and self.tokens is None and self.concurrent is None


class Standing(Struct, frozen=True):
    """What a key has used, at one moment."""

    requests: int
    """In the window."""
    tokens: int
    """In the window, reserved ones too."""
    reset_ms: int
    """Until all of it has slid out, if nothing more comes."""


class Refused(Struct, frozen=True):
    """A request that there is no room for."""

    kind: Kind
    wait_ms: int | None
    """Until there is room for it, if nothing else comes; None where only the end of a running request makes any."""
    standing: Standing


class Grant(Struct, frozen=True):
    """A request that may run. To be settled once, whatever becomes of it."""

    id: str
    """Empty where nothing is counted."""
    key_id: str
    bounds: Bounds = Bounds()
    standing: Standing | None = None

    def headers(self) -> list[tuple[str, str]]:
        """Names and values of `x-ratelimit-*`, for what is bounded and counted."""
        return [] if self.standing is None else limit_headers(self.bounds, self.standing)


class Limiter(Protocol):
    """Where the counts are kept."""

    async def take(self, key_id: str, bounds: Bounds, tokens: int) -> Grant:
        """Counts a request that is about to begin. Cancelled, it has counted nothing.

        Args:
            tokens: the most that it may need, prompt and completion.

        Raises:
            RateLimited: the message tells which bound, `retry_after_s` when there is room.
            BadRequest: it needs more tokens than the key may ever use in a window.
            LimitsUnavailable: nobody can count, and the settings say to refuse then.
        """

    async def settle(self, grant: Grant, tokens: int) -> None:
        """The request is over: it runs no more, and `tokens` is what it used. Raises nothing. Also a cancelled call
        settles; a second one changes nothing."""

    @property
    def state(self) -> State:
        """For the page on readiness."""


State = Literal["ok", "uncounted", "refusing"]
"""Limits are kept; Redis is gone, and bounded keys are admitted uncounted; Redis is gone, and they are refused."""


class KeyLog:
    """What one key did within the window, and what it runs."""

    __slots__ = ("_requests", "_running", "_slot_ms", "_slots", "_tokens", "_window_ms")

    def __init__(self, window_ms: int = WINDOW_MS) -> None:
        self._window_ms = window_ms
        self._slot_ms = slot_ms(window_ms)
        self._slots: dict[int, list[int]] = {}
        """The end of an entry's time → requests and tokens, oldest first."""
        self._requests = 0
        self._tokens = 0
        self._running: dict[str, tuple[int, int]] = {}
        """A grant's id → its entry and the tokens it reserved."""

    def take(self, now_ms: int, grant_id: str, bounds: Bounds, tokens: int) -> Standing | Refused:
        """Counts a request, or tells why not. `now_ms` must never be less than before."""
        self._slide(now_ms)
        if refused := self._refused(now_ms, bounds, tokens):
            return refused
        slot = (now_ms // self._slot_ms + 1) * self._slot_ms  # beyond now, also where now was rounded down
        self._add(slot, 1, tokens)
        self._running[grant_id] = (slot, tokens)
        return self._standing(now_ms)

    def settle(self, grant_id: str, tokens: int) -> None:
        """It used so many tokens."""
        if entry := self._running.pop(grant_id, None):
            self._change(entry[0], 0, tokens - entry[1])

    def forget(self, grant_id: str) -> None:
        """It was never begun."""
        if entry := self._running.pop(grant_id, None):
            self._change(entry[0], -1, -entry[1])

    def release(self, grant_id: str) -> None:
        """It runs no more, and nobody knows what it used: what it reserved."""
        self._running.pop(grant_id, None)

    def is_empty(self, now_ms: int) -> bool:
        """Nothing would be lost with it."""
        self._slide(now_ms)
        return not self._slots and not self._running

    def _slide(self, now_ms: int) -> None:
        out = []
        for slot in self._slots:
            if slot + self._window_ms > now_ms:
                break
            out.append(slot)
        for slot in out:
            requests, tokens = self._slots.pop(slot)
            self._requests -= requests
            self._tokens -= tokens

    def _refused(self, now_ms: int, bounds: Bounds, tokens: int) -> Refused | None:
        waits: list[tuple[int, Kind]] = []
        if bounds.requests is not None and (over := self._requests + 1 - bounds.requests) > 0:
            waits.append((self._wait_ms(now_ms, 0, over), "requests"))
        if bounds.tokens is not None and (over := self._tokens + tokens - bounds.tokens) > 0:
            waits.append((self._wait_ms(now_ms, 1, over), "tokens"))
        if waits:
            wait_ms, kind = max(waits)
            return Refused(kind, wait_ms, self._standing(now_ms))
        if bounds.concurrent is not None and len(self._running) >= bounds.concurrent:
            return Refused("concurrent", None, self._standing(now_ms))
        return None

    def _wait_ms(self, now_ms: int, what: int, needed: int) -> int:
        freed = 0
        for slot, counts in self._slots.items():
            freed += counts[what]
            if freed >= needed:
                return slot + self._window_ms - now_ms
        return self._window_ms

    def _standing(self, now_ms: int) -> Standing:
        newest = next(reversed(self._slots), None)
        return Standing(self._requests, self._tokens, newest + self._window_ms - now_ms if newest is not None else 0)

    def _add(self, slot: int, requests: int, tokens: int) -> None:
        self._slots.setdefault(slot, [0, 0])
        self._change(slot, requests, tokens)

    def _change(self, slot: int, requests: int, tokens: int) -> None:
        if counts := self._slots.get(slot):
            counts[0] += requests
            counts[1] += tokens
            self._requests += requests
            self._tokens += tokens


class Counts:
    """The logs of all keys. One whose log is empty takes no room."""

    def __init__(self, window_ms: int = WINDOW_MS) -> None:
        self._window_ms = window_ms
        self._logs: dict[str, KeyLog] = {}
        self._swept_at_ms = 0

    def __len__(self) -> int:
        return len(self._logs)

    def take(self, now_ms: int, grant_id: str, key_id: str, bounds: Bounds, tokens: int) -> Standing | Refused:
        """As `KeyLog.take`."""
        if now_ms >= self._swept_at_ms + self._window_ms:
            self._swept_at_ms = now_ms
            self._logs = {key: log for key, log in self._logs.items() if not log.is_empty(now_ms)}
        log = self._logs.get(key_id)
        if log is None:
            log = self._logs[key_id] = KeyLog(self._window_ms)
        return log.take(now_ms, grant_id, bounds, tokens)

    def log(self, key_id: str) -> KeyLog | None:
        """A key's; None where it did nothing lately."""
        return self._logs.get(key_id)


def slot_ms(window_ms: int) -> int:
    """How long an entry of the log is, in milliseconds."""
    return max(1, window_ms // SLOTS)


def check_possible(bounds: Bounds, tokens: int) -> None:
    """Raises BadRequest for a request that no waiting makes room for."""
    if bounds.tokens is not None and tokens > bounds.tokens:
        raise BadRequest(
            f"This request may need {tokens} tokens, and this key may use {bounds.tokens} a minute: ask for fewer "
            "`max_tokens` or candidates, or send less of a prompt.",
            param="max_tokens",
        )


def limited(bounds: Bounds, refused: Refused, tokens: int) -> AndthenError:
    """What the caller is told of a refusal."""
    wait_s = None if refused.wait_ms is None else max(1, math.ceil(refused.wait_ms / 1000))
    standing = refused.standing
    if refused.kind == "requests":
        message = f"This key may make {bounds.requests} requests a minute, and has: wait {wait_s} s."
    elif refused.kind == "tokens":
        left = max(0, (bounds.tokens or 0) - standing.tokens)
        message = (
            f"This key may use {bounds.tokens} tokens a minute and has {left} left, and this request may need "
            f"{tokens}: wait {wait_s} s, or ask for less."
        )
    else:
        message = f"This key may run {bounds.concurrent} requests at once, and does: wait until one of them has ended."
    return RateLimited(message, retry_after_s=wait_s, headers=limit_headers(bounds, standing))


def limit_headers(bounds: Bounds, standing: Standing) -> list[tuple[str, str]]:
    """`x-ratelimit-*`, names and forms as OpenAI's ("Rate limits in headers", its guide to rate limits, November
    2026): `reset` is the time until nothing is used any more, such as `120ms`, `1.5s` or `1m0s`."""
    headers: list[tuple[str, str]] = []
    reset = _duration(standing.reset_ms)
    for kind, bound, used in (
        ("requests", bounds.requests, standing.requests),
        ("tokens", bounds.tokens, standing.tokens),
    ):
        if bound is not None:
            headers += [
                (f"x-ratelimit-limit-{kind}", str(bound)),
                (f"x-ratelimit-remaining-{kind}", str(max(0, bound - used))),
                (f"x-ratelimit-reset-{kind}", reset),
            ]
    return headers


def _duration(span_ms: int) -> str:
    if 0 < span_ms < 1000:
        return f"{span_ms}ms"
    minutes, rest_ms = divmod(span_ms, 60_000)
    return f"{minutes}m{rest_ms / 1000:g}s" if minutes else f"{rest_ms / 1000:g}s"

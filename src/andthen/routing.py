"""Which of the deployments behind a name is asked first, and which is left in peace. Pure: time and chance come in.

A deployment that fails cools down: at once for as long as its own `retry-after` says, or after some failures in a row
for a while that doubles. Then one request probes it; a reply that begins ends the matter, a failure begins the next
while.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from msgspec import Struct

from andthen.vendors.settings import Share, UpstreamSettings

_LONGEST_COOL_S = 60.0
_LONGEST_ASKED_S = 3600.0
"""A longer `retry-after` of its own is passed on, but the deployment is probed by then: nobody knows its clock."""
_PROBE_S = 30.0
"""A probe that has told nothing for so long is given up on, and another is let through."""


class Health(Struct):
    """What is known of one deployment. Times are `time.monotonic`'s."""

    failures: int = 0
    """In a row."""
    cool_until_s: float = 0.0
    probed_at_s: float | None = None
    """When a request was let through to try it again."""
    failed_at_s: float = -math.inf

    def open_in_s(self, now_s: float) -> float:
        """Seconds until it may be asked; 0 is now."""
        until_s = self.cool_until_s
        if self.probed_at_s is not None:
            until_s = max(until_s, self.probed_at_s + _PROBE_S)
        return max(0.0, until_s - now_s)

    def asked(self, now_s: float) -> None:
        """A request goes to it."""
        if self.cool_until_s:
            self.probed_at_s = now_s

    def answered(self, asked_at_s: float) -> None:
        """Its reply to a request of then begins. One from before the last failure tells nothing of the time since."""
        if asked_at_s >= self.failed_at_s:
            self.cool_until_s, self.probed_at_s = 0.0, None

    def succeeded(self) -> None:
        """A reply was complete."""
        self.failures = 0

    def failed(self, now_s: float, retry_after_s: float | None, settings: UpstreamSettings) -> None:
        """Args:
        retry_after_s: how long it asked itself to be left in peace.
        """
        self.failures += 1
        self.probed_at_s, self.failed_at_s = None, now_s
        cool_s = min(retry_after_s or 0.0, _LONGEST_ASKED_S)
        if self.failures >= settings.cool_after or self.cool_until_s:
            doubled = settings.cool_s * 2.0 ** min(16, max(0, self.failures - settings.cool_after))
            cool_s = max(cool_s, min(_LONGEST_COOL_S, doubled))
        if cool_s:
            self.cool_until_s = max(self.cool_until_s, now_s + cool_s)

    def left(self, asked_at_s: float) -> None:
        """A request of then is over: if it was the one let through and told nothing, its caller went away."""
        if self.probed_at_s == asked_at_s:
            self.probed_at_s = None


def ordered(shares: Sequence[Share], draw: Callable[[], float]) -> list[Share]:
    """The shares in the order in which to ask them: by `order`, and within one by a draw without replacement, each by
    its weight.

    Args:
        draw: a uniform number from 0 to 1, 1 excluded.
    """
    # The greatest of u^(1/w) is each with probability w/Σw (Efraimidis & Spirakis 2006, algorithm A).
    return sorted(shares, key=lambda share: (share.order, -(draw() ** (1.0 / share.weight))))

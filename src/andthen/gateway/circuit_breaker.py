"""Which deployment of a name is tried first, and which ones are left out for a while. Pure: time and chance come in.

A deployment's circuit breaker opens when the deployment asks for a pause (`retry-after`), or after some failures in a
row for a time that doubles with each further one. When that time is over the breaker is half-open: one request probes
the deployment. A reply that begins closes the breaker, a failure opens it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from msgspec import Struct

from andthen.vendors.settings import Share, UpstreamSettings

_LONGEST_OPEN_S = 60.0
_LONGEST_RETRY_AFTER_S = 3600.0
"""A longer `retry-after` is passed on to the caller, but the deployment is probed by then: its clock may be wrong."""
_PROBE_S = 30.0
"""A probe that has brought nothing for so long is given up on, and another is made."""


class CircuitBreaker(Struct):
    """The circuit breaker of one deployment. Times are `time.monotonic`'s.

    Attributes:
        failures: how many in a row.
        open_until_s: 0 while it is closed.
        probed_at_s: when the request began that probes it; None unless it is half-open with a probe under way.
        failed_at_s: when it failed last.
    """

    failures: int = 0
    open_until_s: float = 0.0
    probed_at_s: float | None = None
    failed_at_s: float = -math.inf

    def wait_s(self, now_s: float) -> float:
        """Seconds until a request may be sent; 0 if one may be sent now."""
        if not self.open_until_s:
            return 0.0
        until_s = self.open_until_s
        if self.probed_at_s is not None:
            until_s = max(until_s, self.probed_at_s + _PROBE_S)
        return max(0.0, until_s - now_s)

    def on_request(self, now_s: float) -> None:
        """A request is sent."""
        if self.open_until_s:
            self.probed_at_s = now_s

    def on_reply(self, requested_at_s: float) -> None:
        """The reply to a request of then begins. If the request is older than the last failure, that means nothing."""
        if requested_at_s >= self.failed_at_s:
            self.open_until_s, self.probed_at_s = 0.0, None

    def on_success(self) -> None:
        """A reply is complete."""
        self.failures = 0

    def on_failure(self, now_s: float, retry_after_s: float | None, settings: UpstreamSettings) -> None:
        """A request failed by the deployment's fault.

        Args:
            retry_after_s: the pause that the deployment asked for.
        """
        self.failures += 1
        self.probed_at_s, self.failed_at_s = None, now_s
        open_s = min(retry_after_s or 0.0, _LONGEST_RETRY_AFTER_S)
        if self.failures >= settings.cool_after or self.open_until_s:
            doubled = settings.cool_s * 2.0 ** min(16, max(0, self.failures - settings.cool_after))
            open_s = max(open_s, min(_LONGEST_OPEN_S, doubled))
        if open_s:
            self.open_until_s = max(self.open_until_s, now_s + open_s)

    def on_end(self, requested_at_s: float) -> None:
        """A request of then is over. If it was the probe and brought nothing, its caller left: another may probe."""
        if self.probed_at_s == requested_at_s:
            self.probed_at_s = None


def in_order(shares: Sequence[Share], draw: Callable[[], float]) -> list[Share]:
    """The shares in the order in which to try them: by `order`, and among equals by a weighted draw without
    replacement.

    Args:
        draw: a uniform random number in [0, 1).
    """
    # Each is greatest of u^(1/w) with probability w/Σw (Efraimidis & Spirakis 2006, algorithm A).
    return sorted(shares, key=lambda share: (share.order, -(draw() ** (1.0 / share.weight))))

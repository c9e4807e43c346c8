"""The periods that budgets are about: calendar days and months, UTC, and all time."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

from andthen.ledger.records import Window

DAY_MS = 86_400_000


def period_start_ms(window: Window, at_ms: int) -> int:
    """When the window that `at_ms` lies in began, UTC."""
    return periods_ms(at_ms)[window]


def periods_ms(at_ms: int) -> dict[Window, int]:
    """When each of the windows that `at_ms` lies in began, UTC."""
    return _periods_ms(at_ms // DAY_MS)


@lru_cache(maxsize=64)
def _periods_ms(day: int) -> dict[Window, int]:
    month = datetime.fromtimestamp(day * DAY_MS / 1000, UTC).replace(day=1)
    return {"day": day * DAY_MS, "month": round(month.timestamp() * 1000), "total": 0}

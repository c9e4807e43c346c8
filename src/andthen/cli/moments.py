"""Moments that have passed, as options say them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click

_AGO = re.compile(r"(\d{1,5})([hdw])", re.ASCII)
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


class Moment(click.ParamType[int]):
    """A day, a moment, UTC where it names no other, or how long ago; in milliseconds since 1970."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if ago := _AGO.fullmatch(value):
            moment = datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        else:
            try:
                moment = datetime.fromisoformat(value)
            except ValueError:
                self.fail(
                    f"{value!r} is no moment: write 2026-11-23, 2026-11-23T12:00Z, or how long ago: 12h, 7d, 4w.",
                    param,
                    ctx,
                )
        return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)

"""The ledger's rows in SQLite. A row is in the database within a second after its reply: a thread posts the journal."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

WAIT_S = 10


def rows(home: Path, count: int = 1, *, key: str = "%") -> list[dict[str, Any]]:
    """The rows of requests, each with the number of its calls, oldest first, once there are at least `count` and none
    is open.

    Args:
        key: the name of the key whose rows are wanted; `%` is any.
    """
    query = (
        "SELECT r.*, (SELECT count(*) FROM calls c WHERE c.request_id = r.id) AS calls FROM requests r "
        "JOIN keys k ON k.id = r.key_id WHERE k.name LIKE ? ORDER BY started_at_ms, r.id"
    )
    deadline = time.monotonic() + WAIT_S
    while True:
        with closing(sqlite3.connect(f"file:{home / 'andthen.db'}?mode=ro", uri=True)) as raw:
            raw.row_factory = sqlite3.Row
            found = [dict(row) for row in raw.execute(query, (key,))]
        if len(found) >= count and all(row["settled_at_ms"] for row in found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.02)

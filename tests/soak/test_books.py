"""The books under a budget, load and SIGKILL: nothing that a client got whole is missing, and no reservation stays."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import uvloop

from andthen.books.policy import Budget, Policy
from andthen.books.store import open_sqlite
from andthen.books.writer import LEASE_S
from tests.serving import Server, serving
from tests.soak.asking import ask, is_whole, until
from tests.soak.test_deaths import pid

CLIENTS = 24
KILLS = 50
BUDGET = Budget(window="total", tokens=100_000_000)

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]


def bounded(server: Server) -> tuple[Server, str]:
    """The server, asked with a key that has a budget; and the key's id."""
    with closing(open_sqlite(server.home / "andthen.db")) as store:
        issued = store.create_key("bounded", policy=Policy(budgets=(BUDGET,)))
    return Server(server.url, issued.secret, server.model, server.home, server.process), issued.key.id


def rows(server: Server, key_id: str) -> dict[str, dict[str, Any]]:
    with closing(sqlite3.connect(f"file:{server.home / 'andthen.db'}?mode=ro", uri=True)) as raw:
        raw.row_factory = sqlite3.Row
        return {row["id"]: dict(row) for row in raw.execute("SELECT * FROM requests WHERE key_id = ?", (key_id,))}


def test_workers_die_at_random_moments(tmp_path: Path) -> None:
    whole: dict[str, int] = {}
    over = asyncio.Event()

    async def client(asked: Server, number: int) -> None:
        draw = random.Random(number)
        while not over.is_set():
            options = {"stream_options": {"include_usage": True}}
            try:
                reply = await ask(
                    asked, stream=True, max_tokens=draw.randrange(1, 120), seed=draw.randrange(99), **options
                )
            except ConnectionError:
                reply = b""
            if is_whole(reply):
                (request_id,) = set(re.findall(rb'"id":"(cmpl-[^"]+)"', reply))
                usage = next(json.loads(found) for found in re.findall(rb'"usage":(\{"prompt[^}]*\}[^}]*\})', reply))
                whole[request_id.decode()] = usage["total_tokens"]
            else:
                await asyncio.sleep(0.05)

    async def run(server: Server) -> None:
        asked, key_id = bounded(server)
        clients = [asyncio.create_task(client(asked, number)) for number in range(CLIENTS)]
        draw = random.Random(0)
        for _ in range(KILLS):
            await asyncio.sleep(draw.uniform(0.2, 1.5))
            place = f"worker-{draw.randrange(2)}"
            try:
                os.kill(pid(server, place), signal.SIGKILL)
            except ProcessLookupError:
                continue  # it is only just coming back
        over.set()
        await asyncio.gather(*clients)

        def settled() -> bool:
            return all(row["settled_at_ms"] for row in rows(server, key_id).values())

        took_s = await until(settled, "what dead workers had reserved is given back")
        found = rows(server, key_id)
        lost = sum(row["ended_by"] == "lost" for row in found.values())
        print(
            f"\n{len(whole)} whole, {len(found)} rows, {lost} lost; all settled {took_s:.1f} s after the last request"
        )
        assert len(whole) > KILLS
        for request_id, tokens in whole.items():
            row = found[request_id]
            assert row["prompt_tokens"] + row["completion_tokens"] == tokens
            assert row["ended_by"] == "reply"
        with closing(open_sqlite(server.home / "andthen.db")) as store:
            (spent,) = store.spent(key_id, [BUDGET])
        assert spent.reserved_tokens == 0
        assert spent.tokens == sum(row["prompt_tokens"] + row["completion_tokens"] for row in found.values())
        assert took_s < LEASE_S + 15

    with serving(tmp_path, "--workers", "2") as server:
        uvloop.run(run(server))

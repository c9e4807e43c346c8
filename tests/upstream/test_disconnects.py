"""A caller who leaves, at every stage, before the embedded engine and before a vendor: the work ends, what was made is
billed and no more, and neither a limit's place nor a budget's reservation stays taken. On SQLite with two workers, and
on PostgreSQL with Redis.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa

from andthen.books.policy import Policy
from andthen.books.store import IssuedKey, open_store
from andthen.ledger.records import Budget
from tests.books.limiting import free_port, redis_of_its_own
from tests.postgres import own_database
from tests.server.running import Running, read_until, running
from tests.upstream.vendor import END, STREAM, Playing, Sent, choice, completion, frame, json_reply

BUDGET = Budget(window="total", tokens=100_000)
SOON_S = 0.3
"""Less than a request waits for its intent, and more than it takes to come there."""


async def play(sent: Sent) -> AsyncIterator[bytes]:
    """What the scripted engine does, at a vendor: `hold`, `slow`, and `busy`, to be asked again after a pause."""
    word = sent.body["prompt"]
    if word == "busy":
        yield json_reply({"error": {"message": "busy"}}, 503, retry_after="8")
    elif word == "hold":
        await sent.left.wait()
    elif not sent.body.get("stream"):
        yield json_reply(completion(choice(" 1 2 3", reason="length")))[:-40]
        await sent.left.wait()
    else:
        yield STREAM
        for number in range(1, 1000):
            yield frame(completion(choice(f" {number}"), usage=None))
            await asyncio.sleep(0.02)
        yield END


@dataclass
class Place:
    """A server, its database, and what its requests wait for."""

    server: Running
    database: str
    engine: sa.Engine
    vendor: Playing
    keys: dict[tuple[str, str], IssuedKey]
    """By stage and model; made before the server's start, so that each worker knows them."""
    lock: str
    """The statement after which the ledger takes nothing, until its transaction ends."""
    limiter: Callable[[int], object]
    """Signals the process that counts."""

    @contextmanager
    def held_ledger(self) -> Iterator[None]:
        with self.engine.connect() as other:
            other.exec_driver_sql(self.lock)
            yield
            other.rollback()

    @contextmanager
    def held_limiter(self) -> Iterator[None]:
        self.limiter(signal.SIGSTOP)
        try:
            yield
        finally:
            self.limiter(signal.SIGCONT)

    def row(self, key_id: str) -> dict[str, Any] | None:
        """The ledger's only row of this key."""
        with self.engine.connect() as reading:
            found = reading.execute(sa.text("SELECT * FROM requests WHERE key_id = :id"), {"id": key_id})
            row = found.mappings().one_or_none()
            return None if row is None else dict(row)

    def calls(self, request_id: str) -> list[tuple[int, str]]:
        with self.engine.connect() as reading:
            found = reading.execute(
                sa.text("SELECT status, source FROM calls WHERE request_id = :id ORDER BY number"), {"id": request_id}
            )
            return [(row.status, row.source) for row in found]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("disconnects")
    with ExitStack() as stack:
        vendor = stack.enter_context(closing(Playing(play)))
        books = "workers = 2"
        if request.param == "sqlite":
            database = str(folder / "home" / "andthen.db")
            engine = sa.create_engine(f"sqlite:///{database}", connect_args={"isolation_level": None})
        else:
            url = stack.enter_context(own_database())
            database = url.render_as_string(hide_password=False)
            engine = sa.create_engine(url.set(drivername="postgresql+psycopg"))
            open_store(database, migrate=True).close()
            redis = stack.enter_context(redis_of_its_own(folder, free_port()))
            books = f'[books]\ndatabase = "{database}"\nredis = "{redis.url}"'
        stack.callback(engine.dispose)
        settings = f"""
{books}
[models."team/m"]
address = "http://127.0.0.1:{vendor.port}/v1"
language = "openai_completions"
model = "m"
"""
        with closing(open_store(database)) as store:
            policy = Policy(concurrent_requests=1, budgets=(BUDGET,))
            keys = {case: store.create_key(f"leaver {number}", policy=policy) for number, case in enumerate(CASES)}
        server = stack.enter_context(running(folder / "home", settings))
        if request.param == "sqlite":
            yield Place(server, database, engine, vendor, keys, "BEGIN IMMEDIATE", server.process.send_signal)
        else:
            lock = "LOCK TABLE requests IN ACCESS EXCLUSIVE MODE"
            yield Place(server, database, engine, vendor, keys, lock, redis.signal)


@dataclass
class Stage:
    word: str
    stream: bool
    tokens: tuple[int, int]
    """Of the prompt and, at the least, of the completion, to be billed for the engine."""
    upstream: tuple[int, int]
    """The same for the vendor."""
    exchanged: tuple[int, str] | None = None
    """The status and the tokens' source of the vendor's call."""
    until: str = "asked"
    """How it is known that the stage is reached."""
    held: str = ""
    """What stands still meanwhile."""


STAGES = {
    "waiting for its turn": Stage("hold", False, (3, 0), (1, 0), (0, "estimated")),
    "a stream before its first byte": Stage("hold", True, (3, 0), (1, 0), (0, "estimated")),
    "amid a stream": Stage("slow", True, (3, 3), (1, 2), (200, "estimated"), until="third token"),
    "amid a whole reply": Stage("slow", False, (3, 0), (1, 0), (200, "estimated")),
    "asleep before a retry": Stage("busy", False, (0, 0), (0, 0), (503, "vendor"), until="refused"),
    "waiting for the limiter": Stage("go", False, (0, 0), (0, 0), held="limiter", until="at once"),
    "while its intent is written": Stage("go", True, (0, 0), (0, 0), held="ledger", until="soon"),
}


CASES = [
    (name, model)
    for name, stage in STAGES.items()
    for model in ("local/count", "team/m")
    if (stage.word, model) != ("busy", "local/count")  # the engine is asked once
]


def reach(place: Place, stage: Stage, model: str, client: socket.socket) -> None:
    """Waits until the request is where it shall be left."""
    server, vendor = place.server, place.vendor.vendor
    if stage.until == "third token":
        read_until(client, b'" 3"')
    elif stage.until == "refused":
        server.until(lambda: len(vendor.sent) == 1 and vendor.running == 0, "the vendor has refused it")
    elif stage.until == "soon":
        time.sleep(SOON_S)
    elif stage.until == "at once":
        pass  # the request is read before the end of the connection, and waits by then
    elif model == "team/m":
        server.until(lambda: len(vendor.sent) == 1, "the vendor was asked")
    else:
        server.until(lambda: server.jobs() == 1, "the engine was asked")


@pytest.mark.parametrize(("name", "model"), CASES)
def test_who_leaves_ends_the_work_pays_for_what_was_made_and_leaves_nothing_taken(
    place: Place, name: str, model: str
) -> None:
    stage, issued = STAGES[name], place.keys[name, model]
    server, vendor = place.server, place.vendor.vendor
    vendor.sent.clear()
    server.key = issued.secret
    held: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "limiter": place.held_limiter,
        "ledger": place.held_ledger,
        "": nullcontext,
    }
    with held[stage.held](), server.connect() as client:
        server.send(client, stage.word, model=model, stream=stage.stream, max_tokens=900)
        reach(place, stage, model, client)
        server.until_closed_by_client(client)

    def settled() -> bool:
        row = place.row(issued.key.id)
        return row is not None and row["settled_at_ms"] is not None

    server.until(settled, "it is settled")
    row = place.row(issued.key.id)
    assert row is not None
    ends = [(499, "caller", "")]
    if stage.held == "limiter":
        # Redis is waited for 0.25 s, which on a busy machine is over before it is known that the caller left.
        ends.append((503, "error", "limits_unavailable"))
    assert (row["status"], row["ended_by"], row["code"]) in ends
    prompt_tokens, completion_tokens = stage.upstream if model == "team/m" else stage.tokens
    assert row["prompt_tokens"] == prompt_tokens
    assert completion_tokens <= row["completion_tokens"] < 900
    if model == "team/m":
        assert place.calls(row["id"]) == ([stage.exchanged] if stage.exchanged else [])
        assert len(vendor.sent) == (1 if stage.exchanged else 0)
        if stage.word != "busy":  # whose connection is kept, since its reply was whole
            server.until(lambda: all(sent.left.is_set() for sent in vendor.sent), "the vendor's connection is closed")
    server.until_jobs(0)
    with closing(open_store(place.database)) as store:
        (spent,) = store.spent(issued.key.id, [BUDGET])
    assert (spent.tokens, spent.reserved_tokens) == (row["prompt_tokens"] + row["completion_tokens"], 0)
    server.until(lambda: server.complete("go", max_tokens=1).status == 200, "its place is free again")

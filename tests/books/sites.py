"""Servers that share their books, and what stands in these: one machine with two workers, SQLite and counts in the
supervisor, or two machines' worth of servers with one PostgreSQL and one Redis.
"""

from __future__ import annotations

import json
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa

from andthen.books.policy import Policy
from andthen.books.store import open_store
from tests.serving import LOG, START_S, STOP_S, Server, free_port, start, wait_until_ready

MODEL = "local/tale"
PRICES = f'[prices."{MODEL}"]\nprompt = 1\ncompletion = 2\n'
"""In millionths of a dollar: a prompt's token costs one, one that is made costs two."""


class Spending(NamedTuple):
    """Of one key in all its time, as its row has it."""

    micros: int
    reserved_micros: int
    tokens: int
    reserved_tokens: int


class Books:
    """What stands in the database, read past everything of ours."""

    def __init__(self, place: str | Path) -> None:
        self.place = place
        url = sa.make_url(place) if isinstance(place, str) else sa.URL.create("sqlite", database=str(place))
        if isinstance(place, str):
            url = url.set(drivername="postgresql+psycopg")
        self._engine = sa.create_engine(url, pool_pre_ping=True)

    def close(self) -> None:
        self._engine.dispose()

    def issue(self, name: str, **policy: Any) -> tuple[str, str]:
        """A new key's secret and id."""
        with closing(open_store(self.place)) as store:
            issued = store.create_key(name, policy=Policy(**policy))
        return issued.secret, issued.key.id

    def spending(self, key_id: str) -> Spending:
        columns = ", ".join(Spending._fields)
        found = self._rows(f"SELECT {columns} FROM spending WHERE key_id = :key", key_id)
        return Spending(*map(int, found[0].values())) if found else Spending(0, 0, 0, 0)

    def requests(self, key_id: str) -> dict[str, dict[str, Any]]:
        return {row["id"]: row for row in self._rows("SELECT * FROM requests WHERE key_id = :key", key_id)}

    def calls(self, key_id: str) -> list[dict[str, Any]]:
        return self._rows(
            "SELECT calls.* FROM calls JOIN requests ON requests.id = request_id WHERE key_id = :key", key_id
        )

    def do(self, statement: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(sa.text(statement))

    def _rows(self, statement: str, key_id: str) -> list[dict[str, Any]]:
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(sa.text(statement), {"key": key_id}).mappings()]


class Replica:
    """One `andthen serve`, on a port that it keeps."""

    def __init__(self, home: Path, settings: str, workers: int) -> None:
        self.home = home
        self.port = free_port()
        self._workers = workers
        self.starts = 0
        self.process: subprocess.Popen[str]
        home.mkdir(exist_ok=True)
        (home / "andthen.toml").write_text(settings)

    def start(self) -> None:
        self.starts += 1
        self.process = start(self.home, self.port, "--workers", str(self._workers))

    def wait(self) -> None:
        wait_until_ready(self.url, self.process, self.home)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(STOP_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def asked(self, secret: str) -> Server:
        """To be asked with this key."""
        return Server(self.url, secret, MODEL, self.home, self.process)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> list[dict[str, Any]]:
        lines = (self.home / LOG).read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def pid(self, place: str) -> int:
        """Of the child that was started last in this place."""
        started = [line for line in self.log if line["event"] == "process_started"]
        return int([line["pid"] for line in started if line["place"] == place][-1])

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=START_S):
                return True
        except (urllib.error.URLError, ConnectionError):
            return False


class Site(NamedTuple):
    books: Books
    replicas: list[Replica]

    def asked(self, secret: str) -> list[Server]:
        """Whom to ask with this key."""
        return [replica.asked(secret) for replica in self.replicas]


@contextmanager
def site(books: Books, replicas: list[Replica]) -> Iterator[Site]:
    """They are ready, and stopped by SIGTERM at the end."""
    try:
        for replica in replicas:
            replica.start()
        for replica in replicas:
            replica.wait()
        yield Site(books, replicas)
    finally:
        for replica in replicas:
            replica.stop()
        books.close()


@contextmanager
def one_machine(folder: Path, settings: str = PRICES) -> Iterator[Site]:
    with site(Books(folder / "home" / "andthen.db"), [Replica(folder / "home", settings, workers=2)]) as made:
        yield made


@contextmanager
def two_replicas(folder: Path, postgres: str, redis: str, settings: str = PRICES) -> Iterator[Site]:
    open_store(postgres, migrate=True).close()
    # Tests also crash PostgreSQL, which is what a commit waits for the disk for.
    settings += f'[books]\ndatabase = "{postgres}"\nredis = "{redis}"\ndurability = "power"\n'
    homes = [folder / "one", folder / "two"]
    replicas = [Replica(home, settings, workers) for workers, home in enumerate(homes, start=1)]
    with site(Books(postgres), replicas) as made:
        yield made

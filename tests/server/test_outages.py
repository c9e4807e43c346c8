"""A database that goes, stalls or slows down while requests run, or a disk that fills up: what is answered, that
nothing is lost, and what the log says.
"""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from andthen.ledger.records import Budget
from tests.books.own_postgres import OwnPostgres, postgres_of_its_own
from tests.books.sites import Books
from tests.server.running import COMPLETIONS, Answer, Running, running

REFUSED_WITHIN_S = 4.0
"""Two are promised; a database that nobody waits for so would take five at least."""
BUDGET = Budget(window="total", tokens=10**6)
RUNNING = 6
TOKENS = 30
"""Of each request under way, which takes three seconds."""
COST = 3 + TOKENS
BODY = {"model": "local/count", "prompt": "one"}
QUIET = {"ledger_caught_up", "ledger_unrecorded"}
"""May be in the log several times."""
REFUSALS = 240
LEFT = 3000
"""Files of settlements: what a minute without a database left behind, before refusals were counted."""
CAUGHT_UP_WITHIN_S = 120.0


class Kept:
    """A server, asked with a key that has a budget; another key with one, of which nothing is in memory; its books."""

    def __init__(self, server: Running, books: Books) -> None:
        self.server = server
        self.books = books
        server.key, self.key_id = books.issue("bounded", budgets=(BUDGET,))
        self.stranger, self.stranger_id = books.issue("stranger", budgets=(BUDGET,))

    @contextmanager
    def under_way(self) -> Iterator[list[Future[Answer]]]:
        """Requests that run; they have ended at the end."""
        with ThreadPoolExecutor(RUNNING) as pool:
            asked = [
                pool.submit(self.server.complete, "slow", max_tokens=TOKENS, stream=number % 2 == 0)
                for number in range(RUNNING)
            ]
            self.server.until(lambda: len(self.books.requests(self.key_id)) == RUNNING, "they run")
            yield asked

    def goes_on(self) -> None:
        """A new request is answered as ever: the database is not waited for."""
        began_s = time.monotonic()
        assert self.server.complete("one", max_tokens=1).status == 200
        assert time.monotonic() - began_s < REFUSED_WITHIN_S

    def refused(self, **headers: str) -> None:
        """A new request is, and soon; by the key of which nothing is in memory unless `headers` say another."""
        began_s = time.monotonic()
        body = {"model": "local/count", "prompt": "one"}
        answer = self.server.ask("POST", COMPLETIONS, body, **({"x_api_key": self.stranger} | headers))
        assert (answer.status, answer.code) == (503, "ledger_unavailable")
        assert time.monotonic() - began_s < REFUSED_WITHIN_S

    def spooled(self) -> bool:
        return any(self.server.home.glob("ledger-*.spool"))

    def log(self) -> Counter[str]:
        """What it says of the books."""
        lines = map(json.loads, self.server.log.splitlines())
        return Counter(line["event"] for line in lines if line["event"].startswith(("ledger", "keys")))

    def counted(self) -> int:
        """Requests without a row, by the metric."""
        page = self.server.ask("GET", "/metrics").body.decode()
        return sum(int(float(count)) for count in re.findall(r"andthen_unrecorded_requests_total{.*} (.+)", page))

    def caught_up(self) -> int:
        """Settlements that were written back."""
        return sum(line["settlements"] for line in self.server.events("ledger_caught_up"))

    def check(self, *, refused: int = 0, more: int = 0) -> None:
        """What cost something is there once, with what it cost; of each refusal there is a row or it is counted; and
        nothing is held any more.

        Args:
            more: requests of one token that were answered meanwhile.
        """
        self.server.until(lambda: self._settled() + self.counted() >= RUNNING + more + refused, "all is settled")
        self.server.until(lambda: self.log()["ledger_back"] > 0, "the log has that it is back")
        self.server.until(lambda: self.log()["keys_fresh_again"] == self.log()["keys_stale"], "so are the keys")
        rows = [*self._rows(self.key_id), *self._rows(self.stranger_id)]
        found = Counter((row["status"], row["prompt_tokens"] + row["completion_tokens"]) for row in rows)
        spending = self.books.spending(self.key_id)
        expected = {(200, COST): RUNNING, (200, 4): more, (503, 0): refused - self.counted()}
        assert found == {what: count for what, count in expected.items() if count}
        assert (spending.tokens, spending.reserved_tokens) == (RUNNING * COST + more * 4, 0)
        assert len(self.books.calls(self.key_id)) == RUNNING + more
        assert not set(self.log()) & {"ledger_entry_refused", "ledger_spool_unreadable", "ledger_journal_unreadable"}

    def _rows(self, key_id: str) -> list[dict[str, Any]]:
        return list(self.books.requests(key_id).values())

    def _settled(self) -> int:
        rows = [*self._rows(self.key_id), *self._rows(self.stranger_id)]
        return sum(row["settled_at_ms"] is not None for row in rows)


@contextmanager
def kept(home: Path, database: str = "", settings: str = "") -> Iterator[Kept]:
    with running(home, settings, database=database) as server, closing(Books(database or home / "andthen.db")) as books:
        yield Kept(server, books)


@pytest.fixture
def postgres() -> Iterator[OwnPostgres]:
    with postgres_of_its_own() as server:
        yield server


@pytest.mark.parametrize("gone_s", [0.0, pytest.param(30.0, marks=pytest.mark.soak)])
def test_a_database_that_goes(tmp_path: Path, postgres: OwnPostgres, gone_s: float) -> None:
    with kept(tmp_path / "home", postgres.url) as site:
        with site.under_way() as asked:
            postgres.stop()
            site.refused()
            site.goes_on()
            assert [one.result().status for one in asked] == [200] * RUNNING
        time.sleep(gone_s)
        site.refused()
        site.goes_on()
        postgres.start()
        site.check(refused=2, more=2)
        site.server.until(lambda: site.caught_up() >= RUNNING, "the log has what was caught up with")
        told = {"ledger_unavailable": 1, "keys_stale": 1, "keys_fresh_again": 1, "ledger_back": 1}
        assert {name: count for name, count in site.log().items() if name not in QUIET} == told
        assert site.server.complete("one").status == 200
        assert site.server.ask("POST", COMPLETIONS, BODY, x_api_key=site.stranger).status == 200


@pytest.mark.parametrize("still_s", [0.0, pytest.param(30.0, marks=pytest.mark.soak)])
def test_a_database_that_answers_nothing(tmp_path: Path, postgres: OwnPostgres, still_s: float) -> None:
    with kept(tmp_path / "home", postgres.url) as site:
        with site.under_way() as asked:
            postgres.stand_still()
            try:
                site.refused()
                site.goes_on()
                assert [one.result().status for one in asked] == [200] * RUNNING
                time.sleep(still_s)
                site.refused()
                site.goes_on()
            finally:
                postgres.go_on()
        site.check(refused=2, more=2)
        assert (site.log()["ledger_unavailable"], site.log()["ledger_back"]) == (1, 1)
        assert site.server.complete("one").status == 200


def refuse_writes(postgres: OwnPostgres, books: Books) -> None:
    """As a database does that was failed over from, or whose disk is full."""
    books.do("ALTER DATABASE postgres SET default_transaction_read_only = on")
    books.do("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'andthen'")


def take_writes(postgres: OwnPostgres, books: Books) -> None:
    books.do("BEGIN; SET TRANSACTION READ WRITE; ALTER DATABASE postgres RESET default_transaction_read_only; COMMIT")
    books.do("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'andthen'")


OUTAGES: dict[str, tuple[Callable[[OwnPostgres, Books], None], Callable[[OwnPostgres, Books], None]]] = {
    "gone": (lambda postgres, _: postgres.stop(), lambda postgres, _: postgres.start()),
    "takes no writes": (refuse_writes, take_writes),
}


@pytest.mark.parametrize(("begin", "end"), OUTAGES.values(), ids=OUTAGES)
def test_requests_meanwhile_have_their_rows_once_it_is_over(
    tmp_path: Path,
    postgres: OwnPostgres,
    begin: Callable[[OwnPostgres, Books], None],
    end: Callable[[OwnPostgres, Books], None],
) -> None:
    """Whether they were answered or refused, for whatever reason."""
    asked: list[dict[str, Any]] = [{"max_tokens": 1}, {"temperature": 9}, {"model": "local/none"}]
    with kept(tmp_path / "home", postgres.url) as site:
        with site.under_way() as under_way:
            begin(postgres, site.books)
            assert [one.result().status for one in under_way] == [200] * RUNNING
        site.refused()
        with ThreadPoolExecutor(RUNNING) as pool:
            answers = pool.map(lambda number: site.server.complete("one", **asked[number % 3]).status, range(REFUSALS))
        assert Counter(answers) == dict.fromkeys((200, 400, 404), REFUSALS // 3)
        end(postgres, site.books)
        site.server.until(lambda: len(site.books.requests(site.key_id)) == RUNNING + REFUSALS, "all have rows")
        rows = site.books.requests(site.key_id).values()
        assert Counter(row["status"] for row in rows) == {
            200: RUNNING + REFUSALS // 3, 400: REFUSALS // 3, 404: REFUSALS // 3,
        }  # fmt: skip
        assert site.counted() == 0
        assert site.books.spending(site.key_id).reserved_tokens == 0
        site.server.until(
            lambda: site.server.ask("POST", COMPLETIONS, BODY, x_api_key=site.stranger).status == 200, "all goes on"
        )


@contextmanager
def held(home: Path) -> Iterator[None]:
    """Another process writes into the SQLite file for as long as this lasts."""
    with closing(sqlite3.connect(home / "andthen.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def test_past_the_bound_of_the_journal_requests_are_refused_and_counted(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with kept(home, settings="[books]\njournal_bytes = 65536") as site:
        site.goes_on()
        answered = 1
        with held(home):
            while (answer := site.server.complete("one", max_tokens=1)).status == 200:
                answered += 1
                assert answered < 2000, "it has no bound"
            assert (answer.status, answer.code) == (503, "ledger_unavailable")
            while not site.counted():
                site.refused(x_api_key=site.server.key)
            size = sum(file.stat().st_size for file in (home / "journal").iterdir())
            assert 65536 < size < 2 * 65536
        site.server.until(lambda: site.server.complete("one", max_tokens=1).status == 200, "it answers again")
        answered += 1
        site.server.until(
            lambda: sum(row["status"] == 200 for row in site.books.requests(site.key_id).values()) == answered,
            "what was answered has its row",
        )
        site.server.until(lambda: bool(site.server.events("ledger_unrecorded")), "the log has it")
        assert sum(site.server.events("ledger_unrecorded")[0]["requests"].values()) <= site.counted()
        assert site.books.spending(site.key_id).tokens == 4 * answered


OF_BEFORE = (
    '{"intent":{"id":"cmpl-%d","key_id":"key_old","holder":"dead","model":"local/x","started_at_ms":1,"stream":false,'
    '"account":"","user":"","reserved_micros":0,"reserved_tokens":0,"budgets":[{"window":"day","micros":3}]},'
    '"status":200,"ended_by":"reply","settled_at_ms":2,"code":"","model":"","tokens":{"prompt":1,"cached":0,'
    '"completion":1,"reasoning":0,"source":"vendor"},"cost_micros":0,"price":"","plan":"","origin":"model","retries":0,'
    '"queue_ms":null,"first_ms":null,"total_ms":0,"calls":[{"model":"local/x","status":200,"tokens":{"prompt":1},'
    '"cost_micros":0,"took_ms":1}]}'
)
"""A line of a file that a version without a journal has left."""


@pytest.mark.parametrize("workers", [1, 2])
def test_what_an_earlier_outage_left_is_written_beside_live_requests(
    tmp_path: Path, postgres: OwnPostgres, workers: int
) -> None:
    with kept(tmp_path / "home", postgres.url, f"workers = {workers}") as site:
        for number in range(LEFT):
            part = site.server.home / f"ledger-dead-{number}.part"
            part.write_text(OF_BEFORE % number)
            part.rename(part.with_suffix(".spool"))
        answers: list[int] = []
        deadline_s = time.monotonic() + CAUGHT_UP_WITHIN_S
        with ThreadPoolExecutor(2) as pool:
            while site.spooled() and time.monotonic() < deadline_s:
                answers += [one.status for one in pool.map(site.server.complete, ["one"] * 4)]
        assert set(answers) == {200}
        assert not site.spooled()
        assert len(site.books.requests("key_old")) == LEFT
        site.server.until(lambda: site.caught_up() >= LEFT, "the log has it")
        assert set(site.log()) <= QUIET


SLOW = """
CREATE TABLE mood AS SELECT 0 AS delay_s;
CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_sleep(delay_s) FROM mood; RETURN NULL; END $$;
CREATE TRIGGER slow AFTER INSERT OR UPDATE ON requests EXECUTE FUNCTION dawdle();
CREATE TRIGGER slow AFTER INSERT OR UPDATE ON holders EXECUTE FUNCTION dawdle();
"""


@pytest.mark.soak
def test_a_database_that_takes_two_seconds_to_write(tmp_path: Path, postgres: OwnPostgres) -> None:
    with kept(tmp_path / "home", postgres.url) as site:
        site.books.do(SLOW)
        with site.under_way() as asked:
            site.books.do("UPDATE mood SET delay_s = 2")
            for _ in range(5):
                site.goes_on()
            assert [one.result().status for one in asked] == [200] * RUNNING
        site.books.do("UPDATE mood SET delay_s = 0")
        site.check(more=5)
        assert (site.log()["ledger_unavailable"], site.log()["ledger_back"]) == (1, 1)
        assert site.server.complete("one").status == 200


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a disk of its own takes root: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Until nothing more goes onto it; the file that does so."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    return ballast


@pytest.mark.soak  # not for its length: to mount a disk takes more than a test may ask for everywhere
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        (disk / "log").symlink_to(tmp_path / "log")
        with kept(disk) as site:
            with site.under_way() as asked:
                ballast = fill(disk)
                answered = 0
                while site.server.complete("one", max_tokens=1).status == 200:  # the file's last page has room
                    answered += 1
                    assert answered < 100
                assert [one.result().status for one in asked] == [200] * RUNNING
            site.refused(x_api_key=site.server.key)
            ballast.unlink()
            site.check(refused=2, more=answered)
            site.server.until(lambda: site.caught_up() >= RUNNING, "the log has what was caught up with")
            log = site.log()
            assert (log["ledger_unavailable"], log["ledger_back"]) == (1, 1)
            assert log["ledger_journal_failed"]
            assert site.server.complete("one").status == 200

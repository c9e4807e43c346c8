"""A database that goes, stalls or slows down while requests run, or a disk that fills up: what is answered, that
nothing is lost, and what the log says.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from andthen.books.ledger import Intent, Settlement, Tokens
from andthen.books.policy import Budget
from tests.books.own_postgres import OwnPostgres, postgres_of_its_own
from tests.books.sites import Books
from tests.server.running import Answer, Running, running

REFUSED_WITHIN_S = 4.0
"""Two are promised; a database that nobody waits for so would take five at least."""
BUDGET = Budget(window="total", tokens=10**6)
RUNNING = 6
TOKENS = 30
"""Of each request under way, which takes three seconds."""
COST = 3 + TOKENS
QUIET = {"ledger_caught_up", "ledger_unrecorded"}
"""May be in the log several times."""
REFUSALS = 240
LEFT = 3000
"""Files of settlements: what a minute without a database left behind, before refusals were counted."""
CAUGHT_UP_WITHIN_S = 120.0


class Kept:
    """A server, asked with a key that has a budget; and its books."""

    def __init__(self, server: Running, books: Books) -> None:
        self.server = server
        self.books = books
        server.key, self.key_id = books.issue("bounded", budgets=(BUDGET,))

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

    def refused(self) -> None:
        """A new request is, and soon."""
        began_s = time.monotonic()
        answer = self.server.complete("one")
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

    def check(self, *, refused: int) -> None:
        """What cost something is there once, with what it cost; of each refusal there is a row or it is counted; and
        nothing is held any more."""
        self.server.until(
            lambda: self._settled() + self.counted() >= RUNNING + refused and not self.spooled(), "all is settled"
        )
        self.server.until(lambda: self.log()["ledger_back"] > 0, "the log has that it is back")
        self.server.until(lambda: self.log()["keys_fresh_again"] == self.log()["keys_stale"], "so are the keys")
        rows = self.books.requests(self.key_id).values()
        told = Counter((row["status"], row["prompt_tokens"] + row["completion_tokens"]) for row in rows)
        spending = self.books.spending(self.key_id)
        assert told == Counter({(200, COST): RUNNING, (503, 0): refused - self.counted()})
        assert (spending.tokens, spending.reserved_tokens) == (RUNNING * COST, 0)
        assert len(self.books.calls(self.key_id)) == RUNNING
        assert not set(self.log()) & {"ledger_entry_refused", "ledger_spool_unreadable"}

    def _settled(self) -> int:
        return sum(row["settled_at_ms"] is not None for row in self.books.requests(self.key_id).values())


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
            assert [one.result().status for one in asked] == [200] * RUNNING
        time.sleep(gone_s)
        site.refused()
        assert site.spooled()
        postgres.start()
        site.check(refused=2)
        site.server.until(lambda: site.caught_up() >= RUNNING, "the log has what was caught up with")
        told = {"ledger_unavailable": 1, "keys_stale": 1, "keys_fresh_again": 1, "ledger_back": 1}
        assert {name: count for name, count in site.log().items() if name not in QUIET} == told
        assert site.server.complete("one").status == 200


@pytest.mark.parametrize("still_s", [0.0, pytest.param(30.0, marks=pytest.mark.soak)])
def test_a_database_that_answers_nothing(tmp_path: Path, postgres: OwnPostgres, still_s: float) -> None:
    with kept(tmp_path / "home", postgres.url) as site:
        with site.under_way() as asked:
            postgres.stand_still()
            try:
                site.refused()
                assert [one.result().status for one in asked] == [200] * RUNNING
                time.sleep(still_s)
                site.refused()
                assert site.spooled()
            finally:
                postgres.go_on()
        site.check(refused=2)
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
def test_refusals_leave_nothing_to_catch_up_with(
    tmp_path: Path,
    postgres: OwnPostgres,
    begin: Callable[[OwnPostgres, Books], None],
    end: Callable[[OwnPostgres, Books], None],
) -> None:
    """Those that cost nothing, for whatever reason they are refused."""
    asked: list[dict[str, Any]] = [{}, {"temperature": 9}, {"model": "local/none"}]
    with kept(tmp_path / "home", postgres.url) as site:
        with site.under_way() as under_way:
            begin(postgres, site.books)
            assert [one.result().status for one in under_way] == [200] * RUNNING
        site.refused()
        files = len(list(site.server.home.iterdir()))
        with ThreadPoolExecutor(RUNNING) as pool:
            refusals = pool.map(lambda number: site.server.complete("one", **asked[number % 3]).code, range(REFUSALS))
        told = Counter(refusals)
        assert told == dict.fromkeys(("ledger_unavailable", "invalid_value", "model_not_found"), REFUSALS // 3)
        assert len(list(site.server.home.iterdir())) <= files + 1, "a refusal writes no file"
        end(postgres, site.books)
        site.server.until(lambda: site.server.complete("one", max_tokens=1).status == 200, "it answers again")
        site.server.until(lambda: not site.spooled() and bool(site.server.events("ledger_unrecorded")), "it is over")
        rows = site.books.requests(site.key_id).values()
        refused = [row for row in rows if row["status"] != 200]
        assert len(refused) + site.counted() >= 1 + REFUSALS
        assert site.caught_up() <= RUNNING + len(refused)
        logged = sum(sum(line["requests"].values()) for line in site.server.events("ledger_unrecorded"))
        assert logged == site.counted()
        costly = [row for row in rows if row["completion_tokens"] == TOKENS]
        assert len(costly) == RUNNING
        assert site.books.spending(site.key_id).reserved_tokens == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_what_an_earlier_outage_left_is_written_beside_live_requests(
    tmp_path: Path, postgres: OwnPostgres, workers: int
) -> None:
    with kept(tmp_path / "home", postgres.url, f"workers = {workers}") as site:
        for number in range(LEFT):
            intent = Intent(id=f"cmpl-{number}", key_id="key_old", holder="dead", model="local/x", started_at_ms=1)
            settlement = Settlement(
                intent=intent, status=200, ended_by="reply", settled_at_ms=2, tokens=Tokens(prompt=1, completion=1)
            )
            part = site.server.home / f"ledger-dead-{number}.part"
            part.write_bytes(msgspec.json.encode(settlement))
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
                site.refused()
            assert [one.result().status for one in asked] == [200] * RUNNING
        site.books.do("UPDATE mood SET delay_s = 0")
        site.check(refused=5)
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
                site.refused()
                assert [one.result().status for one in asked] == [200] * RUNNING
            site.refused()
            assert not site.spooled()
            ballast.unlink()
            site.check(refused=2)
            site.server.until(lambda: site.caught_up() >= RUNNING, "the log has what was caught up with")
            log = site.log()
            assert (log["ledger_unavailable"], log["ledger_back"]) == (1, 1)
            assert log["ledger_spool_failed"]
            assert site.server.complete("one").status == 200

"""`andthen ledger`."""

from __future__ import annotations

import csv
import io
import json
from contextlib import closing
from pathlib import Path

import pytest

from andthen.books.store import open_sqlite
from andthen.books.store.texts import KeptText
from tests.cli.running import run
from tests.ledger.making import intent, post, settled


@pytest.fixture
def home(tmp_path: Path) -> Path:
    with closing(open_sqlite(tmp_path / "andthen.db")) as store:
        key = store.create_key("ci").key
        texts = ['=HYPERLINK("http://evil.example")', 'a,b\n"c"', "-1", "\tx", "ü"]
        post(store, [
            settled(intent(number, key_id=key.id if number else "key_b", user=text))
            for number, text in enumerate(texts)
        ])  # fmt: skip
    return tmp_path


def test_requests_are_printed_as_lines_of_json(home: Path) -> None:
    done = run(home, "ledger", "export")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["user"][:2] for row in rows] == ["=H", "a,", "-1", "\tx", "ü"]
    assert rows[0]["started_at"] == "2027-01-15T12:00:00.000Z"
    assert rows[0]["cost_usd"] == "0.000030"


def test_no_spreadsheet_finds_a_formula_in_what_a_caller_wrote(home: Path) -> None:
    done = run(home, "ledger", "export", "--csv", variables={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    rows = list(csv.DictReader(io.StringIO(done.stdout, newline="")))
    assert [row["user"] for row in rows] == [
        "'=HYPERLINK(\"http://evil.example\")", "a,b\n\"c\"", "'-1", "'\tx", "ü",
    ]  # fmt: skip
    assert (rows[0]["stream"], rows[0]["queue_ms"], rows[0]["cost_usd"]) == ("false", "", "0.000030")


def test_of_nothing_there_is_a_head_alone(home: Path) -> None:
    assert run(home, "ledger", "export", "--until", "2020-01-01").stdout == ""
    assert run(home, "ledger", "export", "calls", "--csv", "--until", "2020-01-01").stdout.startswith(
        "request_id,number"
    )


def test_calls_and_single_keys_are_told_too(home: Path) -> None:
    found = [json.loads(line) for line in run(home, "ledger", "export", "calls", "--key", "ci").stdout.splitlines()]
    assert [row["request_id"] for row in found] == [f"cmpl-{number}" for number in range(1, 5)]
    assert run(home, "ledger", "export", "--key", "nobody").returncode == 1


def test_a_key_that_was_deleted_is_told_of_by_its_id(home: Path) -> None:
    with closing(open_sqlite(home / "andthen.db")) as store:
        key_id = store.delete_key("ci").id
    assert len(run(home, "ledger", "export", "--key", key_id).stdout.splitlines()) == 4
    assert key_id in run(home, "usage", "--since", "2027-01-01", "--key", key_id, "--csv").stdout
    assert run(home, "usage", "--key", "ci").returncode == 1


def test_one_request_is_shown_with_its_calls_and_its_text_if_that_is_asked_for(home: Path) -> None:
    with closing(open_sqlite(home / "andthen.db")) as store:
        store.add_texts([KeptText(request_id="cmpl-1", at_ms=1, prompts=["Ü"], completions=["x"])])
        shown = json.loads(run(home, "ledger", "show", "cmpl-1").stdout)
        assert (shown["user"], shown["calls"][0]["cost_usd"], "text" in shown) == ('a,b\n"c"', "0.000030", False)
        assert len(store.changes()) == 1
        assert json.loads(run(home, "ledger", "show", "cmpl-1", "--text").stdout)["text"]["prompts"] == ["Ü"]
        (line, _) = store.changes()
        assert (line.actor, line.action) == ("cli", "read text")
    assert json.loads(run(home, "ledger", "show", "cmpl-2", "--text").stdout)["text"] is None


def test_a_request_that_is_not_there_is_told(home: Path) -> None:
    done = run(home, "ledger", "show", "cmpl-none")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no request has the id 'cmpl-none'" in done.stderr


def prune(home: Path, what: str, before: str, *options: str) -> str:
    done = run(home, "ledger", "prune", what, "--before", before, *options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_old_rows_are_counted_and_then_removed_and_usage_stays(home: Path) -> None:
    used = run(home, "usage", "--since", "2027-01-01", "--csv").stdout
    assert prune(home, "requests", "2027-01-15", "--dry-run") == "rows that would go: 0\n"
    assert prune(home, "requests", "2027-02-01", "--dry-run") == "rows that would go: 5\n"
    assert prune(home, "requests", "2027-02-01") == "rows removed: 5\n"
    assert run(home, "ledger", "export").stdout == ""
    assert run(home, "usage", "--since", "2027-01-01", "--csv").stdout == used
    assert used.count("\n") == 3


def test_the_audit_is_cleared_away_by_itself(home: Path) -> None:
    assert prune(home, "audit", "2100-01-01") == "rows removed: 1\n"
    assert prune(home, "requests", "2027-02-01", "--dry-run") == "rows that would go: 5\n"


def test_a_moment_that_is_none_is_told(home: Path) -> None:
    done = run(home, "ledger", "prune", "requests", "--before", "yesterday")
    assert done.returncode == 2
    assert "'yesterday' is no moment: write 2026-11-23" in done.stderr

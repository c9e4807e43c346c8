"""`andthen keys`."""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path

import pytest

from andthen.books.store import HEAD, open_sqlite
from andthen.ledger.records import Intent, Settlement, Tokens
from tests.cli.running import run
from tests.ledger.making import post


def test_create_prints_only_the_key_and_it_is_in_force(tmp_path: Path) -> None:
    done = run(tmp_path, "keys", "create", "--name", "ci")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"at-[0-9A-Za-z]{43}\n", done.stdout)
    with closing(open_sqlite(tmp_path / "andthen.db")) as store:
        found = store.key_ring().lookup(done.stdout.strip(), 0)
    assert found is not None
    assert found.name == "ci"


def test_keys_are_listed_without_their_secrets_and_revoked(tmp_path: Path) -> None:
    secrets = [run(tmp_path, "keys", "create", "--name", name).stdout.strip() for name in ("ci", "laptop of Ada")]
    listed = run(tmp_path, "keys", "list").stdout
    head, first, second = listed.splitlines()
    assert head.split() == ["ID", "NAME", "KIND", "OWNER", "CREATED", "STATE"]
    assert re.fullmatch(r"key_\w{13}  ci  +\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ  in force", first)
    assert "laptop of Ada" in second
    assert not [secret for secret in secrets if secret in listed]

    by_name = run(tmp_path, "keys", "revoke", "laptop of Ada")
    by_id = run(tmp_path, "keys", "revoke", first.split()[0])
    assert re.fullmatch(r"key_\w{13} \(laptop of Ada\) is revoked, since \S+ \S+Z\n", by_name.stdout)
    assert (by_name.returncode, by_id.returncode) == (0, 0)
    revoked = run(tmp_path, "keys", "list").stdout.splitlines()[1:]
    assert all(re.search(r"Z  revoked \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ$", line) for line in revoked)
    with closing(open_sqlite(tmp_path / "andthen.db")) as store:
        assert len(store.key_ring()) == 0


def test_what_is_not_there_is_exit_code_1(tmp_path: Path) -> None:
    done = run(tmp_path, "keys", "revoke", "nobody")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: no key has the id 'nobody', and none in force the name: `andthen keys list`")


def test_a_name_that_is_taken_is_exit_code_1(tmp_path: Path) -> None:
    run(tmp_path, "keys", "create", "--name", "ci")
    done = run(tmp_path, "keys", "create", "--name", "ci")
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is a key named 'ci': choose another name" in done.stderr


def test_a_name_that_is_none_is_exit_code_2(tmp_path: Path) -> None:
    done = run(tmp_path, "keys", "create", "--name", "a\nb")
    assert (done.returncode, done.stdout) == (2, "")
    assert "a key's name has 1 to 64 letters" in done.stderr


def test_a_home_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(tmp_path / "file", "keys", "list")
    assert done.returncode == 1
    assert "set ANDTHEN_HOME to a folder that can be written" in done.stderr


EVERY_BOUND = """--owner Ada --tag batch --tag night --model local/* --model openai/gpt-* --rpm 60 --tpm 100000
    --concurrent 4 --max-tokens 256 --address 10.0.0.0/8 --budget day=5.00 --budget month=1000000t --budget day=2000t
    --expires 2099-01-31""".split()


def test_every_bound_of_a_key_is_set_shown_and_taken_away(tmp_path: Path) -> None:
    created = run(tmp_path, "keys", "create", "--name", "ci", "--json", *EVERY_BOUND)
    assert (created.returncode, created.stderr) == (0, "")
    made = json.loads(created.stdout)
    assert re.fullmatch(r"at-[0-9A-Za-z]{43}", made["secret"])
    assert made["key"]["expires_at_ms"] == 4_073_500_800_000
    assert made["key"]["policy"] == {
        "owner": "Ada",
        "tags": ["batch", "night"],
        "models": ["local/*", "openai/gpt-*"],
        "requests_per_minute": 60,
        "tokens_per_minute": 100_000,
        "concurrent_requests": 4,
        "max_tokens": 256,
        "addresses": ["10.0.0.0/8"],
        "budgets": [
            {"window": "day", "micros": 5_000_000, "tokens": 2000},
            {"window": "month", "tokens": 1_000_000},
        ],
    }
    shown = dict(
        re.split(r"  +", line, maxsplit=1) for line in run(tmp_path, "keys", "show", "ci").stdout.splitlines()[1:]
    )
    assert shown["state"] == "in force until 2099-01-31 00:00:00Z"
    assert (shown["model"], shown["budget"]) == ("local/*, openai/gpt-*", "day=5.00, day=2000t, month=1000000t")
    changed = run(tmp_path, "keys", "update", "ci", "--max-tokens", "8", "--clear", "budget", "--clear", "address")
    assert re.fullmatch(r"key_\w{13} \(ci\) is changed\n", changed.stdout)
    found = json.loads(run(tmp_path, "keys", "show", "ci", "--json").stdout)["policy"]
    assert found == {
        name: value for name, value in made["key"]["policy"].items() if name not in ("budgets", "addresses")
    } | {"max_tokens": 8}
    assert json.loads(run(tmp_path, "keys", "list", "--json").stdout)[0]["policy"] == found


def test_a_key_tells_what_of_its_budgets_is_used_and_what_is_held(tmp_path: Path) -> None:
    run(tmp_path, "keys", "create", "--name", "ci", "--budget", "total=5.00", "--budget", "total=2000t")
    with closing(open_sqlite(tmp_path / "andthen.db")) as store:
        key = store.find_key("ci")
        held = [
            Intent(
                id=f"cmpl-{number}", key_id=key.id, lease_owner="h", model="m", started_at_ms=1,
                budgets=key.policy.budgets,
                reserved_micros=250_000, reserved_tokens=100,
            )
            for number in range(2)
        ]  # fmt: skip
        post(store, held)
        tokens = Tokens(prompt=10, completion=20)
        post(store, [
            Settlement(
                intent=held[0], status=200, ended_by="reply", settled_at_ms=2, cost_micros=123_456, tokens=tokens
            )
        ])  # fmt: skip
    shown = run(tmp_path, "keys", "show", "ci").stdout
    assert "used (total)  $0.123456 of $5.000000, $0.250000 held; 30 tokens of 2000 tokens, 100 tokens held" in shown


def test_a_key_goes_through_its_life(tmp_path: Path) -> None:
    def told(*arguments: str) -> str:
        done = run(tmp_path, "keys", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def state() -> str:
        return told("list").splitlines()[1].split("Z  ", 1)[1]

    old = told("create", "--name", "ci", "--admin").strip()
    new = told("rotate", "ci", "--overlap", "1h").strip()
    with closing(open_sqlite(tmp_path / "andthen.db")) as store:
        found = store.key_ring().lookup(new, 0)
        assert found is not None
        assert found.admin
        assert store.key_ring().lookup(old, 0) == found
    assert told("disable", "ci").endswith("(ci) is disabled\n")
    assert state().startswith("disabled 20")
    told("enable", "ci")
    assert state() == "in force"
    assert re.search(r"ends at 2099-01-31 12:00:00Z$", told("expire", "ci", "2099-01-31T12:00Z"))
    assert state() == "in force until 2099-01-31 12:00:00Z"
    told("expire", "ci")
    assert state().startswith("expired 20")
    told("expire", "ci", "--never")
    assert state() == "in force"
    assert told("delete", "ci").endswith("(ci) is deleted\n")
    assert told("list").splitlines()[1:] == []


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--budget", "week=5", "is no budget: write day, month or total"),
        ("--budget", "day=0.0000001", "is no budget"),
        ("--budget", "day=1e9", "is no budget"),
        ("--expires", "soon", "is no time: write 30d"),
        ("--expires", "2020-01-01", "that is past, and the key would open nothing"),
        ("--address", "here", "Invalid value for --address: addresses: 'here' is no IP address and no network"),
        ("--tag", "", "Invalid value for --tag: tags: 1 to 256 characters"),
        ("--rpm", "-1", "is not in the range"),
    ],
)
def test_a_bound_that_cannot_be_is_told_at_its_option(tmp_path: Path, option: str, value: str, told: str) -> None:
    done = run(tmp_path, "keys", "create", "--name", "ci", option, value)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr


def test_a_window_has_one_amount_of_a_kind(tmp_path: Path) -> None:
    done = run(tmp_path, "keys", "create", "--name", "ci", "--budget", "day=5", "--budget", "day=6")
    assert (done.returncode, done.stdout) == (2, "")
    assert "two amounts of one kind for day: give one in US dollars" in done.stderr


def test_what_sets_nothing_is_no_change(tmp_path: Path) -> None:
    assert "nothing is to be changed" in run(tmp_path, "keys", "update", "ci").stderr


def test_keys_stand_in_the_database_that_the_settings_name(tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    file.write_text('[books]\ndatabase = "postgresql://ada:sesame@127.0.0.1:1/books"\n')
    for arguments in (("keys", "--config", file, "list"), ("migrate", "--config", file), ("serve", "--config", file)):
        done = run(tmp_path, *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert "the database postgresql://127.0.0.1:1/books can't be used" in done.stderr
        assert "sesame" not in done.stderr
    assert run(tmp_path, "migrate").stdout == f"the database is at schema {HEAD}\n"

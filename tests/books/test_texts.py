"""Prompts and completions that are kept: redacted first, bounded, read by nobody unseen."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from andthen.books import texts
from andthen.books.redaction import COMMON, BadRule, Redactor, check_rule
from andthen.books.settings import BooksSettings
from andthen.books.store import SqlStore, StoreUnavailable
from andthen.books.store.schema import TEXTS
from andthen.books.store.texts import KeptText
from andthen.books.texts import Draft, Texts
from andthen.contract.events import Finished, Text
from andthen.contract.limits import Limits
from andthen.contract.request import CompletionRequest, parse
from tests.ledger.making import NOON_MS, intent, post, settled

KEPT = BooksSettings(keep_text_days=7)


def asked(**fields: object) -> CompletionRequest:
    return parse(json.dumps({"model": "local/tale", "prompt": "Once"} | fields).encode(), Limits())


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("write to Ada.Lovelace+x@mail.example.org now", "write to [email] now"),
        ("Authorization: Bearer abcdefghijkl0123", "Authorization: [token]"),
        ("curl -H 'x: sk-proj-abc_DEF-0123456789'", "curl -H 'x: [key]'"),
        ("at-" + "a1B2" * 10 + "xyz", "[key]"),
        ("ghp_" + "a" * 36 + " and AKIAIOSFODNN7EXAMPLE", "[key] and [key]"),
        ("eyJhbGciOi.eyJzdWIi.c2ln", "[token]"),
        ("a -----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY----- b", "a [private key] b"),
        ("a -----BEGIN PRIVATE KEY-----\nMII and then nothing", "a [private key]"),
        (
            "An ordinary story - of 3 @ bears, task-force and all.",
            "An ordinary story - of 3 @ bears, task-force and all.",
        ),
    ],
)
def test_what_is_secret_by_its_form_is_taken_out(text: str, kept: str) -> None:
    assert Redactor(COMMON, 1000).redact(text) == kept


def test_rules_apply_in_their_order_and_what_they_match_is_named() -> None:
    redactor = Redactor({"customer": r"C-\d{6}", "number": r"\d+"}, 100)
    assert redactor.redact("C-123456 has 17 C-12") == "[customer] has [number] C-[number]"


def test_nothing_is_half_kept_because_it_passes_the_bound() -> None:
    redactor = Redactor({"number": r"\d+", "word": "secret"}, 10)
    assert redactor.redact("abcdefgh 1234567") == "abcdefgh [number]"
    assert redactor.redact("abcdefghij 1234567") == "abcdefghij"
    assert redactor.redact("1234567890123 secret 12 secret") == "[number]"
    assert redactor.redact("12 secret secret") == "[number] [word] "


@given(text=st.text("ab1 ", max_size=60), most=st.integers(1, 40))
def test_of_a_cut_text_no_digit_is_kept_that_a_rule_takes_out(text: str, most: int) -> None:
    kept = Redactor({"n": r"\d+"}, most).redact(text)
    assert "1" not in kept
    whole = Redactor({"n": r"\d+"}, 1000).redact(text)
    assert whole.startswith(kept)
    assert len(kept) >= min(most, len(text)) - text[:most].count("1")


def test_no_text_makes_a_rule_stand_still() -> None:
    redactor = Redactor({"slow elsewhere": r"(a+)+$|(a|a)*b|(\w+\s?)*:"}, 2**20)
    assert redactor.redact("a" * 100_000 + "!").endswith("!")


@pytest.mark.parametrize(
    ("name", "pattern", "told"),
    [
        ("UPPER", "x", "no name"),
        ("a]b", "x", "no name"),
        ("x", "(", "missing \\)"),
        ("x", "(?=a)", "invalid perl operator"),
        ("x", "a*", "matches an empty text"),
    ],
)
def test_a_rule_that_cannot_be_is_told(name: str, pattern: str, told: str) -> None:
    with pytest.raises(BadRule, match=told):
        check_rule(name, pattern)


def test_a_draft_holds_each_choice_as_far_as_it_came() -> None:
    draft = Draft("cmpl-1", asked(prompt=["me@x.example", "and you"], n=2, suffix="b@x.example"), 20)
    for index in range(4):
        draft.add([Text(index // 2, index % 2, f"{index}: you"), Finished(0, 0, "stop")])
    draft.add([Text(1, 1, "@x.example"), Text(1, 1, " " * 20), Text(1, 1, "beyond")])
    kept = draft.redacted(Redactor(COMMON, 12))
    assert kept.prompts == ["[email]", "and you"]
    assert kept.suffix == "[email]"
    assert kept.completions == ["0: you", "1: you", "2: you", "3: [email]"]


def test_token_ids_which_no_rule_can_read_are_told_by_their_number() -> None:
    assert Draft("cmpl-1", asked(prompt=[[1, 2, 3], [4]]), 20).redacted(Redactor({}, 9)).prompts == [
        "[3 tokens]", "[1 tokens]",
    ]  # fmt: skip


def test_of_many_choices_the_first_are_kept() -> None:
    draft = Draft("cmpl-1", asked(prompt=["Once"] * 70), 20)
    draft.add([Text(index, 0, str(index)) for index in range(70)])
    kept = draft.redacted(Redactor({}, 10))
    assert (len(kept.prompts), kept.completions[-1], len(kept.completions)) == (64, "63", 64)


class Fake:
    """A database whose moods a test decides."""

    def __init__(self) -> None:
        self.texts: list[KeptText] = []
        self.asked = 0
        self.mood: Callable[[], object] = lambda: None

    def add_texts(self, texts: Sequence[KeptText]) -> None:
        self.asked += 1
        self.mood()
        self.texts += texts


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.01)


def draft(keeper: Texts, number: int) -> Draft:
    made = keeper.begin(f"cmpl-{number}", asked(prompt="me@x.example"))
    assert made is not None
    made.add([Text(0, 0, " upon a time")])
    return made


async def test_by_default_nothing_is_kept() -> None:
    store = Fake()
    async with Texts(store, BooksSettings()) as keeper:
        assert keeper.begin("cmpl-1", asked()) is None


async def test_a_server_that_stops_with_nothing_to_write_writes_nothing() -> None:
    store = Fake()
    async with Texts(store, KEPT):
        await asyncio.sleep(0.01)
    assert store.asked == 0


async def test_texts_are_written_redacted_and_the_last_before_the_end() -> None:
    store = Fake()
    async with Texts(store, KEPT) as keeper:
        keeper.keep(draft(keeper, 1))
        await until(lambda: store.texts)
        keeper.keep(draft(keeper, 2))
        keeper.keep(draft(keeper, 3))
    assert [text.request_id for text in store.texts] == ["cmpl-1", "cmpl-2", "cmpl-3"]
    assert (store.texts[0].prompts, store.texts[0].completions) == (["[email]"], [" upon a time"])
    assert abs(store.texts[0].at_ms - time.time_ns() // 1_000_000) < 10_000


async def test_a_database_that_stands_still_holds_nobody_up_and_costs_texts_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(texts, "_MOST_WAITING", 3)
    store, still = Fake(), threading.Event()
    store.mood = lambda: still.wait(10)
    async with Texts(store, KEPT) as keeper:
        keeper.keep(draft(keeper, 0))
        await until(lambda: store.asked)
        for number in range(1, 6):
            keeper.keep(draft(keeper, number))
        still.set()
    assert [text.request_id for text in store.texts] == ["cmpl-0", "cmpl-1", "cmpl-2", "cmpl-3"]


async def test_what_a_database_does_not_take_is_lost_and_the_next_is_not() -> None:
    store = Fake()

    def gone() -> None:
        raise StoreUnavailable("gone")

    store.mood = gone
    async with Texts(store, KEPT) as keeper:
        keeper.keep(draft(keeper, 1))
        await until(lambda: store.asked)
        store.mood = lambda: None
        keeper.keep(draft(keeper, 2))
    assert [text.request_id for text in store.texts] == ["cmpl-2"]


def text(number: int, **fields: object) -> KeptText:
    return KeptText(request_id=f"cmpl-{number}", at_ms=NOON_MS + number, prompts=["Once\0"], completions=["ü\n"])


def test_whoever_reads_a_text_leaves_a_line_in_the_audit(any_store: SqlStore) -> None:
    key = any_store.create_key("ada").key
    post(any_store, [settled(intent(1, key_id=key.id))])
    any_store.add_texts([text(1), text(2)])
    any_store.add_texts([text(1)])
    assert any_store.read_text("cmpl-1", actor="key_boss") == text(1)
    (line, _) = any_store.changes()
    assert (line.actor, line.action, line.key_id, line.after) == (
        "key_boss", "read text", key.id, {"request_id": "cmpl-1"},
    )  # fmt: skip
    assert any_store.read_text("cmpl-3") is None
    assert len(any_store.changes()) == 2


def test_texts_go_when_their_time_is_over_or_their_request_goes(any_store: SqlStore) -> None:
    post(any_store, [settled(intent(number, started_at_ms=NOON_MS + number)) for number in range(4)])
    any_store.add_texts([text(number) for number in range(4)])
    assert any_store.count_old("texts", NOON_MS + 2) == 2
    assert any_store.remove_old("texts", NOON_MS + 2, most=1) == 1
    assert [any_store.read_text(f"cmpl-{number}") for number in range(3)] == [None, text(1), text(2)]
    any_store.remove_old("requests", NOON_MS + 3, most=10)
    with any_store.reading() as connection:
        assert connection.execute(sa.select(TEXTS.c.request_id)).scalars().all() == ["cmpl-3"]


def test_of_a_text_that_was_removed_nothing_is_left_in_the_file(tmp_path: Path) -> None:
    from andthen.books.store import open_sqlite

    path = tmp_path / "andthen.db"
    store = open_sqlite(path)
    post(store, [settled(intent(1))])
    secret = "a very particular beginning " * 400
    store.add_texts([KeptText(request_id="cmpl-1", at_ms=1, prompts=[secret], completions=[])])
    store.remove_old("texts", 2, most=1)
    store.close()
    assert b"particular" not in path.read_bytes()

"""Keys in either database: what each change does, and that the audit tells of it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from andthen.books.keys import Key
from andthen.books.policy import BadPolicy, Policy
from andthen.books.store import (
    IssuedKey,
    KeyChange,
    KeyEnded,
    NameTaken,
    NoSuchKey,
    SqlStore,
    open_store,
)
from andthen.books.store.database import now_ms
from andthen.ledger.records import Budget

BOUNDED = Policy(
    owner="Ada",
    tags=("batch",),
    models=("local/*",),
    requests_per_minute=10,
    tokens_per_minute=1000,
    concurrent_requests=2,
    max_tokens=64,
    addresses=("10.0.0.0/8", "::1"),
    budgets=(Budget(window="day", micros=5_000_000), Budget(window="total", tokens=10**9)),
)


def _opens(store: SqlStore, issued: IssuedKey, at_ms: int | None = None) -> Key | None:
    return store.key_ring().lookup(issued.secret, now_ms() if at_ms is None else at_ms)


def test_a_key_is_found_by_its_secret_and_ended_by_its_id(any_store: SqlStore) -> None:
    issued = any_store.create_key("ci")
    assert _opens(any_store, issued) == issued.key
    ended = any_store.revoke_key(issued.key.id)
    assert ended.revoked_at_ms is not None
    assert ended.revoked_at_ms >= issued.key.created_at_ms
    assert _opens(any_store, issued) is None
    assert any_store.list_keys() == [ended]


def test_a_key_keeps_its_policy(any_store: SqlStore) -> None:
    issued = any_store.create_key("ci", policy=BOUNDED, expires_at_ms=2**50)
    assert (issued.key.policy, issued.key.expires_at_ms, issued.key.admin) == (BOUNDED, 2**50, False)
    assert any_store.find_key("ci") == _opens(any_store, issued) == issued.key


def test_a_key_is_ended_by_its_name_and_ending_it_twice_changes_nothing(any_store: SqlStore) -> None:
    issued = any_store.create_key("ci")
    ended = any_store.revoke_key("ci")
    assert any_store.revoke_key(issued.key.id) == ended


def test_a_name_is_free_again_once_its_key_is_ended(any_store: SqlStore) -> None:
    any_store.create_key("ci")
    with pytest.raises(NameTaken, match="there is a key named 'ci'"):
        any_store.create_key("ci")
    first = any_store.revoke_key("ci")
    second = any_store.create_key("ci").key
    assert any_store.list_keys() == sorted([first, second], key=lambda key: (key.created_at_ms, key.id))
    assert any_store.revoke_key("ci").id == second.id


def test_a_bad_name_or_policy_changes_nothing(any_store: SqlStore) -> None:
    before = any_store.keys_stamp()
    with pytest.raises(ValueError, match="a key's name"):
        any_store.create_key("\n")
    with pytest.raises(BadPolicy, match="no network"):
        any_store.create_key("ci", policy=Policy(addresses=("here",)))
    assert any_store.keys_stamp() == before
    assert any_store.changes() == []


def test_every_change_renews_the_stamp_and_nothing_else_does(any_store: SqlStore) -> None:
    stamps = [any_store.keys_stamp()]
    changes: list[Callable[[], object]] = [
        lambda: any_store.create_key("ci"),
        lambda: any_store.update_key("ci", KeyChange(policy={"max_tokens": 3})),
        lambda: any_store.rotate_key("ci"),
        lambda: any_store.update_key("ci", KeyChange(disabled=True)),
        lambda: any_store.revoke_key("ci"),
        lambda: any_store.delete_key(any_store.list_keys()[0].id),
    ]
    for change in changes:
        change()
        stamps.append(any_store.keys_stamp())
    assert len(set(stamps)) == len(stamps)
    any_store.list_keys()
    with pytest.raises(NoSuchKey):
        any_store.revoke_key("nobody")
    assert any_store.keys_stamp() == any_store.key_ring().stamp == stamps[-1]


def test_the_first_key_is_made_where_there_never_was_one(any_store: SqlStore) -> None:
    first = any_store.create_first_key()
    assert first is not None
    assert any_store.create_first_key() is None
    any_store.delete_key(first.key.id)
    assert any_store.create_first_key() is None


def test_of_many_that_ask_at_once_one_gets_the_first_key(any_store: SqlStore) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: any_store.create_first_key(), range(4)))
    assert len([one for one in made if one is not None]) == 1


def test_a_policy_is_changed_field_by_field(any_store: SqlStore) -> None:
    any_store.create_key("ci", policy=BOUNDED)
    changed = any_store.update_key("ci", KeyChange(policy={"max_tokens": None, "models": ("openai/*",)}))
    assert changed.policy == msgspec.structs.replace(BOUNDED, max_tokens=None, models=("openai/*",))
    assert any_store.find_key("ci") == changed
    with pytest.raises(BadPolicy, match="one for each window"):
        any_store.update_key("ci", KeyChange(policy={"budgets": (Budget(window="day", micros=1),) * 2}))
    assert any_store.find_key("ci") == changed


def test_changes_of_different_fields_at_once_are_both_kept(any_store: SqlStore) -> None:
    any_store.create_key("ci")
    given = [{"max_tokens": 5}, {"owner": "Ada"}, {"requests_per_minute": 7}, {"tags": ("a",)}]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda fields: any_store.update_key("ci", KeyChange(policy=fields)), given))
    assert any_store.find_key("ci").policy == Policy(max_tokens=5, owner="Ada", requests_per_minute=7, tags=("a",))


def test_a_rotated_key_has_a_new_secret_and_the_old_one_opens_it_for_a_while(any_store: SqlStore) -> None:
    old = any_store.create_key("ci", policy=BOUNDED)
    before_ms = now_ms()
    new = any_store.rotate_key("ci", overlap_ms=60_000)
    assert new.key == old.key
    assert new.secret != old.secret
    assert _opens(any_store, new) == _opens(any_store, old) == old.key
    assert _opens(any_store, old, before_ms + 59_999) == old.key
    assert _opens(any_store, old, now_ms() + 60_000) is None
    assert _opens(any_store, new, now_ms() + 60_000) == old.key


def test_a_second_rotation_never_lengthens_an_old_secrets_time(any_store: SqlStore) -> None:
    first = any_store.create_key("ci")
    second = any_store.rotate_key("ci", overlap_ms=1000)
    third = any_store.rotate_key("ci", overlap_ms=60_000)
    assert _opens(any_store, first, now_ms() + 1000) is None
    assert _opens(any_store, second, now_ms() + 1000) == first.key
    last = any_store.rotate_key("ci")
    for ended in (first, second, third):
        assert _opens(any_store, ended) is None
    assert _opens(any_store, last) == first.key


def test_a_key_that_has_expired_gets_no_secret_that_would_open_nothing(any_store: SqlStore) -> None:
    old = any_store.create_key("ci", expires_at_ms=now_ms() - 1)
    with pytest.raises(KeyEnded, match="set a later end first"):
        any_store.rotate_key("ci")
    any_store.update_key("ci", KeyChange(expires_at_ms=None))
    assert any_store.rotate_key("ci").secret != old.secret


def test_a_disabled_key_is_out_of_force_until_it_is_enabled(any_store: SqlStore) -> None:
    issued = any_store.create_key("ci")
    disabled = any_store.update_key("ci", KeyChange(disabled=True))
    assert disabled.disabled_at_ms is not None
    assert any_store.update_key("ci", KeyChange(disabled=True)) == disabled
    assert _opens(any_store, issued) is None
    any_store.update_key("ci", KeyChange(disabled=False))
    assert _opens(any_store, issued) == issued.key


def test_a_key_expires_by_the_clock_and_may_be_given_more_time(any_store: SqlStore) -> None:
    issued = any_store.create_key("ci", expires_at_ms=1000)
    assert _opens(any_store, issued, 999) == issued.key
    assert _opens(any_store, issued, 1000) is None
    any_store.update_key("ci", KeyChange(expires_at_ms=2000))
    assert _opens(any_store, issued, 1000) is not None
    any_store.update_key("ci", KeyChange(expires_at_ms=None))
    assert _opens(any_store, issued, 2**60) is not None


def test_a_revoked_key_stays_so(any_store: SqlStore) -> None:
    ended = any_store.create_key("ci").key
    any_store.revoke_key("ci")
    for change in (
        lambda: any_store.update_key(ended.id, KeyChange(disabled=False)),
        lambda: any_store.rotate_key(ended.id),
    ):
        with pytest.raises(KeyEnded, match="for good"):
            change()


def test_a_deleted_key_is_in_no_list_and_opens_nothing(any_store: SqlStore) -> None:
    issued = any_store.create_key("ci")
    assert any_store.delete_key("ci") == issued.key
    assert any_store.list_keys() == []
    assert _opens(any_store, issued) is None
    for ask in (any_store.find_key, any_store.delete_key, any_store.revoke_key, any_store.rotate_key):
        with pytest.raises(NoSuchKey, match="`andthen keys list`"):
            ask(issued.key.id)
    assert any_store.create_key("ci").key.id != issued.key.id


@pytest.mark.parametrize("name", ["\0", "a\0b", "a\nb", "\udc80", "", "x" * 9999, "%", "_"])
def test_what_no_key_can_be_named_is_the_name_of_none(any_store: SqlStore, name: str) -> None:
    any_store.create_key("ci")
    for ask in (any_store.find_key, any_store.rotate_key, any_store.delete_key):
        with pytest.raises(NoSuchKey):
            ask(name)


def test_the_audit_tells_who_changed_what_and_no_secret(any_store: SqlStore) -> None:
    before_ms = now_ms()
    first = any_store.create_key("ci", policy=BOUNDED)
    any_store.update_key("ci", KeyChange(policy={"max_tokens": 8}), actor="key_admin")
    second = any_store.rotate_key("ci", overlap_ms=5000)
    any_store.update_key("ci", KeyChange(disabled=True))
    any_store.update_key("ci", KeyChange(disabled=False))
    any_store.update_key("ci", KeyChange(expires_at_ms=5))
    any_store.update_key("ci", KeyChange(expires_at_ms=5))
    any_store.revoke_key("ci")
    any_store.delete_key(first.key.id)
    told = any_store.changes()
    assert [change.action for change in reversed(told)] == (
        ["create", "update", "rotate", "disable", "enable", "expire", "revoke", "delete"]
    )
    created, updated, rotated = (told[-1], told[-2], told[-3])
    assert (created.actor, updated.actor) == ("cli", "key_admin")
    assert created.before is None
    assert created.after == msgspec.json.decode(msgspec.json.encode(first.key))
    assert updated.before == created.after
    assert updated.after is not None
    assert updated.after["policy"]["max_tokens"] == 8
    assert rotated.after is not None
    assert before_ms + 5000 <= rotated.after["older_secrets_until_ms"] <= now_ms() + 5000
    assert told[0].after is None
    assert all(before_ms <= change.at_ms <= now_ms() and change.key_id == first.key.id for change in told)
    assert [change.id for change in any_store.changes(limit=2, before_id=told[2].id)] == [told[3].id, told[4].id]
    for secret in (first.secret, second.secret):
        assert secret.removeprefix("at-") not in str(told)


def test_another_process_sees_what_one_has_changed(any_store: SqlStore, place: str | Path) -> None:
    with closing(open_store(place)) as other:
        issued = any_store.create_key("ci")
        assert _opens(other, issued) == issued.key
        assert other.keys_stamp() == any_store.keys_stamp()

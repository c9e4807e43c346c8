"""Keys as values."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andthen.books.keys import Held, Key, KeyRing, check_name, digest, new_id, new_secret

_KEY = Key(id="key_1", name="one", created_at_ms=0)


@given(st.binary(min_size=32, max_size=32))
def test_a_secret_is_43_url_safe_characters_behind_a_prefix(random_bytes: bytes) -> None:
    assert re.fullmatch("at-[0-9A-Za-z]{43}", new_secret(random_bytes))


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_a_secret_keeps_every_bit(one: bytes, other: bytes) -> None:
    assert (new_secret(one) == new_secret(other)) == (one == other)


def test_the_largest_secret_still_fits() -> None:
    assert new_secret(b"\xff" * 32) != new_secret(b"\xff" * 31 + b"\xfe")
    assert len(new_secret(b"\xff" * 32)) == len(new_secret(b"\x00" * 32))


@pytest.mark.parametrize("make", [new_secret, new_id])
def test_too_little_randomness_is_refused(make: object) -> None:
    with pytest.raises(ValueError, match="random bytes, not 8"):
        make(b"12345678")  # type: ignore[operator]


def test_a_ring_finds_a_key_by_its_secret_alone() -> None:
    ring = KeyRing(1, {digest("at-right"): Held(_KEY)})
    assert ring.lookup("at-right", 0) == _KEY
    assert ring.lookup("at-wrong", 0) is None
    assert ring.lookup("", 0) is None
    assert len(ring) == 1


@given(st.text())
def test_any_header_value_can_be_looked_up(secret: str) -> None:
    assert KeyRing(1, {}).lookup(secret, 0) is None


def test_lone_surrogates_can_be_looked_up() -> None:
    assert KeyRing(1, {}).lookup("\udcff", 0) is None


@pytest.mark.parametrize("name", ["a", "ci", "Łódź team", "me@example.org", "web-1_b+c.d", "x" * 64])
def test_plain_names_are_taken(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", " a", "a ", "a\n", "a\tb", "\x1b[31m", "-x", "x" * 65, "key_abc", "a/b"])
def test_other_names_are_refused_with_the_rule(name: str) -> None:
    with pytest.raises(ValueError, match="a key's name has 1 to 64 letters"):
        check_name(name)

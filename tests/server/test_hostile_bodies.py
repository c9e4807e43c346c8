"""Bodies that are made to hurt: each gets one of our errors, soon, and the process stays as large as it was."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from andthen.books.store import open_sqlite
from andthen.contract.errors import tree
from tests.server.running import COMPLETIONS, Running, running

MIB = 2**20
SOON_S = 8.0
"""On a machine at work. What a body makes slow would take minutes."""
GROWTH_BYTES = 30
"""The most that each byte of a body may cost while it is read: a list of one-letter strings costs the most."""
PRIME = 2**61 - 1
"""Integers that differ by it have the same hash."""


def completion(member: str) -> str:
    return f'{{"model": "local/count", "prompt": "go", "max_tokens": 1, {member}}}'


def members(count: int, name: Callable[[int], str] = str) -> str:
    return ",".join(f'"{name(number)}":0' for number in range(count))


BODIES: dict[str, str | bytes] = {
    "a million arrays": "[" * 1_000_000,
    "a million arrays, closed": "[" * 1_000_000 + "]" * 1_000_000,
    "a million objects": '{"a":' * 1_000_000,
    "a field of a million arrays": completion('"x":' + "[" * 1_000_000 + "]" * 1_000_000),
    "a prompt of a million arrays": completion('"prompt":' + "[" * 1_000_000 + "]" * 1_000_000),
    "many short nests": completion('"x":[' + ",".join(["[[[[]]]]"] * 200_000) + "]"),
    "brackets in strings": completion('"x":[' + ",".join([r'"[\"{\\"'] * 200_000) + "]"),
    "100 000 members": completion(members(100_000)),
    "100 000 members of one name": completion(members(100_000, lambda _: "prompt")),
    "100 000 biases": completion('"logit_bias":{' + members(100_000) + "}"),
    "100 000 biases of one hash": completion('"logit_bias":{' + members(100_000, lambda i: str(i * PRIME)) + "}"),
    "100 000 biases of half a hash": completion('"logit_bias":{' + members(100_000, lambda i: str(i << 20)) + "}"),
    "100 000 prompts": completion('"prompt":[' + ",".join(['"a"'] * 100_000) + "]"),
    "100 000 lists of ids": completion('"prompt":[' + ",".join(["[1]"] * 100_000) + "]"),
    "100 000 stops": completion('"stop":[' + ",".join(['"a"'] * 100_000) + "]"),
    "4 million prompts": completion('"prompt":[' + '"a",' * 4_000_000 + '"a"]'),
    "4 million floats": completion('"prompt":[' + "1.0," * 4_000_000 + "1.5]"),
    "8 million ids": completion('"prompt":[' + "1," * 8_000_000 + "1]"),
    "1.3 million members": completion(members(1_300_000)),
    "a million members of an object": completion('"structured_outputs":{' + members(1_000_000) + "}"),
    "a number of a million digits": completion('"seed":' + "9" * 1_000_000),
    "a fraction of a million digits": completion('"temperature":0.' + "9" * 1_000_000),
    "a number of a huge power": completion('"max_tokens":1e999999999'),
    "a name of a megabyte": completion(f'"{"n" * MIB}":0'),
    "a model of a megabyte": completion(f'"model":"local/{"n" * MIB}"'),
    "a user of a megabyte": completion(f'"user":"{"n" * MIB}"'),
    "bytes that are no UTF-8": b'{"model": "\xff\xfe", "prompt": "\xc0\x80"}',
    "surrogates as bytes": b'{"model": "local/count", "prompt": "\xed\xa0\x80"}',
    "a lone surrogate": completion(r'"prompt": "\ud800"'),
    "surrogates the wrong way round": completion(r'"prompt": "\udc00\ud800"'),
    "NULs": b"\0" * MIB,
    "spaces": b" " * MIB,
    "a byte order mark": b'\xef\xbb\xbf{"model": "local/count", "prompt": "go"}',
    "NaN": completion('"temperature": NaN'),
    "a comment": completion('/* */ "x": 0'),
    "two documents": completion('"x": 0') * 2,
    "nothing": b"",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("hostile")) as server:
        yield server


@pytest.fixture(scope="module")
def admin_key(server: Running) -> str:
    with closing(open_sqlite(server.home / "andthen.db")) as store:
        store.create_key("victim")
        return store.create_key("administrator", admin=True).secret


def memory(server: Running, which: str) -> int:
    """Bytes: `VmRSS` now, `VmHWM` at the most so far."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(rf"{which}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def forget_the_most(server: Running) -> None:
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")


KINDS = {(kind.status, kind.code) for kind in tree()}


@pytest.mark.parametrize("path", [COMPLETIONS, "/tokenize", "/detokenize"])
@pytest.mark.parametrize("name", BODIES)
def test_a_body(server: Running, name: str, path: str) -> None:
    body = BODIES[name]
    forget_the_most(server)
    before, began_s = memory(server, "VmRSS"), time.monotonic()
    answer = server.ask("POST", path, body)
    assert time.monotonic() - began_s < SOON_S
    assert memory(server, "VmHWM") - before < GROWTH_BYTES * len(body) + 8 * MIB
    if answer.status != 200:
        assert (answer.status, answer.code) in KINDS
        assert answer.status < 500
        assert len(answer.body) < 2000
    assert server.complete("go", max_tokens=1).status == 200


ADMIN = (
    ("POST", "/admin/keys"),
    ("PATCH", "/admin/keys/victim"),
    ("POST", "/admin/keys/victim/rotate"),
)
OF_ADMINS = BODIES | {
    "a policy of 30 000 arrays": '{"name": "x", "policy": ' + "[" * 30_000 + "]" * 30_000 + "}",
    "a policy of 8 000 members": '{"name": "x", "policy": {' + members(8_000) + "}}",
    "tags of 8 000 members": '{"name": "x", "policy": {"tags": [' + ",".join(['"a"'] * 8_000) + "]}}",
    "a deep tag": '{"policy": {"tags": ' + "[" * 30_000 + "]" * 30_000 + "}}",
    "a huge bound": '{"policy": {"max_tokens": ' + "9" * 60_000 + "}}",
    "a long name": json.dumps({"name": "n" * 60_000}),
    "a long network": json.dumps({"policy": {"addresses": ["9" * 60_000]}}),
    "a pattern that backtracks": json.dumps({"policy": {"models": ["*a" * 100 + "*b"]}, "unknown": 0}),
    "a lone surrogate in a name": r'{"name": "\ud800"}',
}


@pytest.mark.parametrize("name", OF_ADMINS)
def test_a_body_of_an_admins(server: Running, admin_key: str, name: str) -> None:
    body = OF_ADMINS[name]
    keys = server.ask("GET", "/admin/keys", x_api_key=admin_key).body
    for method, path in ADMIN:
        began_s = time.monotonic()
        answer = server.ask(method, path, body, x_api_key=admin_key)
        assert time.monotonic() - began_s < SOON_S
        if body == b"" and path != "/admin/keys":
            assert answer.status == 200, "nothing is asked for"
        else:
            assert answer.status in (400, 413), answer.body
            assert len(answer.body) < 2000
    assert server.ask("GET", "/admin/keys", x_api_key=admin_key).body == keys

"""The routes below `/admin` of a real server: who may, what is checked, and that what is told is in force."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from andthen.books.store import open_sqlite
from andthen.contract.limits import Limits
from andthen.contract.spec import MODELS
from andthen.server.document import document
from tests.server.running import Answer, Running, running

HALF_A_MICRO = {"budgets": [{"window": "day", "micros": 0.5}]}
DOCUMENT = document(Limits(), version="0")


class Admin:
    """Someone with an admin key."""

    def __init__(self, server: Running, secret: str) -> None:
        self.server = server
        self.secret = secret

    def ask(self, method: str, path: str, body: Any = None) -> Answer:
        sent = body if body is None or isinstance(body, str | bytes) else json.dumps(body)
        return self.server.ask(method, f"/admin{path}", sent, x_api_key=self.secret)

    def make(self, **fields: Any) -> dict[str, Any]:
        answer = self.ask("POST", "/keys", fields)
        assert answer.status == 200, answer.body
        made: dict[str, Any] = answer.json
        return made


@pytest.fixture(scope="module")
def administered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("administered")) as server:
        yield server


@pytest.fixture(scope="module")
def admin(administered: Running) -> Admin:
    with closing(open_sqlite(administered.home / "andthen.db")) as store:
        return Admin(administered, store.create_key("administrator", admin=True).secret)


def _valid(schema: str, value: object) -> bool:
    whole = {"$ref": f"#/components/schemas/{schema}", "components": DOCUMENT["components"]}
    return jsonschema_rs.validator_for(whole).is_valid(value)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/admin/keys"),
        ("POST", "/admin/keys"),
        ("GET", "/admin/keys/any"),
        ("PATCH", "/admin/keys/any"),
        ("DELETE", "/admin/keys/any"),
        ("POST", "/admin/keys/any/rotate"),
        ("GET", "/admin/audit"),
    ],
)
def test_only_an_admin_key_may_also_on_loopback(administered: Running, method: str, path: str) -> None:
    for secret, status, code in (
        (None, 401, "invalid_api_key"),
        ("at-wrong", 401, "invalid_api_key"),
        (administered.key, 403, "permission_denied"),
    ):
        answer = administered.ask(method, path, "{", x_api_key=secret)
        assert (answer.status, answer.code) == (status, code)


def test_a_key_is_made_shown_changed_and_deleted(admin: Admin) -> None:
    policy = {
        "owner": "Ada",
        "models": ["local/*"],
        "max_tokens": 5,
        "budgets": [{"window": "day", "micros": 5_000_000}],
    }
    made = admin.make(name="life", expires_at_ms=2**50, policy=policy)
    assert _valid("IssuedKey", made)
    key, secret = made["key"], made["secret"]
    assert key["policy"] == policy
    assert admin.server.ask("GET", MODELS[0], x_api_key=secret).status == 200
    for name in (key["id"], "life"):
        shown = admin.ask("GET", f"/keys/{name}")
        none = {"spent_micros": 0, "reserved_micros": 0, "spent_tokens": 0, "reserved_tokens": 0}
        standing = {"window": "day", "limit_micros": 5_000_000, "limit_tokens": None} | none
        assert (shown.status, shown.json) == (200, key | {"budgets": [standing]})
        assert _valid("ShownKey", shown.json)
    assert key in admin.ask("GET", "/keys").json["data"]
    changed = admin.ask(
        "PATCH", "/keys/life", {"policy": {"max_tokens": None, "owner": "Grace"}, "expires_at_ms": None}
    )
    assert changed.status == 200
    assert changed.json == key | {
        "expires_at_ms": None,
        "policy": {"owner": "Grace", "models": policy["models"], "budgets": policy["budgets"]},
    }
    deleted = admin.ask("DELETE", "/keys/life")
    assert (deleted.status, deleted.json) == (200, {"id": key["id"], "deleted": True})
    assert admin.ask("GET", f"/keys/{key['id']}").code == "not_found"
    admin.server.until(lambda: admin.server.ask("GET", MODELS[0], x_api_key=secret).status == 401, "it is gone")


def test_a_change_is_in_force_within_a_second(admin: Admin) -> None:
    secret = admin.make(name="quick")["secret"]
    assert admin.server.ask("GET", MODELS[0], x_api_key=secret).status == 200
    admin.ask("PATCH", "/keys/quick", {"disabled": True})
    began_s = time.monotonic()
    admin.server.until(lambda: admin.server.ask("GET", MODELS[0], x_api_key=secret).status == 401, "it is disabled")
    assert time.monotonic() - began_s < 1
    assert admin.ask("PATCH", "/keys/quick", {"disabled": False}).json["disabled_at_ms"] is None


def test_a_rotated_key_has_two_secrets_for_a_while(admin: Admin) -> None:
    made = admin.make(name="turning")
    answer = admin.ask("POST", "/keys/turning/rotate", {"overlap_ms": 60_000})
    assert answer.json["key"] == made["key"]
    assert answer.headers["cache-control"] == "no-store"
    for secret in (made["secret"], answer.json["secret"]):
        assert admin.server.ask("GET", MODELS[0], x_api_key=secret).status == 200
    assert admin.ask("POST", "/keys/turning/rotate").status == 200


def test_the_audit_tells_who_did_what_without_secrets(admin: Admin) -> None:
    own_id = next(key["id"] for key in admin.ask("GET", "/keys").json["data"] if key["name"] == "administrator")
    secrets = [admin.make(name="audited")["secret"], admin.ask("POST", "/keys/audited/rotate", {}).json["secret"]]
    admin.ask("PATCH", "/keys/audited", {"policy": {"tags": ["x"]}})
    answer = admin.ask("GET", "/audit?limit=3")
    assert _valid("ChangeList", answer.json)
    changes = answer.json["data"]
    assert [change["action"] for change in changes] == ["update", "rotate", "create"]
    assert {change["actor"] for change in changes} == {own_id}
    assert (changes[0]["before"]["policy"], changes[0]["after"]["policy"]) == ({}, {"tags": ["x"]})
    older = admin.ask("GET", f"/audit?limit=1&before={changes[-1]['id']}").json["data"]
    assert older[0]["id"] < changes[-1]["id"]
    for secret in (*secrets, admin.secret):
        assert secret.removeprefix("at-").encode() not in answer.body
        assert secret not in admin.server.log


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("POST", "/keys", "{", 400, None),
        ("POST", "/keys", "[]", 400, None),
        ("POST", "/keys", b"\xff", 400, None),
        ("POST", "/keys", "[" * 60_000, 400, None),
        ("POST", "/keys", {}, 400, "name"),
        ("POST", "/keys", {"name": "a\nb"}, 400, "name"),
        ("POST", "/keys", {"name": 1}, 400, "name"),
        ("POST", "/keys", {"name": "x", "role": 1}, 400, "role"),
        ("POST", "/keys", {"name": "x", "expires_at_ms": -1}, 400, "expires_at_ms"),
        ("POST", "/keys", {"name": "x", "expires_at_ms": 1}, 400, "expires_at_ms"),
        ("POST", "/keys", {"name": "x", "policy": {"max_tokens": "3"}}, 400, "policy.max_tokens"),
        ("POST", "/keys", {"name": "x", "policy": {"max_token": 3}}, 400, "policy.max_token"),
        ("POST", "/keys", {"name": "x", "policy": {"addresses": ["here"]}}, 400, "policy.addresses"),
        ("POST", "/keys", {"name": "x", "policy": {"budgets": [{"window": "week"}]}}, 400, "policy.budgets[0].window"),
        ("POST", "/keys", {"name": "x", "policy": HALF_A_MICRO}, 400, "policy.budgets[0].micros"),
        ("POST", "/keys", {"name": "x", "pad": "x" * 70_000}, 413, None),
        ("POST", "/keys", {"name": "administrator"}, 409, None),
        ("PATCH", "/keys/administrator", {"name": "other"}, 400, "name"),
        ("PATCH", "/keys/administrator", {"policy": {"tags": None}}, 400, "policy.tags"),
        ("PATCH", "/keys/administrator", {"policy": {"models": [""]}}, 400, "policy.models"),
        ("PATCH", "/keys/nobody", {"disabled": True}, 404, None),
        ("DELETE", "/keys/nobody", None, 404, None),
        ("POST", "/keys/nobody/rotate", {}, 404, None),
        ("POST", "/keys/administrator/rotate", {"overlap_ms": -1}, 400, "overlap_ms"),
        ("GET", "/keys/a/b", None, 404, None),
        ("GET", "/keys/", None, 404, None),
        ("PUT", "/keys/administrator", {}, 405, None),
        ("GET", "/audit?limit=0", None, 400, "limit"),
        ("GET", "/audit?limit=many", None, 400, "limit"),
        ("GET", "/audit?page=1", None, 400, "page"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_and_changes_nothing(
    admin: Admin, method: str, path: str, body: Any, status: int, param: str | None
) -> None:
    before = admin.ask("GET", "/keys").body
    answer = admin.ask(method, path, body)
    assert (answer.status, answer.json["error"]["param"]) == (status, param), answer.body
    assert admin.ask("GET", "/keys").body == before


def test_a_revoked_key_cannot_be_changed(admin: Admin) -> None:
    made = admin.make(name="ended")
    with closing(open_sqlite(admin.server.home / "andthen.db")) as store:
        store.revoke_key("ended")
    for method, path in (("PATCH", ""), ("POST", "/rotate")):
        answer = admin.ask(method, f"/keys/{made['key']['id']}{path}", {})
        assert (answer.status, answer.code) == (409, "conflict")


def test_a_database_that_is_gone_is_503(tmp_path: Path) -> None:
    with running(tmp_path / "gone") as server:
        with closing(open_sqlite(server.home / "andthen.db")) as store:
            admin = Admin(server, store.create_key("administrator", admin=True).secret)
        assert admin.ask("GET", "/keys").status == 200
        (server.home / "andthen.db").rename(server.home / "aside.db")
        answer = admin.ask("GET", "/keys")
        assert (answer.status, answer.code, answer.headers["x-should-retry"]) == (503, "database_unavailable", "true")

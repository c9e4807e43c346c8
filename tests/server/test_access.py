"""Which key opens which route. The route table itself is walked, so that no new route is forgotten."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from andthen.books.policy import Policy
from andthen.books.store import KeyChange, SqlStore, open_sqlite
from andthen.contract.limits import Limits
from andthen.server.routes import Access, Routes
from tests.server.running import COMPLETIONS, Answer, Running, running

METRICS_KEY = "the key of the metrics"
ASKED = [(path, route, method) for path, route in Routes(Limits()) for method in route.methods]


class Keys(NamedTuple):
    """Secrets, by what stands against them."""

    ordinary: str
    admin: str
    elsewhere: str
    """In force, from another network."""
    refused: dict[str, str | None]
    """Not in force, each for a reason of its own."""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Off loopback, where every guard stands."""
    settings = f'host = "0.0.0.0"\nmetrics_key = "{METRICS_KEY}"'
    with running(tmp_path_factory.mktemp("guarded"), settings) as server:
        yield server


@pytest.fixture(scope="module")
def keys(guarded: Running, tmp_path_factory: pytest.TempPathFactory) -> Keys:
    with closing(open_sqlite(guarded.home / "andthen.db")) as store:
        made = {name: store.create_key(name).secret for name in ("revoked", "disabled", "deleted", "rotated")}
        store.revoke_key("revoked")
        store.update_key("disabled", KeyChange(disabled=True))
        store.delete_key("deleted")
        store.rotate_key("rotated")
        made["expired"] = store.create_key("expired", expires_at_ms=time.time_ns() // 1_000_000 - 1).secret
        ordinary = store.create_key("ordinary").secret
        keys = Keys(
            ordinary,
            store.create_key("admin", admin=True).secret,
            store.create_key("elsewhere", policy=Policy(addresses=("10.0.0.0/8",))).secret,
            {
                **made,
                "foreign": _foreign(tmp_path_factory),
                "made up": f"at-{secrets.token_hex(22)[:43]}",
                "none": None,
                "empty": "",
                "cut": ordinary[:-1],
                "longer": f"{ordinary}0",
                "in lower case": ordinary.lower(),
                "long": "at-" + "0" * 8000,
                "not ASCII": "at-\xff\xfe\x80",
            },
        )
    guarded.until(lambda: guarded.ask("GET", "/admin/keys", x_api_key=keys.admin).status == 200, "the keys are known")
    return keys


def _foreign(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of another server's books."""
    with closing(open_sqlite(tmp_path_factory.mktemp("foreign") / "andthen.db")) as other:
        return other.create_key("ordinary").secret


def ask_all(server: Running, secret: str | None, *wanted: Access) -> dict[str, Answer]:
    """All routes with this access, with each of their methods."""
    asked = [(path, method) for path, route, method in ASKED if route.access in wanted]
    with ThreadPoolExecutor(16) as pool:  # who sends a wrong key waits for a look into the database
        answers = pool.map(lambda one: server.ask(one[1], one[0], "{", x_api_key=secret), asked)
        return {f"{method} {path}": answer for (path, method), answer in zip(asked, answers, strict=True)}


def _statuses(answers: dict[str, Answer]) -> set[int]:
    assert answers, "there are such routes"
    return {answer.status for answer in answers.values()}


GUARDED = tuple(access for access in Access if access is not Access.OPEN)


@pytest.mark.parametrize(
    "name",
    [
        "revoked", "disabled", "deleted", "rotated", "expired", "foreign", "made up", "none", "empty", "cut", "longer",
        "in lower case", "long", "not ASCII",
    ],
)  # fmt: skip
def test_a_key_that_is_not_in_force_opens_nothing(guarded: Running, keys: Keys, name: str) -> None:
    secret = keys.refused[name]
    for asked, answer in ask_all(guarded, secret, *GUARDED).items():
        assert answer.status == 401, asked
        assert answer.headers["www-authenticate"] == "Bearer"
        if not asked.startswith("HEAD"):
            assert answer.code == "invalid_api_key"
            assert not secret or secret.encode("latin-1") not in answer.body


def test_what_is_open_is_so_without_a_key(guarded: Running, keys: Keys) -> None:
    for secret in (None, keys.refused["revoked"]):
        assert _statuses(ask_all(guarded, secret, Access.OPEN)) == {200}


def test_an_ordinary_key_opens_nothing_of_the_admins_and_theirs_nothing_of_its_own(
    guarded: Running, keys: Keys
) -> None:
    assert _statuses(ask_all(guarded, keys.ordinary, Access.ADMIN)) == {403}
    assert _statuses(ask_all(guarded, keys.admin, Access.KEY)) == {403}
    for secret in (keys.ordinary, keys.admin):
        assert _statuses(ask_all(guarded, secret, Access.METRICS)) == {401}, "it has a key of its own"
    assert _statuses(ask_all(guarded, METRICS_KEY, Access.METRICS)) == {200}
    assert _statuses(ask_all(guarded, METRICS_KEY, Access.KEY, Access.ADMIN)) == {401}


def test_a_key_opens_nothing_from_elsewhere(guarded: Running, keys: Keys) -> None:
    answers = ask_all(guarded, keys.elsewhere, Access.KEY, Access.KEY_OFF_LOOPBACK, Access.ADMIN)
    assert _statuses(answers) == {403}


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded", "x-real-ip", "true-client-ip"])
def test_nobody_says_by_a_header_where_they_are(guarded: Running, keys: Keys, header: str) -> None:
    value = "for=10.0.0.1" if header == "forwarded" else "10.0.0.1"
    answer = guarded.ask("GET", "/v1/models", x_api_key=keys.elsewhere, **{header: value})
    assert (answer.status, answer.code) == (403, "permission_denied")


OPENED = (
    ("GET", "/metrics"),
    ("GET", "/tokenizer_info"),
    ("POST", "/tokenize"),
    ("POST", "/v1/completions/detokenize"),
)
HERE: list[dict[str, str]] = [
    {},
    {"host": "localhost"},
    {"host": "LocalHost:{port}"},
    {"host": "127.8.9.10:1"},
    {"host": "[::1]:1"},
    {"sec_fetch_site": "none"},
    {"sec_fetch_site": "same-origin", "origin": "http://127.0.0.1:{port}"},
    {"origin": "http://127.0.0.1:{port}"},
    {"host": "localhost:{port}", "origin": "http://localhost:{port}"},
]
"""What a program on this machine sends, and a browser that shows this server's own pages."""
ELSEWHERE: list[dict[str, str]] = [
    *({"host": host} for host in (
        "rebound.example", "rebound.example:{port}", "127.0.0.1.rebound.example", "localhost.rebound.example",
        "localhost@rebound.example", "rebound.example@127.0.0.1", "10.0.0.1", "0.0.0.0", "[::]", "[::1", "::1",
        "[::ffff:10.0.0.1]", "127.0.0.1, rebound.example", "127.1", "2130706433", "127.0.0.1:x", "127.0.0.999", " ",
    )),
    *({"sec_fetch_site": site} for site in ("cross-site", "same-site", "Cross-Site", "", "new-word")),
    *({"origin": origin} for origin in (
        "https://evil.example", "null", "", "http://127.0.0.1", "http://127.0.0.1:1", "https://127.0.0.1:{port}",
        "http://localhost:{port}", "http://127.0.0.1:{port}/", "http://127.0.0.1:{port} https://evil.example",
    )),
    {"origin": "https://evil.example", "sec_fetch_site": "cross-site", "content_type": "text/plain"},
    {"origin": "http://127.0.0.1:{port}", "sec_fetch_site": "cross-site"},
    {"origin": "http://rebound.example:{port}", "host": "rebound.example:{port}", "sec_fetch_site": "same-origin"},
    {"x_forwarded_for": "127.0.0.1"},
    {"x_forwarded_host": "andthen.example"},
    {"x_forwarded_proto": "https"},
    {"x_real_ip": "127.0.0.1"},
    {"forwarded": "for=127.0.0.1"},
    {"via": "1.1 proxy"},
]  # fmt: skip
"""What a browser sends for a page of another site, and a proxy for somebody elsewhere."""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("opened"), 'open_on_loopback = ["metrics", "tokenizer"]') as server:
        yield server


def _ask_opened(server: Running, method: str, path: str, headers: dict[str, str], key: str | None = None) -> int:
    filled = {name: value.replace("{port}", str(server.port)) for name, value in headers.items()}
    body = {"POST": '{"tokens": [97]}' if path.endswith("detokenize") else '{"prompt": "a"}'}.get(method)
    return server.ask(method, path, body, x_api_key=key, **filled).status


def test_what_is_open_on_loopback_is_so_to_this_machine_alone(opened: Running) -> None:
    for method, path in OPENED:
        for headers in HERE:
            assert _ask_opened(opened, method, path, headers) == 200, (path, headers)
        for headers in ELSEWHERE:
            status = _ask_opened(opened, method, path, headers)
            assert status in (400, 401), (path, headers)
            if status == 400:  # no host at all
                continue
            kept = {name: value for name, value in headers.items() if name != "content_type"}
            assert _ask_opened(opened, method, path, kept, opened.key) == 200, (path, headers, "with a key")
        assert _ask_opened(opened, method, path, {}, "at-wrong") == 401, "a key that is sent must be one"


def test_without_a_host_or_with_two_nobody_is_here(opened: Running) -> None:
    for head in ("HTTP/1.0", "HTTP/1.1\r\nhost: 127.0.0.1\r\nhost: rebound.example", "HTTP/1.1\r\nhost:"):
        with opened.connect() as client:
            client.sendall(f"GET /metrics {head}\r\n\r\n".encode())
            assert client.recv(65536).split(b" ")[1] in (b"400", b"401"), head


def test_nothing_else_is_open_on_loopback(opened: Running) -> None:
    for asked, answer in ask_all(opened, None, Access.KEY, Access.ADMIN).items():
        assert answer.status == 401, asked


@pytest.mark.parametrize("headers", HERE, ids=str)
def test_without_the_setting_a_proxy_that_adds_nothing_opens_nothing(
    scripted: Running, headers: dict[str, str]
) -> None:
    """nginx passes a request on with its upstream's address as `host` and no other header, as its default."""
    for method, path in OPENED:
        assert _ask_opened(scripted, method, path, headers) == 401, path
        assert _ask_opened(scripted, method, path, headers, scripted.key) == 200, path


@pytest.mark.parametrize(
    ("settings", "metrics", "tokenizer"),
    [
        ('open_on_loopback = ["metrics"]', 200, 401),
        ('open_on_loopback = ["tokenizer"]', 401, 200),
        ('open_on_loopback = ["metrics", "tokenizer"]\nmetrics_key = "sesame"', 401, 200),
        ('open_on_loopback = ["metrics", "tokenizer"]\nhost = "0.0.0.0"', 401, 401),
    ],
)
def test_only_what_the_setting_names_is_open_and_only_on_loopback(
    tmp_path: Path, settings: str, metrics: int, tokenizer: int
) -> None:
    with running(tmp_path / "home", settings) as server:
        for method, path in OPENED:
            wanted = metrics if path == "/metrics" else tokenizer
            assert _ask_opened(server, method, path, {}) == wanted, path


def test_no_cache_on_the_way_keeps_what_a_key_was_told(guarded: Running, keys: Keys) -> None:
    for secret in (keys.ordinary, keys.admin, None):
        for asked, answer in ask_all(guarded, secret, *Access).items():
            is_page = answer.headers.get("etag") is not None
            assert answer.headers["cache-control"] == ("no-cache" if is_page else "no-store"), asked
    assert guarded.ask("GET", "/none").headers["cache-control"] == "no-store"


def test_a_second_key_does_not_mend_the_first(guarded: Running, keys: Keys) -> None:
    def status(*lines: str) -> bytes:
        with guarded.connect() as client:
            client.sendall("\r\n".join(["GET /v1/models HTTP/1.1", "host: x", *lines, "", ""]).encode())
            return client.recv(65536).split(b" ")[1]

    right, wrong = f"x-api-key: {keys.ordinary}", "x-api-key: at-wrong"
    bearer = f"authorization: Bearer {keys.ordinary}"
    assert status(right) == status(bearer) == b"200"
    assert status(wrong, right) == status(wrong, bearer) == status("x-api-key:", bearer) == b"401"
    assert status(bearer.replace("Bearer", "Basic")) == status(f"cookie: x-api-key={keys.ordinary}") == b"401"
    assert status(f"x-api-key: {keys.ordinary}, at-wrong") == b"401"


def test_a_browsers_form_opens_nothing_of_the_admins(guarded: Running, keys: Keys) -> None:
    """A form sends cookies and passwords that a browser keeps, and no header of ours."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        form = {"content_type": kind, "origin": "https://evil.example"}
        for path, method in (("/admin/keys", "POST"), ("/admin/keys/ordinary/rotate", "POST"), (COMPLETIONS, "POST")):
            assert guarded.ask(method, path, '{"name": "form"}', x_api_key=None, **form).status == 401
        answer = guarded.ask("POST", "/admin/keys", '{"name": "form"}', x_api_key=keys.admin, **form)
        assert answer.status == 415
        assert "access-control-allow-origin" not in answer.headers


def test_wrong_keys_in_a_flood_cost_the_database_little_and_right_ones_nothing(guarded: Running, keys: Keys) -> None:
    def look(number: int) -> int:
        return guarded.ask("GET", "/v1/models", x_api_key=f"at-{number:043d}").status

    with ThreadPoolExecutor(32) as pool:
        flood = pool.map(look, range(300))
        assert {guarded.ask("GET", "/v1/models", x_api_key=keys.ordinary).status for _ in range(20)} == {200}
        with closing(open_sqlite(guarded.home / "andthen.db")) as store:
            young = store.create_key(f"young {secrets.token_hex(4)}").secret
        assert guarded.ask("GET", "/v1/models", x_api_key=young).status == 200, "amid the flood a new key is found"
        assert set(flood) == {401}


@pytest.mark.parametrize(
    "path",
    [
        "/page/../app.py", "/page/..%2fapp.py", "/page/%2e%2e/%2e%2e/andthen.db", "/page//etc/passwd", "/page/",
        "/page/index.html/", "/page/index.html%00.js", "/page/%5c..%5capp.py", "//admin/keys", "/admin/keys/../keys",
        "/v1/models/../../admin/keys", "/v1/models/..%2f..%2fadmin%2fkeys", "/ADMIN/keys", "/admin/keys;x=1",
        "http://other.example/admin/keys", "/admin%2fkeys",
    ],
)  # fmt: skip
def test_no_path_leads_around_the_table(guarded: Running, keys: Keys, path: str) -> None:
    for secret in (None, keys.ordinary):
        assert guarded.ask("GET", path, x_api_key=secret).status in (400, 401, 403, 404)


@pytest.fixture
def store(guarded: Running) -> Iterator[SqlStore]:
    with closing(open_sqlite(guarded.home / "andthen.db")) as opened:
        yield opened


def test_a_name_that_no_key_can_have_is_of_none(guarded: Running, keys: Keys, store: SqlStore) -> None:
    before = store.list_keys()
    for name in ("%00", "a%00b", "%ff%fe", "%ED%A0%80", "%F0%9F%92%A9", "';%20DROP%20TABLE%20keys%20--", "_" * 4000):
        for method, rest in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/rotate")):
            answer = guarded.ask(method, f"/admin/keys/{name}{rest}", "{}", x_api_key=keys.admin)
            assert (answer.status, answer.code) == (404, "not_found")
    assert store.list_keys() == before

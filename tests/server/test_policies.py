"""What a key may do, held at the door of a real server."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from andthen.books.policy import Policy
from andthen.books.store import KeyChange, SqlStore, open_sqlite
from andthen.contract.spec import COMPLETIONS, MODELS
from tests.server.running import Answer, Running, running

GOOD = {"model": "local/count", "prompt": "go", "max_tokens": 2}


@pytest.fixture
def store(scripted: Running) -> Iterator[SqlStore]:
    with closing(open_sqlite(scripted.home / "andthen.db")) as opened:
        yield opened


@pytest.fixture
def key(scripted: Running, store: SqlStore) -> Callable[..., str]:
    """Makes a key with these bounds; its secret."""

    def make(**fields: object) -> str:
        policy = Policy(**fields)  # type: ignore[arg-type]
        return store.create_key(secrets.token_hex(8), policy=policy).secret

    return make


def _told(answer: Answer) -> tuple[int, str, str | None]:
    return answer.status, answer.code, answer.json["error"]["param"]


@pytest.mark.parametrize("addresses", [("127.0.0.0/8",), ("10.0.0.0/8", "127.0.0.1"), ()])
def test_a_key_is_taken_from_its_networks(scripted: Running, key: Callable[..., str], addresses: tuple[str]) -> None:
    assert scripted.ask("POST", COMPLETIONS[0], GOOD, x_api_key=key(addresses=addresses)).status == 200


def test_a_key_is_refused_from_elsewhere_before_anything_else(scripted: Running, key: Callable[..., str]) -> None:
    elsewhere = key(addresses=("10.0.0.0/8", "::1"))
    answer = scripted.ask("POST", COMPLETIONS[0], "{", x_api_key=elsewhere, content_type="text/plain")
    assert _told(answer) == (403, "permission_denied", None)
    assert answer.json["error"]["type"] == "permission_error"
    for path in MODELS:
        assert scripted.ask("GET", path, x_api_key=elsewhere).status == 403


def test_a_model_that_the_key_may_not_use_is_refused_after_one_that_is_not_there(
    scripted: Running, key: Callable[..., str]
) -> None:
    other = key(models=("openai/*", "local/c?"), max_tokens=1)
    assert _told(scripted.ask("POST", COMPLETIONS[0], GOOD | {"model": "local/none"}, x_api_key=other)) == (
        (404, "model_not_found", "model")
    )
    assert _told(scripted.ask("POST", COMPLETIONS[0], GOOD | {"suffix": "x"}, x_api_key=other)) == (
        (403, "model_not_allowed", "model")
    )
    for path in MODELS:
        assert scripted.ask("GET", path, x_api_key=other).json["data"] == []
        assert _told(scripted.ask("GET", f"{path}/local/count", x_api_key=other)) == (403, "model_not_allowed", "model")
    for root in (COMPLETIONS[0], ""):
        for method, asked in (("GET", "tokenizer_info"), ("POST", "tokenize"), ("POST", "detokenize")):
            body = '{"prompt": "a", "tokens": [97]}' if method == "POST" else None
            answer = scripted.ask(method, f"{root}/{asked}", body, x_api_key=other)
            assert _told(answer) == (403, "model_not_allowed", "model")


@pytest.mark.parametrize("pattern", ["local/*", "local/coun[st]", "*", "local/count"])
def test_a_model_that_the_key_may_use_is_listed_and_answers(
    scripted: Running, key: Callable[..., str], pattern: str
) -> None:
    allowed = key(models=("openai/*", pattern))
    assert scripted.ask("POST", COMPLETIONS[0], GOOD, x_api_key=allowed).status == 200
    assert [card["id"] for card in scripted.ask("GET", MODELS[0], x_api_key=allowed).json["data"]] == ["local/count"]


def test_off_loopback_the_tokenizer_is_the_models(tmp_path: Path) -> None:
    with running(tmp_path / "off", 'host = "0.0.0.0"') as server:
        with closing(open_sqlite(server.home / "andthen.db")) as store:
            other = store.create_key("other", policy=Policy(models=("openai/*",))).secret
        for path in ("/tokenizer_info", "/tokenizer_info?model=local/count"):
            assert server.ask("GET", path).status == 200
            assert _told(server.ask("GET", path, x_api_key=other)) == (403, "model_not_allowed", "model")


def test_max_tokens_beyond_the_keys_bound_is_refused_with_the_bound(scripted: Running, key: Callable[..., str]) -> None:
    small = key(max_tokens=3)
    answer = scripted.ask("POST", COMPLETIONS[0], GOOD | {"max_tokens": 4, "suffix": "x"}, x_api_key=small)
    assert _told(answer) == (400, "invalid_value", "max_tokens")
    assert "`max_tokens` is 4, and this API key may ask for at most 3" in answer.json["error"]["message"]
    unsaid = {"model": "local/count", "prompt": "go"}
    assert _told(scripted.ask("POST", COMPLETIONS[0], unsaid, x_api_key=small)) == (400, "invalid_value", "max_tokens")
    assert scripted.ask("POST", COMPLETIONS[0], GOOD | {"max_tokens": 3}, x_api_key=small).status == 200


def test_an_expired_key_is_unknown(scripted: Running, store: SqlStore) -> None:
    soon_ms = time.time_ns() // 1_000_000 + 500
    expiring = store.create_key("expiring", expires_at_ms=soon_ms).secret
    assert scripted.ask("GET", MODELS[0], x_api_key=expiring).status == 200
    scripted.until(lambda: scripted.ask("GET", MODELS[0], x_api_key=expiring).status == 401, "the key has expired")
    assert time.time_ns() // 1_000_000 >= soon_ms


def test_a_disabled_key_is_unknown_within_a_second(scripted: Running, store: SqlStore) -> None:
    secret = store.create_key("resting").secret
    assert scripted.ask("GET", MODELS[0], x_api_key=secret).status == 200
    for disabled, status in ((True, 401), (False, 200)):
        store.update_key("resting", KeyChange(disabled=disabled))
        began_s = time.monotonic()
        scripted.until(lambda status=status: scripted.ask("GET", MODELS[0], x_api_key=secret).status == status, "told")  # type: ignore[misc]
        assert time.monotonic() - began_s < 1


def test_a_rotated_keys_secrets_are_both_taken_for_a_while(scripted: Running, store: SqlStore) -> None:
    old = store.create_key("turning").secret
    new = store.rotate_key("turning", overlap_ms=60_000).secret
    for secret in (old, new):
        assert scripted.ask("GET", MODELS[0], x_api_key=secret).status == 200


def test_an_admin_key_completes_nothing(scripted: Running, store: SqlStore) -> None:
    admin = store.create_key("administrator", admin=True).secret
    assert _told(scripted.ask("POST", COMPLETIONS[0], GOOD, x_api_key=admin)) == (403, "permission_denied", None)
    assert scripted.ask("GET", MODELS[0], x_api_key=admin).status == 403

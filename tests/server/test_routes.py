"""Which path leads where, who may go there, and in which order a request is checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from andthen import __version__
from andthen.config import load
from andthen.contract.spec import COMPLETIONS, MODELS
from andthen.server.document import document as openapi
from tests.server.running import Running, running

GOOD = {"model": "local/count", "prompt": "go", "max_tokens": 2}
TOKENIZER_ROOTS = (*COMPLETIONS, "")


@pytest.mark.parametrize("path", COMPLETIONS)
def test_a_completion_on_every_path(scripted: Running, path: str) -> None:
    answer = scripted.ask("POST", path, GOOD)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    completion = answer.json
    assert completion["choices"][0]["text"] == " 1 2"
    assert completion["model"] == "local/count"
    assert completion["system_fingerprint"] == "scripted"
    assert completion["id"].startswith("cmpl-")
    assert answer.headers["x-request-id"] == completion["id"]
    assert answer.headers["x-andthen-plan"] == "prompt=native, max_tokens=native"
    names = [part.partition(";dur=")[0] for part in answer.headers["server-timing"].split(", ")]
    assert names == ["queue", "first", "total"]


def test_every_path_of_the_document_is_there_with_its_method(scripted: Running) -> None:
    document = scripted.ask("GET", "/openapi.json", x_api_key=None).json
    for path, operations in document["paths"].items():
        for method in operations:
            path = path.replace("{vendor}", "local").replace("{model}", "count")
            answer = scripted.ask(method.upper(), path, "" if method == "post" else None)
            assert answer.status in ((403,) if path.startswith("/admin") else (200, 400)), path


def test_the_document_is_the_contracts(scripted: Running) -> None:

    answer = scripted.ask("GET", "/openapi.json", x_api_key=None)
    assert answer.json == json.loads(
        json.dumps(openapi(load({}, file=scripted.home / "andthen.toml").limits, version=__version__))
    )


# Each request is wrong in all that is checked after what it is refused for.
WRONG = {"content_type": "text/plain", "x_api_key": "wrong", "body": "{" + " " * 200_000}


@pytest.mark.parametrize(
    ("method", "path", "right", "status", "code"),
    [
        ("POST", "/v1/nothing", {}, 404, "not_found"),
        ("PUT", "/v1/completions", {}, 405, "method_not_allowed"),
        ("POST", "/v1/completions", {}, 401, "invalid_api_key"),
        ("POST", "/v1/completions", {"x_api_key"}, 413, "payload_too_large"),
        ("POST", "/v1/completions", {"x_api_key", "size"}, 415, "unsupported_media_type"),
        ("POST", "/v1/completions", {"x_api_key", "size", "content_type"}, 400, "invalid_json"),
    ],
)
def test_the_order_of_checks(
    scripted: Running, method: str, path: str, right: set[str], status: int, code: str
) -> None:
    answer = scripted.ask(
        method,
        path,
        "{" if "size" in right else WRONG["body"],
        content_type="application/json" if "content_type" in right else WRONG["content_type"],
        x_api_key=scripted.key if "x_api_key" in right else WRONG["x_api_key"],
    )
    assert (answer.status, answer.code) == (status, code)
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-request-id"].startswith("req-" if status == 404 else "cmpl-")


def test_the_order_of_checks_goes_on_with_the_fields_the_model_and_the_plan(scripted: Running) -> None:
    wrong = {"model": "local/none", "prompt": "go", "n": 0, "suffix": "x"}
    answer = scripted.ask("POST", COMPLETIONS[0], wrong)
    assert (answer.status, answer.json["error"]["param"]) == (400, "n")
    answer = scripted.ask("POST", COMPLETIONS[0], wrong | {"n": 1})
    assert (answer.status, answer.code) == (404, "model_not_found")
    answer = scripted.ask("POST", COMPLETIONS[0], wrong | {"n": 1, "model": "local/count"})
    assert (answer.status, answer.code, answer.json["error"]["param"]) == (400, "unsupported_parameter", "suffix")


def test_405_tells_what_is_allowed(scripted: Running) -> None:
    assert scripted.ask("GET", "/v1/completions").headers["allow"] == "POST"
    assert scripted.ask("POST", "/v1/models").headers["allow"] == "GET, HEAD"
    assert scripted.ask("OPTIONS", "/v1/models").status == 405


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x_api_key": None}, 401),
        ({"x_api_key": "at-wrong"}, 401),
        ({"x_api_key": "", "authorization": "Bearer {key}"}, 401),
        ({"x_api_key": "at-wrong", "authorization": "Bearer {key}"}, 401),
        ({"x_api_key": "{key}", "authorization": "Bearer at-wrong"}, 200),
        ({"x_api_key": None, "authorization": "Bearer {key}"}, 200),
        ({"x_api_key": None, "authorization": "bearer {key}"}, 200),
        ({"x_api_key": None, "authorization": "Basic {key}"}, 401),
        ({"x_api_key": None, "authorization": "Bearer"}, 401),
        ({"x_api_key": "sch\xe4tz"}, 401),
    ],
)
def test_keys(scripted: Running, headers: dict[str, str | None], status: int) -> None:
    filled = {name: value and value.replace("{key}", scripted.key) for name, value in headers.items()}
    answer = scripted.ask("GET", "/v1/models", **filled)
    assert answer.status == status
    if status == 401:
        assert answer.code == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"


def test_no_key_is_needed_for_the_pages_and_for_health(scripted: Running) -> None:
    for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz"):
        assert scripted.ask("GET", path, x_api_key=None).status == 200, path


def test_off_loopback_metrics_and_tokenizer_need_a_key(tmp_path: Path) -> None:
    with running(tmp_path / "off", 'host = "0.0.0.0"') as server:
        for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz"):
            assert server.ask("GET", path, x_api_key=None).status == 200, path
        for path in ("/metrics", "/tokenizer_info"):
            assert server.ask("GET", path, x_api_key=None).status == 401, path
            assert server.ask("GET", path).status == 200, path
        assert server.ask("POST", "/tokenize", '{"prompt": "a"}', x_api_key=None).status == 401


def test_a_metrics_key_is_the_only_one_for_metrics(tmp_path: Path) -> None:
    with running(tmp_path / "metrics", 'metrics_key = "sesame"') as server:
        assert server.ask("GET", "/metrics", x_api_key=None).status == 401
        assert server.ask("GET", "/metrics").status == 401
        assert server.ask("GET", "/metrics", x_api_key="sesame").status == 200
        assert server.ask("GET", "/metrics", x_api_key=None, authorization="Bearer sesame").status == 200
        assert server.ask("GET", "/v1/models", x_api_key="sesame").status == 401


@pytest.mark.parametrize("path", MODELS)
def test_models(scripted: Running, path: str) -> None:
    listed = scripted.ask("GET", path).json
    assert listed["object"] == "list"
    (card,) = listed["data"]
    assert card == scripted.ask("GET", f"{path}/local/count").json
    assert (card["id"], card["object"], card["owned_by"]) == ("local/count", "model", "local")
    assert card["capabilities"]["n"] == {"how": "native", "why": None, "minimum": 1, "maximum": 128}
    assert card["capabilities"]["suffix"]["how"] == "refused"
    assert card["capabilities"]["suffix"]["why"]
    assert not card["fill_in_the_middle"]
    assert card["prompt_forms"]["token_ids"]["how"] == card["prompt_logprobs"]["how"] == "native"
    assert (card["context_length"] is None, card["vocab_size"] is None) == (False, False)
    assert scripted.ask("GET", f"{path}/local%2Fcount").json == card
    for name in ("local/none", "local", "", "local/count/", "../../etc/passwd"):
        assert scripted.ask("GET", f"{path}/{name}").status == 404, name


@pytest.mark.parametrize("root", TOKENIZER_ROOTS)
def test_tokenizer(scripted: Running, root: str) -> None:
    def ask(name: str, body: dict[str, object]) -> object:
        return scripted.ask("POST", f"{root}/{name}", body).json

    assert ask("tokenize", {"prompt": "ab"}) == {"tokens": [1, 97, 98]}
    assert ask("tokenize", {"model": "local/count", "prompt": "ab", "add_special_tokens": False}) == {
        "tokens": [97, 98]
    }
    assert ask("tokenize", {"prompt": ""}) == {"tokens": [1]}
    assert ask("detokenize", {"tokens": [97, 98]}) == {"prompt": "ab"}
    info = scripted.ask("GET", f"{root}/tokenizer_info?model=local/count").json
    assert info == {"eos_token": "</s>", "bos_token": "<s>", "pad_token": None, "chat_template": None}
    assert scripted.ask("GET", f"{root}/tokenizer_info?model=local/none").status == 404
    assert scripted.ask("POST", f"{root}/tokenize", {"prompt": "a", "model": "local/none"}).status == 404
    assert scripted.ask("POST", f"{root}/tokenize", {"prompt": 1}).json["error"]["param"] == "prompt"


def test_ignored_fields_are_named_without_harm(scripted: Running) -> None:
    answer = scripted.ask("POST", COMPLETIONS[0], GOOD | {"a\r\nset-cookie: x": 1, "ü": 2})
    assert answer.status == 200
    assert answer.headers["x-andthen-ignored"] == "a%0D%0Aset-cookie%3A%20x, %C3%BC"
    many = {f"{'x' * 100}{number}": 1 for number in range(30)}
    assert len(scripted.ask("POST", COMPLETIONS[0], GOOD | many).headers["x-andthen-ignored"]) <= 1024
    long = {"x" * 2000: 1}
    assert scripted.ask("POST", COMPLETIONS[0], GOOD | long | {"y": 1}).headers["x-andthen-ignored"] == "y"
    assert "x-andthen-ignored" not in scripted.ask("POST", COMPLETIONS[0], GOOD | long).headers


def test_head_is_get_without_its_body(scripted: Running) -> None:
    for path in ("/", "/healthz", "/v1/models", "/openapi.json"):
        whole, head = scripted.ask("GET", path), scripted.ask("HEAD", path)
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-length"] == str(len(whole.body))


def test_pages_bring_their_own_world_and_a_tag(scripted: Running) -> None:
    for path in ("/", "/docs", "/page/page.js"):
        answer = scripted.ask("GET", path, x_api_key=None)
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; ")
        again = scripted.ask("GET", path, x_api_key=None, if_none_match=answer.headers["etag"])
        assert (again.status, again.body) == (304, b"")
    for path in ("/page/", "/page/../app.py", "/page/%2e%2e/app.py", "/page/index.html/"):
        assert scripted.ask("GET", path).status == 404, path


def test_pages_of_named_origins_may_ask(scripted: Running) -> None:
    asked = {"origin": "https://page.example", "access_control_request_method": "POST", "x_api_key": None}
    permitted = scripted.ask("OPTIONS", COMPLETIONS[0], **asked)
    assert permitted.status == 204
    assert permitted.headers["access-control-allow-origin"] == "https://page.example"
    assert "x-api-key" in permitted.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in permitted.headers
    answer = scripted.ask("POST", COMPLETIONS[0], GOOD, origin="https://page.example")
    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    refused = scripted.ask("POST", COMPLETIONS[0], {}, origin="https://page.example")
    assert refused.status == 400
    assert refused.headers["access-control-allow-origin"] == "https://page.example"
    other = scripted.ask("OPTIONS", COMPLETIONS[0], **asked | {"origin": "https://other.example"})
    assert other.status == 405
    assert "access-control-allow-origin" not in other.headers

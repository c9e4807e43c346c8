"""What becomes of a vendor's error, and what its message may tell."""

from __future__ import annotations

import json
import time

import pytest

from andthen.contract.errors import (
    AndthenError,
    ContextLengthExceeded,
    ModelNotFound,
    NoCapacity,
    RateLimited,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnauthenticated,
)
from andthen.contract.request import CompletionRequest
from andthen.wire.base import Target
from andthen.wire.failures import VendorError, cut_short, failure, garbled, redacted, retry_after_s

PROMPT = "The old lighthouse keeper\nclimbed the stairs, and lit the lamp."
TARGET = Target(
    vendor="Example", address="https://api.example.com/v1", model="writer-3-large-instruct-2026", key="hunter22"
)
REQUEST = CompletionRequest(model="example/writer", prompts=(PROMPT,), suffix="Nobody saw the ship.")


def told(message: str, request: CompletionRequest = REQUEST, target: Target = TARGET) -> str:
    return redacted(message, request, target)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (0, UpstreamFailed),
        (302, UpstreamRefused),
        (400, UpstreamRefused),
        (401, UpstreamUnauthenticated),
        (402, UpstreamUnauthenticated),
        (403, UpstreamUnauthenticated),
        (404, ModelNotFound),
        (408, UpstreamTimeout),
        (422, UpstreamRefused),
        (429, RateLimited),
        (500, UpstreamFailed),
        (503, NoCapacity),
        (504, UpstreamTimeout),
        (529, NoCapacity),
    ],
)
def test_a_status_decides_whose_fault_it_is(status: int, kind: type[AndthenError]) -> None:
    error = failure(VendorError(status, "server_error", "It did not work."), REQUEST, TARGET)
    assert type(error) is kind
    assert "Example" in error.message
    assert "server_error" in error.message


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4096 tokens",
        "prompt is too long: 200001 tokens > 200000 maximum",
        "the request exceeds the available context size, try increasing it",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096",
        "The input token count exceeds the maximum number of tokens allowed",
    ],
)
def test_a_prompt_that_does_not_fit_is_the_callers_to_shorten(message: str) -> None:
    error = failure(VendorError(400, message=message), REQUEST, TARGET)
    assert type(error) is ContextLengthExceeded
    assert error.param == "prompt"


def test_an_account_without_money_is_the_operators() -> None:
    assert type(failure(VendorError(429, "insufficient_quota"), REQUEST, TARGET)) is UpstreamUnauthenticated


def test_a_vendors_wait_is_passed_on_and_ours_stands_in_for_none() -> None:
    assert failure(VendorError(429, retry_after_s=9), REQUEST, TARGET).retry_after_s == 9
    assert failure(VendorError(429), REQUEST, TARGET).retry_after_s == 1


@pytest.mark.parametrize("code", ["<b>no code</b>", "sesame_5e5a4e", "sk-proj-abcdef", "123456"])
def test_a_code_that_no_vendor_uses_is_not_shown(code: str) -> None:
    assert "status 500." in failure(VendorError(500, code), REQUEST, TARGET).message


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ((("retry-after", "7"),), 7),
        ((("retry-after", "0.2"),), 1),
        ((("retry-after-ms", "1500"), ("retry-after", "9")), 2),
        ((("retry-after-ms", "soon"), ("retry-after", "9")), 9),
        ((("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT"),), None),
        ((("retry-after", "-1"),), None),
        ((("retry-after", "nan"),), None),
        ((("retry-after", "inf"),), None),
        ((), None),
    ],
)
def test_seconds_to_wait_are_read_and_rounded_up(headers: tuple[tuple[str, str], ...], seconds: int | None) -> None:
    assert retry_after_s(headers) == seconds


def test_a_message_is_one_printable_line() -> None:
    assert told("It\tdid\r\nnot\x1b work\u202e.") == "It did not work ."


def test_a_message_is_short() -> None:
    assert len(told("It did not work. " * 1000)) <= 300


@pytest.mark.parametrize(
    "key",
    [
        "hunter22",
        "sk-12345678",
        "sk-proj-****************6789",
        "AIzaSyA1234567890",
        "gsk_abcdefghijkl",
        "4f7c2a9b8e1d4f7c2a9b8e1d4f7c2a9b",
    ],
)
def test_no_key_is_told(key: str) -> None:
    message = told(f"Incorrect API key provided: {key}. See your account.")
    assert message.startswith("Incorrect API key provided: …")
    assert message.endswith("See your account.")


def test_no_part_of_a_key_in_several_parts_is_told() -> None:
    target = Target(vendor="Example", address="https://a", model="m", key="AKID1\nsecret9\ntoken7")
    assert told("AKID1 with secret9 and token7", target=target) == "… with … and …"


def test_words_and_the_models_name_are_told() -> None:
    message = "context_length_exceeded_behavior is not taken by writer-3-large-instruct-2026."
    assert told(message) == message


@pytest.mark.parametrize(
    "quoted",
    [
        PROMPT,
        PROMPT.replace("\n", " "),
        json.dumps(PROMPT),
        f"'{PROMPT[:40]}...'",
        f"...{PROMPT[20:]}",
        "Nobody saw the ship.",
    ],
)
def test_what_a_vendor_quotes_of_the_request_is_not_told(quoted: str) -> None:
    message = told(f"Invalid input {quoted} at position 7.")
    assert message.startswith("Invalid input ")
    assert message.endswith(" at position 7.")
    for words in ("lighthouse", "stairs", "lamp", "Nobody", "ship"):
        assert words not in message


def test_a_prompt_without_blanks_is_not_quoted_in_part_either() -> None:
    prompt = "昔々あるところにおじいさんとおばあさんが住んでいました"
    request = CompletionRequest(model="m", prompts=("other", prompt))
    assert "おじいさん" not in told(f"Invalid: {prompt[:20]}…", request)


def test_token_ids_are_not_quoted() -> None:
    request = CompletionRequest(model="m", prompts=((101, 2023, 2003, 1037, 3231),))
    assert "2023" not in told("Input should be a string, input: [101, 2023, 2003, 1037, 3231]", request)


def test_a_secret_at_the_place_where_a_long_message_is_cut_is_not_told_in_half() -> None:
    for before in range(980, 1000):
        request = CompletionRequest(model="m", prompts=("x" * before,))
        assert "hunt" not in told("x" * before + " hunter22 and more words" * 50, request)


def test_of_a_huge_request_no_message_is_shown_and_nothing_is_searched() -> None:
    request = CompletionRequest(model="m", prompts=("word " * 2**20,))
    before = time.process_time()
    assert told("word word word " * 1000, request) == ""
    assert time.process_time() - before < 0.5


def test_what_is_huge_is_neither_written_out_nor_searched() -> None:
    ids = CompletionRequest(model="m", prompts=(tuple(range(2_000_000)),))
    before = time.process_time()
    assert told("word", ids) == ""
    assert type(failure(VendorError(400, message="context" * 200_000), REQUEST, TARGET)) is UpstreamRefused
    assert time.process_time() - before < 0.1


def test_a_large_prompt_is_searched_in_a_moment() -> None:
    request = CompletionRequest(model="m", prompts=("word " * 20_000,))
    before = time.process_time()
    told("This is a message with many words that do not stand there. " * 20, request)
    assert time.process_time() - before < 1


def test_a_broken_reply_is_named_without_quoting_it() -> None:
    assert garbled(TARGET, "is not JSON").message == "Example's reply is not JSON: send the request again."
    assert "before it was complete" in cut_short(TARGET).message

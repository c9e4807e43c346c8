"""Every language and every vendor over the same cases. A case is data: a caller's request, the call that it becomes, a
reply, and the events or the error that come of it. Whoever adds a vendor or a language adds cases, no code.

`cases/<language>/` holds the language's own, all of `REQUIRED` among them; `cases/<prefix>/` a vendor's, `plain` with
its whole call among them. A vendor answers for its language's cases too, where it has none of its own of that name.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

from andthen.contract.errors import AndthenError
from andthen.contract.events import Event, Text
from andthen.contract.limits import Limits
from andthen.contract.request import CompletionRequest, parse
from andthen.plan.plan import plan
from andthen.plan.spread import Part, parts
from andthen.vendors.rows import Resolved, VendorRow, languages, resolved, vendors
from andthen.wire.base import Decoder, Refusal, Target, Wire

CASES = Path(__file__).parent / "cases"
REQUIRED = ("plain", "stream", "refused", "rate-limited", "cut-short", "stop", "length", "unicode", "usage")
LIMITS = Limits(max_stops=32, max_logprobs=20)
AT_S = 1_800_000_000
EXAMPLES = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
SCALARS = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|null|true|false')
OTHERS = (
    b"null", b"true", b"-1", b"0", b"3", b"1e400", b"99999999999999999999", b'""', b'"x"', b'"\\ud800"', b"[]",
    b"[null]", b"{}", b'{"":[]}', b'"\xff"', b"[" * 2000,
)  # fmt: skip


class Reply(Struct, frozen=True, forbid_unknown_fields=True):
    status: int = 200
    headers: dict[str, str] = {}
    json: Any = None
    text: str | None = None
    base64: str | None = None

    def body(self) -> bytes:
        if self.base64 is not None:
            return base64.b64decode(self.base64)
        return self.text.encode() if self.text is not None else json.dumps(self.json, ensure_ascii=False).encode()


class Call(Struct, frozen=True, forbid_unknown_fields=True):
    url: str
    headers: dict[str, str]
    body: Any


class Failure(Struct, frozen=True, forbid_unknown_fields=True):
    code: str
    status: int
    retry_after_s: int | None = None


class Case(Struct, frozen=True, forbid_unknown_fields=True):
    request: dict[str, Any]
    reply: Reply
    call: Call | None = None
    events: list[Event] = []
    """Where an error is told too, what comes before it."""
    error: Failure | None = None
    key: str = ""
    """Where the usual one doesn't do."""
    environment: dict[str, str] = {}
    """Variables that the row's address names."""


class Run(Struct, frozen=True):
    """A case in a vendor's dialect, or in the language's own where its prefix is nobody's."""

    case: Case
    wire: Wire
    part: Part
    target: Target
    streams: bool

    @property
    def request(self) -> CompletionRequest:
        return self.part.request

    def decoder(self) -> Decoder:
        return self.wire.decoder(self.request, self.target, streams=self.streams)

    def refusal(self, body: bytes) -> AndthenError:
        headers = tuple((name.lower(), value) for name, value in self.case.reply.headers.items())
        refusal = Refusal(self.case.reply.status, headers, body[: 64 * 2**10])
        return self.wire.refusal(refusal, self.request, self.target)

    def outcome(self, pieces: list[bytes]) -> tuple[list[Event], AndthenError | None]:
        """The events of a reply in these pieces, and the error at their end."""
        if self.case.reply.status != 200:
            return [], self.refusal(b"".join(pieces))
        decoder, events = self.decoder(), list[Event]()
        try:
            for piece in pieces:
                events += decoder.feed(piece)
            events += decoder.end()
        except AndthenError as error:
            return merged(events), error
        return merged(events), None


@cache
def load(folder: str, name: str) -> Case:
    return msgspec.json.decode((CASES / folder / f"{name}.json").read_bytes(), type=Case)


def names(folder: str) -> list[str]:
    return sorted(path.stem for path in (CASES / folder).glob("*.json"))


def run(case: Case, language: str, model: str = "") -> Run:
    """Args:
    model: in the place of the case's own.
    """
    body = case.request | {"model": model or case.request["model"]}
    prefix, _, own = body["model"].partition("/")
    row = vendors().get(prefix)
    spoken = resolved(language, []) if row is None else row.resolve(own)
    assert spoken.language == language, f"{body['model']} speaks {spoken.language}, and this is a case of {language}"
    request = parse(json.dumps(body).encode(), LIMITS)
    abilities = spoken.abilities(request.model, LIMITS)
    part = parts(request, plan(request, abilities))[0]
    return Run(case, spoken.wire(), part, target(case, row, own), request.stream and part.streams)


def target(case: Case, row: VendorRow | None, model: str) -> Target:
    if row is None:
        return Target(vendor="Example", address="https://api.example.com/v1", model=model, key="KEY", at_s=AT_S)
    address = row.address
    for name, value in case.environment.items():
        address = address.replace(f"{{{name}}}", value)
    count = len([name for name in row.key_variable.split() if not name.endswith("?")])
    key = "\n".join(f"KEY{number + 1}" for number in range(count)) if count > 1 else "KEY"
    headers = tuple(row.headers.items())
    return Target(vendor=row.name, address=address, model=model, key=case.key or key, headers=headers, at_s=AT_S)


def merged(events: list[Event]) -> list[Event]:
    """Adjacent texts of one candidate made one: a cut may part them."""
    out: list[Event] = []
    for event in events:
        last = out[-1] if out else None
        if (
            isinstance(event, Text)
            and isinstance(last, Text)
            and (last.prompt, last.candidate) == (event.prompt, event.candidate)
        ):
            out[-1] = replace(
                last,
                text=last.text + event.text,
                tokens=last.tokens + event.tokens,
                generated=last.generated + event.generated,
            )
        else:
            out.append(event)
    return out


def language_of(prefix: str, case: Case) -> str:
    return vendors()[prefix].resolve(case.request["model"].partition("/")[2]).language


def own_cases() -> list[Any]:
    """Every file, as it stands."""
    folders = sorted(path.name for path in CASES.iterdir())
    return [pytest.param(folder, name, id=f"{folder}-{name}") for folder in folders for name in names(folder)]


def inherited_cases() -> list[Any]:
    """The required cases of its language, for each vendor that has none of its own of that name."""
    found = []
    for prefix in vendors():
        if "plain" not in (own := names(prefix)):
            continue
        model = load(prefix, "plain").request["model"]
        language = language_of(prefix, load(prefix, "plain"))
        for name in sorted({*REQUIRED} & {*names(language)} - {*own}):
            found.append(pytest.param(language, name, model, id=f"{prefix}-{name}"))
    return found


def opened(folder: str, name: str) -> Run:
    case = load(folder, name)
    return run(case, folder if folder in languages() else language_of(folder, case))


def check(one: Run) -> None:
    events, error = one.outcome([one.case.reply.body()])
    told = error and Failure(error.code, error.status, error.retry_after_s)
    assert told == one.case.error, error
    assert events == merged(one.case.events)


@pytest.mark.parametrize("language", languages())
def test_a_language_has_all_required_cases(language: str) -> None:
    assert {*REQUIRED} <= {*names(language)}, f"missing: {sorted({*REQUIRED} - {*names(language)})}"


@pytest.mark.parametrize("prefix", vendors())
def test_a_vendor_has_a_plain_case_with_its_whole_call(prefix: str) -> None:
    assert "plain" in names(prefix)
    case = load(prefix, "plain")
    assert case.call is not None
    assert case.request["model"].startswith(f"{prefix}/")


def test_every_folder_of_cases_is_a_language_or_a_vendor() -> None:
    assert {path.name for path in CASES.iterdir()} <= {*languages(), *vendors()}


@pytest.mark.parametrize("prefix", vendors())
def test_a_row_says_who_is_asked_and_where_that_was_read(prefix: str) -> None:
    row = vendors()[prefix]
    assert row.source not in ("", "to be checked")
    assert row.private or row.key_variable
    for spoken in [row.resolve("any"), *(row.resolve(model.match) for model in row.models)]:
        assert isinstance(spoken, Resolved)
        spoken.wire()
        spoken.abilities(f"{prefix}/any", LIMITS)


@pytest.mark.parametrize(("folder", "name"), own_cases())
def test_a_reply_becomes_the_cases_events_or_its_error(folder: str, name: str) -> None:
    check(opened(folder, name))


@pytest.mark.parametrize(("language", "name", "model"), inherited_cases())
def test_a_vendor_answers_for_its_languages_cases(language: str, name: str, model: str) -> None:
    check(run(load(language, name), language, model))


@pytest.mark.parametrize(("folder", "name"), own_cases())
def test_a_request_becomes_the_cases_call(folder: str, name: str) -> None:
    one = opened(folder, name)
    call = one.wire.encode(one.request, one.target, streams=one.part.streams)
    assert one.part.streams or not call.streams
    assert all(name == name.lower() for name, _ in call.headers)
    assert "content-type" in dict(call.headers)
    if (expected := one.case.call) is not None:
        assert (call.method, call.url) == ("POST", expected.url)
        assert json.loads(call.body) == expected.body
        assert dict(call.headers) == {"content-type": "application/json"} | expected.headers


@pytest.mark.parametrize(("folder", "name"), own_cases())
def test_any_cut_of_the_bytes_gives_the_same_events(folder: str, name: str) -> None:
    one = opened(folder, name)
    body = one.case.reply.body()
    events, error = one.outcome([body])

    @EXAMPLES
    @given(st.sets(st.integers(0, len(body)), max_size=12))
    @example(set(range(len(body))))
    def cut(places: set[int]) -> None:
        edges = [0, *sorted(places), len(body)]
        other_events, other_error = one.outcome([body[low:high] for low, high in itertools.pairwise(edges)])
        assert other_events == events
        assert (type(other_error), str(other_error)) == (type(error), str(error))

    cut()


@pytest.mark.parametrize(("folder", "name"), own_cases())
def test_any_garbage_gives_events_or_one_of_our_errors(folder: str, name: str) -> None:
    one = opened(folder, name)
    body = one.case.reply.body()
    scalars = [match.span() for match in SCALARS.finditer(body)] or [(0, len(body))]
    spans = st.tuples(st.integers(0, len(body)), st.integers(0, len(body))).map(sorted)

    @EXAMPLES
    @given(
        st.one_of(
            st.tuples(st.sampled_from(scalars), st.sampled_from(OTHERS)),
            st.tuples(spans, st.binary(max_size=40)),
            st.tuples(spans, spans.map(lambda span: body[span[0] : span[1]])),
        )
    )
    @example(((0, len(body)), b""))
    @example(((0, len(body)), b"data: [DONE]\n\n"))
    @example(((0, len(body)), b"<html>502 Bad Gateway</html>"))
    def spoil(spoiling: tuple[Any, bytes]) -> None:
        (low, high), other = spoiling
        spoilt = body[:low] + other + body[high:]
        events, error = one.outcome([spoilt])
        assert error is None or error.message
        msgspec.json.encode(events)
        assert isinstance(one.refusal(spoilt), AndthenError)

    spoil()


@pytest.mark.parametrize(("folder", "name"), own_cases())
def test_an_error_tells_neither_key_nor_prompt(folder: str, name: str) -> None:
    one = opened(folder, name)
    error = one.outcome([one.case.reply.body()])[1]
    if error is not None:
        secrets = [one.target.key, *(prompt for prompt in one.request.prompts if isinstance(prompt, str) and prompt)]
        assert not any(secret in error.message for secret in secrets)


@pytest.mark.parametrize(("folder", "name"), own_cases())
def test_a_reply_cut_off_anywhere_never_looks_whole(folder: str, name: str) -> None:
    one = opened(folder, name)
    body = one.case.reply.body().rstrip()
    events, error = one.outcome([one.case.reply.body()])
    if error is not None or one.case.reply.status != 200:
        return
    for end in {0, len(body) // 3, len(body) // 2, 2 * len(body) // 3, len(body) - 1}:
        cut_events, cut_error = one.outcome([body[:end]])
        assert cut_error is not None or cut_events == events

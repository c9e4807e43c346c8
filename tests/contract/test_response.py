import itertools
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andthen.contract.errors import InternalError, ModelNotFound, tree
from andthen.contract.events import Alternative, Event, Finished, PromptScored, Text, Token, Usage
from andthen.contract.request import CompletionRequest
from andthen.contract.response import Completion, Head, Stream, error_body, error_frame

HEAD = Head("cmpl-1", 1_700_000_000, "local/tale", "andthen-0.1-abc")


def asked(**fields: Any) -> CompletionRequest:
    return CompletionRequest(**{"model": "local/tale", "prompts": ("x",)} | fields)


def fold(request: CompletionRequest, events: list[Event]) -> dict[str, Any]:
    completion = Completion(request)
    for event in events:
        completion.feed([event])
    return dict(json.loads(completion.body(HEAD)))


def chunks(request: CompletionRequest, events: list[Event]) -> list[dict[str, Any]]:
    stream = Stream(request, HEAD)
    frames = b"".join(stream.feed([event]) for event in events).split(b"\n\n")
    assert frames.pop() == b""
    assert all(frame.startswith(b"data: {") for frame in frames)
    return [json.loads(frame.removeprefix(b"data: ")) for frame in frames]


def joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The chunks of a stream put together as clients do."""
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    for chunk in chunks:
        for piece in chunk["choices"]:
            whole = choices.setdefault(piece["index"], piece | {"text": "", "logprobs": None})
            whole["text"] += piece["text"]
            whole["finish_reason"] = piece["finish_reason"]
            if whole["logprobs"] is None:
                whole["logprobs"] = piece["logprobs"]
            elif piece["logprobs"] is not None:
                for key, values in piece["logprobs"].items():
                    if values is not None:
                        whole["logprobs"][key] += values
        usage = chunk.get("usage") or usage
    return chunks[0] | {"choices": [choices[index] for index in sorted(choices)], "usage": usage}


@st.composite
def conversations(draw: st.DrawFn) -> tuple[CompletionRequest, list[Event]]:
    """A request and the events that answer it, candidates interleaved."""
    request = asked(
        prompts=("x",) * draw(st.integers(1, 3)),
        n=draw(st.integers(1, 3)),
        echo=draw(st.booleans()),
        logprobs=draw(st.none() | st.integers(0, 2)),
        include_usage=True,
        continuous_usage_stats=draw(st.booleans()),
        return_tokens_as_token_ids=draw(st.booleans()),
    )
    pieces = st.lists(st.sampled_from(["a", "é", "", "\n", '"', "bytes:\\xe2"]), max_size=4)
    events: list[Event] = []
    queues: list[list[Event]] = []
    for prompt in range(len(request.prompts)):
        texts = draw(pieces) if request.echo else []
        tokens = written(draw, request, texts, start=0, first=True)
        events.append(PromptScored(prompt, len(texts) + 1, 1, "".join(texts), tokens))
        for candidate in range(request.n):
            queue: list[Event] = []
            start = sum(map(len, texts))
            for step in draw(st.lists(pieces, max_size=3)):
                tokens = written(draw, request, step, start=start, first=False)
                queue.append(Text(prompt, candidate, "".join(step), tokens, len(step)))
                start += sum(map(len, step))
            queue.append(Finished(prompt, candidate, draw(st.sampled_from(["stop", "length"]))))
            queues.append(queue)
    order = draw(st.permutations([number for number, queue in enumerate(queues) for _ in queue]))
    events += [queues[number].pop(0) for number in order]
    generated = sum(event.generated for event in events if isinstance(event, Text))
    read = sum(event.prompt_tokens for event in events if isinstance(event, PromptScored))
    return request, [*events, Usage(read, generated, len(request.prompts))]


def written(
    draw: st.DrawFn, request: CompletionRequest, texts: list[str], *, start: int, first: bool
) -> tuple[Token, ...]:
    if request.logprobs is None:
        return ()
    values = [draw(st.floats(-30, 0)) for _ in texts]
    tokens = []
    for number, (text, value) in enumerate(zip(texts, values, strict=True)):
        offset = start + sum(map(len, texts[:number]))
        others = draw(st.lists(st.sampled_from(["a", "b", "é"]), min_size=request.logprobs, max_size=request.logprobs))
        top = tuple(Alternative(90 + i, other, -0.5 - i) for i, other in enumerate(others))
        if first and number == 0:
            tokens.append(Token(number, text, None, offset))
        else:
            top = (*top, Alternative(number, text, value))
            tokens.append(Token(number, text, value, offset, top if request.logprobs else None))
    return tuple(tokens)


@given(conversations())
def test_a_stream_put_together_is_the_reply(conversation: tuple[CompletionRequest, list[Event]]) -> None:
    request, events = conversation
    assert joined(chunks(request, events)) == fold(request, events)


@given(conversations())
def test_a_reply_is_consistent(conversation: tuple[CompletionRequest, list[Event]]) -> None:
    request, events = conversation
    reply = fold(request, events)
    assert [choice["index"] for choice in reply["choices"]] == list(range(len(request.prompts) * request.n))
    assert reply["usage"]["total_tokens"] == reply["usage"]["prompt_tokens"] + reply["usage"]["completion_tokens"]
    for choice in reply["choices"]:
        logprobs = choice["logprobs"]
        if request.logprobs is None:
            assert logprobs is None
            continue
        assert (logprobs["top_logprobs"] is None) == (request.logprobs == 0)
        arrays = [values for values in logprobs.values() if values is not None]
        assert len({len(values) for values in arrays}) == 1
        assert logprobs["text_offset"] == sorted(logprobs["text_offset"])
        for token, value, top in zip(
            logprobs["tokens"],
            logprobs["token_logprobs"],
            logprobs["top_logprobs"] or itertools.repeat(None),
            strict=False,
        ):
            assert top is None or top[token] == value


@given(conversations())
def test_each_choice_of_a_stream_begins_with_its_echo_and_ends_once(
    conversation: tuple[CompletionRequest, list[Event]],
) -> None:
    request, events = conversation
    sent = chunks(request, events)
    assert {(chunk["id"], chunk["created"], chunk["model"]) for chunk in sent} == {
        ("cmpl-1", 1_700_000_000, "local/tale")
    }
    last = sent.pop()
    assert last["choices"] == []
    running = [chunk["usage"] for chunk in sent]
    if request.continuous_usage_stats:
        totals = [usage["total_tokens"] for usage in [*running, last["usage"]]]
        assert totals == sorted(totals)
    else:
        assert running == [None] * len(sent)
    echoes = {event.prompt: event.text for event in events if isinstance(event, PromptScored)}
    for index in range(len(request.prompts) * request.n):
        pieces = [chunk["choices"][0] for chunk in sent if chunk["choices"][0]["index"] == index]
        assert [piece["finish_reason"] is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]
        assert "".join(piece["text"] for piece in pieces).startswith(echoes[index // request.n])
        final = pieces[-1]["logprobs"]
        assert final is None if request.logprobs is None else not any(final.values())


def token(id: int | None, text: str, logprob: float, *top: tuple[int | None, str, float]) -> Token:
    return Token(id, text, logprob, 0, tuple(Alternative(*other) for other in top))


def tops(tokens: tuple[Token, ...], **fields: Any) -> Any:
    request = asked(logprobs=2, **fields)
    events: list[Event] = [Text(0, 0, "", tokens, len(tokens)), Finished(0, 0, "stop"), Usage(1, len(tokens))]
    return fold(request, events)["choices"][0]["logprobs"]["top_logprobs"]


def test_of_two_ids_with_one_text_the_sampled_one_stays_else_the_higher() -> None:
    assert tops((token(7, "a", -3.0, (1, "b", -0.5), (2, "b", -0.7), (3, "a", -1.0), (7, "a", -3.0)),)) == [
        {"b": -0.5, "a": -3.0}
    ]


def test_tokens_may_be_written_as_ids() -> None:
    tokens = (token(7, "a", -3.0, (1, "b", -0.5), (2, "b", -0.7)), token(None, "c", -1.0, (None, "d", -0.1)))
    assert tops(tokens, return_tokens_as_token_ids=True) == [
        {"token_id:1": -0.5, "token_id:2": -0.7, "token_id:7": -3.0},
        {"d": -0.1, "c": -1.0},
    ]


def test_what_json_can_not_write_becomes_a_very_low_number() -> None:
    assert tops((token(7, "a", -math.inf, (1, "b", math.nan)),)) == [{"b": -9999.0, "a": -9999.0}]


def test_usage_shows_what_is_known() -> None:
    known = fold(asked(), [Finished(0, 0, "length"), Usage(5, 0, 2, 3)])["usage"]
    assert known == {
        "prompt_tokens": 5,
        "completion_tokens": 0,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    unknown = fold(asked(), [Finished(0, 0, "length"), Usage(5, 0)])["usage"]
    assert unknown == {"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5}


def test_without_stream_options_no_chunk_has_a_usage() -> None:
    sent = chunks(asked(), [Text(0, 0, "a", (), 1), Text(0, 0, "", (), 1), Finished(0, 0, "stop"), Usage(1, 2)])
    assert [chunk["choices"][0]["text"] for chunk in sent] == ["a", ""]
    assert all("usage" not in chunk for chunk in sent)


def test_running_usage_comes_also_where_no_text_does() -> None:
    request = asked(continuous_usage_stats=True)
    sent = chunks(request, [PromptScored(0, 3), Text(0, 0, "", (), 1), Finished(0, 0, "stop", 1), Usage(3, 2)])
    assert [chunk["usage"]["completion_tokens"] for chunk in sent] == [1, 2]


@pytest.mark.parametrize("events", [[], [Finished(0, 0, "stop")], [Usage(1, 0)]])
def test_a_reply_is_never_made_of_half_the_events(events: list[Event]) -> None:
    with pytest.raises(InternalError):
        fold(asked(), events)


def test_who_is_told_to_come_back_is_told_when() -> None:
    unavailable = [kind for kind in tree() if kind.status == 503]
    assert {kind("Ask again.").retry_after_s for kind in unavailable} == {1}
    assert {kind("Ask again.", retry_after_s=7).retry_after_s for kind in unavailable} == {7}


def test_errors_have_all_four_keys() -> None:
    error = ModelNotFound("No such model.", param="model")
    body = {
        "error": {
            "message": "No such model.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }
    assert json.loads(error_body(error)) == body
    assert error_frame(error) == b"event: error\ndata: " + error_body(error) + b"\n\n"
    assert len({kind.code for kind in tree()}) == len(tree())

"""What the engine promises, on the model that ships."""

from __future__ import annotations

import threading
import time
from queue import Empty
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andthen.contract.errors import (
    AndthenError,
    BadRequest,
    ContextLengthExceeded,
    InternalError,
    ModelNotFound,
    NoCapacity,
)
from andthen.contract.events import Finished, PromptScored, Text
from andthen.engine.messages import (
    CREDIT_TOKENS,
    Credit,
    Describe,
    Described,
    Detokenize,
    Detokenized,
    Emitted,
    Tokenize,
    Tokenized,
)
from andthen.engine.models import Known
from andthen.engine.settings import EngineSettings, ModelSettings
from tests.engine.asking import LINK, MODEL, SHIPPED, Asker, Plain, Reply, asking, request

LONG = "a long day in the wood and " * 40


# Text


def test_a_stop_cuts_wherever_it_falls(asker: Asker) -> None:
    whole = asker.ask(seed=1, max_tokens=60).text
    for start in range(0, len(whole) - 4, 7):
        for length in (1, 2, 4):
            stop = whole[start : start + length]
            reply = asker.ask(seed=1, max_tokens=60, stop=(stop,), stream=True)
            assert reply.text == whole[: whole.find(stop)]
            assert reply.only.reason == "stop"


def test_tokens_after_a_stop_are_neither_shown_nor_counted(asker: Asker) -> None:
    whole = asker.ask(seed=1, max_tokens=60, logprobs=0)
    tokens = whole.only.tokens
    stop = tokens[10].text[-1] + tokens[11].text[:2]
    cut = whole.text.find(stop)
    reply = asker.ask(seed=1, max_tokens=60, logprobs=0, stop=(stop,))
    start = len("Once upon a time")
    assert [token.offset for token in reply.only.tokens] == [t.offset for t in tokens if t.offset < start + cut]
    complete = next(index for index, _ in enumerate(tokens) if stop in "".join(t.text for t in tokens[: index + 1]))
    assert reply.usage.completion_tokens == complete + 1


def test_no_stop_comes_before_the_least_number_of_tokens(asker: Asker) -> None:
    whole = asker.ask(seed=1, max_tokens=12, logprobs=0)
    tokens = [token.text for token in whole.only.tokens]
    fields: dict[str, Any] = {"seed": 1, "max_tokens": 12, "stop": (tokens[0][:2], tokens[6][-1:] + tokens[7][:2])}
    reply = asker.ask(min_tokens=7, **fields)
    assert reply.text == whole.text[: whole.text.find(fields["stop"][1], len("".join(tokens[:6])))]
    assert (reply.only.reason, reply.usage.completion_tokens) == ("stop", 8)
    assert asker.ask(min_tokens=12, **fields).text == whole.text


def test_the_prompt_is_no_place_to_stop(asker: Asker) -> None:
    reply = asker.ask("the end. And", seed=1, echo=True, stop=("end. And",), max_tokens=5)
    assert reply.only.reason == "length"


def test_a_character_of_several_tokens_comes_whole(asker: Asker) -> None:
    ids = asker_tokens(asker, "é€😀")
    for cut in range(1, len(ids)):
        bias = {ids[cut]: 100.0}
        reply = asker.ask(tuple(ids[:cut]), logit_bias=bias, max_tokens=1, echo=True, logprobs=0, temperature=0.0)
        shown = reply.prompts[0].text + reply.text
        assert shown == asker_text(asker, ids[: cut + 1])
        tokens = [*reply.prompts[0].tokens, *reply.only.tokens]
        offsets = [token.offset for token in tokens]
        assert offsets == sorted(offsets)
        assert max(offsets) < len(shown)


def test_a_character_that_nobody_completes_is_replaced(asker: Asker) -> None:
    ids = asker_tokens(asker, "é€")[:-1]
    reply = asker.ask(tuple(ids), max_tokens=0, echo=True, logprobs=0)
    assert reply.prompts[0].text == asker_text(asker, ids) == "é\ufffd"
    assert reply.prompts[0].tokens[-1].offset == 1
    assert asker.ask(tuple(ids), max_tokens=0).prompts[0].text == ""


def asker_tokens(asker: Asker, text: str, **fields: Any) -> list[int]:
    answer = asker.next(asker.post(Tokenize, model=MODEL, text=text, **{"add_special": False} | fields))
    assert isinstance(answer, Tokenized)
    return answer.tokens


def asker_text(asker: Asker, tokens: list[int]) -> str:
    answer = asker.next(asker.post(Detokenize, model=MODEL, tokens=tuple(tokens)))
    assert isinstance(answer, Detokenized)
    return answer.text


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_echo_gives_the_prompt_back(asker: Asker, prompt: str) -> None:
    reply = asker.ask(prompt, echo=True, logprobs=0, max_tokens=0)
    (scored,) = reply.prompts.values()
    assert scored.text == prompt
    assert [token.offset for token in scored.tokens] == sorted(token.offset for token in scored.tokens)
    assert all(token.offset < max(1, len(prompt)) for token in scored.tokens)
    assert [token.logprob is None for token in scored.tokens] == [i == 0 for i in range(len(scored.tokens))]


def test_an_end_token_is_counted_and_shown_but_adds_no_text(asker: Asker, plain: Plain) -> None:
    end = min(plain.model.end_tokens)
    reply = asker.ask(logit_bias={end: 100.0}, logprobs=1, max_tokens=5)
    assert (reply.text, reply.only.reason, reply.usage.completion_tokens) == ("", "stop", 1)
    (token,) = reply.only.tokens
    assert (token.id, token.offset) == (end, len("Once upon a time"))


def test_ends_can_be_banned(asker: Asker, plain: Plain) -> None:
    bias = dict.fromkeys(plain.model.end_tokens, 100.0)
    assert asker.ask(logit_bias=bias, ignore_eos=True, max_tokens=7).usage.completion_tokens == 7
    assert asker.ask(logit_bias=bias, min_tokens=4, max_tokens=7).usage.completion_tokens == 5


def test_stop_token_ids_end_without_text(asker: Asker) -> None:
    drawn = asker.ask(seed=2, logprobs=0, max_tokens=8)
    stop = drawn.only.tokens[3].id
    assert stop is not None
    first = next(index for index, token in enumerate(drawn.only.tokens) if token.id == stop)
    reply = asker.ask(seed=2, logprobs=0, max_tokens=8, stop_token_ids=(stop,))
    assert reply.text == "".join(token.text for token in drawn.only.tokens[:first])
    assert reply.only.reason == "stop"


def test_special_tokens_in_a_text_are_read_or_plain(asker: Asker, plain: Plain) -> None:
    text = "<|fim_prefix|>a"
    assert len(asker_tokens(asker, text)) == 2
    assert len(asker_tokens(asker, text, parse_special=False)) > 4
    assert asker.ask(text, max_tokens=0).usage.prompt_tokens == 3
    assert asker.ask(text, max_tokens=0, parse_special=False).usage.prompt_tokens > 5
    assert asker.ask(text, echo=True, max_tokens=0).prompts[0].text == text


def test_a_bos_is_added_to_text_counted_and_never_shown(asker: Asker, plain: Plain) -> None:
    ids = asker_tokens(asker, "Once upon")
    with_bos = asker_tokens(asker, "Once upon", add_special=True)
    assert with_bos == [plain.model.bos, *ids]
    asked = {"echo": True, "logprobs": 0, "max_tokens": 0}
    text, tokens = asker.ask("Once upon", **asked), asker.ask(tuple(ids), **asked)
    assert text.usage.prompt_tokens == len(ids) + 1
    assert tokens.usage.prompt_tokens == len(ids)
    assert [t.text for t in text.prompts[0].tokens] == [t.text for t in tokens.prompts[0].tokens]


def test_the_start_of_a_document_is_a_prompt(asker: Asker) -> None:
    reply = asker.ask("", max_tokens=4, echo=True, logprobs=0)
    assert reply.prompts[0].tokens == ()
    assert reply.usage.prompt_tokens == 1
    assert len(reply.only.tokens) == 4


@pytest.mark.parametrize("suffix_first", [None, True, False])
def test_fill_in_the_middle_reads_both_parts_and_their_marks(plain: Plain, suffix_first: bool | None) -> None:
    model = ModelSettings(str(SHIPPED), deterministic=True, suffix_first=suffix_first)
    with asking(EngineSettings(models={MODEL: model})) as asker:
        reply = asker.ask("Once upon", suffix=" there was a king", seed=1, max_tokens=6, logprobs=0)
        prefix, rest = asker_tokens(asker, "Once upon"), asker_tokens(asker, " there was a king")
        assert reply.usage.prompt_tokens == len(prefix) + len(rest) + 4
        assert reply.only.tokens[0].offset == len("Once upon")
        before, after, middle = plain.model.fill_in_the_middle or (0, 0, 0)
        parts = [(before, *prefix), (after, *rest)]
        if plain.model.suffix_first if suffix_first is None else suffix_first:
            parts.reverse()
        prompt = (plain.model.bos or 0, *parts[0], *parts[1], middle)
        assert asker.ask(prompt, seed=1, max_tokens=6).text == reply.text


def test_log_probabilities_hold_the_chosen_token_among_the_best(asker: Asker) -> None:
    for depth in (0, 1, 5):
        for token in asker.ask(seed=4, logprobs=depth, max_tokens=20).only.tokens:
            if depth == 0:
                assert token.top is None
                continue
            assert token.top is not None
            assert (token.id, token.logprob) in [(other.id, other.logprob) for other in token.top]
            assert len(token.top) in (depth, depth + 1)
            assert [t.logprob for t in token.top] == sorted((t.logprob for t in token.top), reverse=True)


def test_log_probabilities_are_of_the_raw_distribution(asker: Asker) -> None:
    plainly = asker.ask(temperature=0.0, max_tokens=1, logprobs=5).only.tokens[0]
    bent = asker.ask(
        temperature=0.0, max_tokens=1, logprobs=5, logit_bias={plainly.id: 3.0}, top_p=0.3, presence_penalty=1.0
    )
    assert bent.only.tokens[0] == plainly


# Usage and the prefix cache


def test_a_shared_prompt_is_read_once_and_then_cached(asker: Asker) -> None:
    prompt = f"{time.monotonic_ns()} {LONG}"
    first = asker.ask(prompt, n=3, max_tokens=4, ignore_eos=True)
    again = asker.ask(prompt, max_tokens=4)
    assert (first.usage.cached_tokens, again.usage.cached_tokens) == (0, first.usage.prompt_tokens - 1)
    assert first.usage.prompt_tokens == again.usage.prompt_tokens
    assert first.usage.completion_tokens == 12


def test_what_was_generated_is_a_prefix_too(asker: Asker) -> None:
    prompt = f"{time.monotonic_ns()} {LONG}"
    first = asker.ask(prompt, max_tokens=20, temperature=0.0, ignore_eos=True, logprobs=0)
    ids = [*asker_tokens(asker, prompt, add_special=True), *[token.id or 0 for token in first.only.tokens]]
    assert asker.ask(tuple(ids), max_tokens=1).usage.cached_tokens == len(ids) - 1


def test_the_cache_changes_no_text(asker: Asker) -> None:
    prompt = f"{time.monotonic_ns()} {LONG}"
    texts = {asker.ask(prompt, seed=3, max_tokens=30).text for _ in range(3)}
    assert len(texts) == 1


def test_no_tokens_asked_is_no_work(asker: Asker) -> None:
    reply = asker.ask(("one", "two"), max_tokens=0, n=2)
    assert [said.reason for said in reply.said.values()] == ["length"] * 4
    assert reply.usage.completion_tokens == 0
    assert reply.usage.prompt_tokens == sum(len(asker_tokens(asker, t, add_special=True)) for t in ("one", "two"))


# Refusals


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"max_tokens": 5000}, ContextLengthExceeded, "max_tokens"),
        ({"logit_bias": {10**9: 1.0}}, BadRequest, "logit_bias"),
        ({"stop_token_ids": (10**9,)}, BadRequest, "stop_token_ids"),
        ({"suffix": "word " * 9000}, ContextLengthExceeded, "suffix"),
    ],
)
def test_what_the_model_cannot_take_is_refused(
    asker: Asker, fields: dict[str, Any], kind: type[AndthenError], param: str
) -> None:
    with pytest.raises(kind) as refused:
        asker.ask(**fields)
    assert refused.value.param == param


@pytest.mark.parametrize("prompt", ["word " * 5000, "x" * 10_000_000, tuple(range(5, 2000))])
def test_a_prompt_beyond_the_context_is_refused_at_once(asker: Asker, prompt: Any) -> None:
    started = time.monotonic()
    with pytest.raises(ContextLengthExceeded) as refused:
        asker.ask(prompt)
    assert refused.value.param == "prompt"
    assert time.monotonic() - started < 5


def test_a_token_outside_the_vocabulary_is_refused(asker: Asker, plain: Plain) -> None:
    with pytest.raises(BadRequest, match=f"0 to {plain.model.vocab_size - 1}"):
        asker.ask((5, plain.model.vocab_size))


def test_an_unknown_model_is_not_found(asker: Asker) -> None:
    with pytest.raises(ModelNotFound):
        asker.next(asker.post(Tokenize, model="local/none", text="a"))


def test_the_whole_context_can_be_filled(asker: Asker, plain: Plain) -> None:
    room = plain.model.context - len(asker_tokens(asker, "Once upon a time", add_special=True))
    assert asker.ask(max_tokens=room, ignore_eos=True).usage.completion_tokens == room


@settings(max_examples=40)
@given(
    st.lists(
        st.one_of(st.text(max_size=20), st.lists(st.integers(0, 4095), min_size=1, max_size=20).map(tuple)),
        min_size=1,
        max_size=4,
    ),
    st.fixed_dictionaries(
        {
            "max_tokens": st.integers(0, 6),
            "n": st.integers(1, 3),
            "echo": st.booleans(),
            "logprobs": st.none() | st.integers(0, 5),
            "temperature": st.floats(0, 2),
            "top_p": st.floats(0, 1),
            "top_k": st.integers(-1, 5000),
            "min_p": st.floats(0, 1),
            "min_tokens": st.integers(0, 6),
            "ignore_eos": st.booleans(),
            "repetition_penalty": st.floats(0.01, 100),
            "frequency_penalty": st.floats(-2, 2),
            "presence_penalty": st.floats(-2, 2),
            "logit_bias": st.dictionaries(st.integers(0, 4095), st.floats(-100, 100), max_size=3),
            "stop": st.lists(st.text(min_size=1, max_size=3), max_size=3).map(tuple),
            "seed": st.none() | st.integers(-(2**63), 2**63 - 1),
            "stream": st.booleans(),
        }
    ),
)
def test_any_request_is_answered_and_well_formed(asker: Asker, prompts: list[Any], fields: dict[str, Any]) -> None:
    reply = asker.ask(tuple(prompts), **fields)
    assert len(reply.said) == len(prompts) * fields["n"]
    for (prompt, _), said in reply.said.items():
        assert said.reason in ("stop", "length")
        assert said.generated <= fields["max_tokens"]
        base = len(reply.prompts[prompt].text) if fields["echo"] else None
        offsets = [token.offset for token in said.tokens]
        assert offsets == sorted(offsets)
        assert base is None or not offsets or offsets[0] >= base
    assert reply.usage.completion_tokens == sum(said.generated for said in reply.said.values())


# Cancellation, credit, the queue


def wait_until(true: Any, for_s: float = 10) -> None:
    until = time.monotonic() + for_s
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


def events(asker: Asker, job: int) -> list[Any]:
    """The next that it says; its turn has come then."""
    while True:
        answer = asker.next(job)
        assert isinstance(answer, Emitted)
        if answer.events:
            return answer.events


def test_cancelling_ends_the_work_and_tells_what_was_made() -> None:
    with asking() as asker:
        job = asker.submit(request(n=4, max_tokens=900, ignore_eos=True, stream=True))
        taken: list[Any] = []
        while len(taken) < 40:
            taken += events(asker, job)
        asker.cancel(job)
        reply = asker.collect(job, taken)
        assert sum(said.generated for said in reply.said.values()) <= reply.usage.completion_tokens < 900
        assert asker.engine.stats()["running"] == 0
        assert asker.ask(max_tokens=3).usage.completion_tokens <= 3


def test_a_lost_link_leaves_nothing_behind() -> None:
    with asking() as asker:
        for _ in range(10):
            asker.submit(request(n=2, max_tokens=900, ignore_eos=True))
        asker.engine.gone(LINK)
        wait_until(lambda: asker.engine.stats()["running"] == asker.engine.stats()["waiting"] == 0)


def test_cancelling_what_waits_or_is_unknown_is_harmless() -> None:
    with asking(max_sequences=1) as asker:
        first = asker.submit(request(max_tokens=500, ignore_eos=True))
        second = asker.submit(request(max_tokens=500))
        asker.cancel(second)
        asker.cancel(99_999)
        assert asker.collect(second).usage.completion_tokens == 0
        assert asker.collect(first).usage.completion_tokens == 500


def test_a_reader_that_falls_behind_is_waited_for() -> None:
    with asking() as asker:
        job = asker.submit(request(n=3, max_tokens=900, ignore_eos=True, stream=True))
        unread: list[Any] = []
        with pytest.raises(Empty):
            while True:
                unread += asker._inboxes[job].get(timeout=1).events  # type: ignore[union-attr]
        told = sum(event.generated for event in unread if isinstance(event, Text))
        assert CREDIT_TOKENS <= told < CREDIT_TOKENS + 64
        assert asker.ask(max_tokens=5, ignore_eos=True).usage.completion_tokens == 5  # the others go on meanwhile
        asker.engine.handle(LINK, Credit(job, told))
        assert asker.collect(job, unread).usage.completion_tokens == 2700


def all_of(reply: Reply) -> list[tuple[str, list[Any]]]:
    """What its reader sees, to the last log-probability."""
    return [(said.text, said.tokens) for _, said in sorted(reply.said.items())]


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"n": 5, "logprobs": 3}, id="several candidates"),
        pytest.param({"temperature": 0.0, "max_tokens": 900}, id="one"),
        pytest.param({"n": 3, "echo": True, "logprobs": 1, "top_p": 0.9}, id="with their prompt"),
    ],
)
def test_a_stream_that_others_take_the_place_of_goes_on_with_the_same_bytes(fields: dict[str, Any]) -> None:
    whole: dict[str, Any] = {"seed": 5, "max_tokens": 500, "ignore_eos": True, "stream": True} | fields
    asked = request(("There was once", "The old fox"), **whole)
    with asking() as asker:
        undisturbed = asker.collect(asker.submit(asked))
    with asking(max_sequences=2) as asker:
        job = asker.submit(asked, owner="slow")
        unread: list[Any] = []
        with pytest.raises(Empty):  # it is behind: paused
            while True:
                unread += asker._inboxes[job].get(timeout=1).events  # type: ignore[union-attr]
        for _ in range(2):
            others = [asker.submit(request(max_tokens=40, ignore_eos=True), owner="quick") for _ in range(3)]
            assert all(asker.collect(other).usage.completion_tokens == 40 for other in others)
        disturbing = [asker.submit(request(max_tokens=300, ignore_eos=True), owner="quick") for _ in range(6)]
        asker.engine.handle(LINK, Credit(job, sum(event.generated for event in unread if isinstance(event, Text))))
        disturbed = asker.collect(job, unread)
        for other in disturbing:
            asker.collect(other)
        assert asker.engine.stats()["preemptions"] > 0
        assert asker.engine.stats()["recomputed_tokens"] > 0
    assert all_of(disturbed) == all_of(undisturbed)
    assert disturbed.usage == undisturbed.usage


def test_a_full_queue_refuses_the_newest_of_the_owner_with_most_in_it() -> None:
    with asking(max_sequences=1, max_waiting=3) as asker:
        busy = asker.submit(request(max_tokens=900, ignore_eos=True), owner="many")
        taken = events(asker, busy)
        waiting = [asker.submit(request(max_tokens=2), owner="many") for _ in range(3)]
        assert asker.collect(asker.submit(request(max_tokens=2), owner="few")).usage.completion_tokens == 2
        with pytest.raises(NoCapacity):
            asker.collect(waiting[-1])
        asker.collect(busy, taken)
        assert all(asker.collect(job).usage for job in waiting[:-1])


def test_past_the_bound_of_the_queue_there_is_no_capacity() -> None:
    with asking(max_sequences=1, max_waiting=3) as asker:
        busy = asker.submit(request(max_tokens=900, ignore_eos=True))
        taken = events(asker, busy)
        waiting = [asker.submit(request(max_tokens=2)) for _ in range(3)]
        with pytest.raises(NoCapacity) as refused:
            asker.ask(max_tokens=2)
        assert refused.value.retry_after_s
        asker.collect(busy, taken)
        assert all(asker.collect(job).usage for job in waiting)


def test_owners_take_turns() -> None:
    with asking(max_sequences=2) as asker:
        asker.ask(max_tokens=1)  # loads the model
        greedy = [asker.submit(request(max_tokens=300, ignore_eos=True), owner="greedy") for _ in range(12)]
        modest = asker.submit(request(max_tokens=300, ignore_eos=True), owner="modest")
        for job in [*greedy, modest]:
            asker.collect(job)
        assert asker.ended.index(modest) < 8


def test_a_stream_comes_as_it_is_made(asker: Asker) -> None:
    streamed = [e for e in asker.ask(max_tokens=20, seed=1, stream=True, ignore_eos=True).events if isinstance(e, Text)]
    whole = [e for e in asker.ask(max_tokens=20, seed=1, ignore_eos=True).events if isinstance(e, Text)]
    assert len(streamed) > 10
    assert len(whole) == 1
    assert "".join(event.text for event in streamed) == whole[0].text


def test_candidates_come_in_waves_when_they_do_not_fit() -> None:
    models = {MODEL: ModelSettings(path=str(SHIPPED), cells=1024, deterministic=True)}
    with asking(EngineSettings(models=models)) as asker:
        waves = asker.ask(seed=1, n=9, max_tokens=250, ignore_eos=True)
    with asking() as asker:
        assert asker.ask(seed=1, n=9, max_tokens=250, ignore_eos=True).texts == waves.texts


# Models


def test_models_share_the_bound_of_memory() -> None:
    one = ModelSettings(path=str(SHIPPED), cells=4096)
    models = {"local/a": one, "local/b": one}
    bounded = EngineSettings(models=models)
    needed = Known("local/a", one, bounded.max_sequences, bounded.batch_tokens).bytes_needed
    with asking(msgspec.structs.replace(bounded, memory_bytes=needed * 3 // 2)) as asker:
        for _ in range(2):
            for name in models:
                asked = request(max_tokens=3)
                reply = asker.collect(asker.submit(replace_model(asked, name)))
                assert len(reply.events) >= 3
                assert len(asker.engine._models.runners) == 1
        busy = asker.submit(replace_model(request(max_tokens=900, ignore_eos=True), "local/a"))
        taken = events(asker, busy)
        with pytest.raises(NoCapacity, match="local/b"):
            asker.collect(asker.submit(replace_model(request(), "local/b")))
        asker.collect(busy, taken)


def replace_model(asked: Any, name: str) -> Any:
    return msgspec.structs.replace(asked, model=name)


def test_a_model_larger_than_the_bound_says_so() -> None:
    with asking(memory_bytes=1_000_000) as asker, pytest.raises(NoCapacity, match="memory_bytes"):
        asker.ask()


def test_a_file_that_is_no_model_is_told_and_harms_nobody(tmp_path: Any) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(SHIPPED.read_bytes()[:200_000])
    models = {MODEL: ModelSettings(path=str(SHIPPED)), "local/broken": ModelSettings(path=str(broken))}
    with asking(EngineSettings(models=models)) as asker:
        with pytest.raises(InternalError, match="local/broken"):
            asker.collect(asker.submit(replace_model(request(), "local/broken")))
        described = asker.next(asker.post(Describe))
        assert isinstance(described, Described)
        assert [model.name for model in described.models] == [MODEL]
        assert asker.ask(max_tokens=2, ignore_eos=True).usage.completion_tokens == 2


def test_what_is_known_of_a_model(asker: Asker, plain: Plain) -> None:
    described = asker.next(asker.post(Describe))
    assert isinstance(described, Described)
    (info,) = described.models
    assert info.name == MODEL
    assert (info.context, info.vocab_size) == (plain.model.context, plain.model.vocab_size)
    assert info.parameters == plain.model.parameters > 0
    assert info.fill_in_the_middle
    assert info.deterministic
    assert info.fingerprint.count("+") == 1
    assert (info.bos_token, info.eos_token) == ("<|endoftext|>", "<|endoftext|>")


def test_a_failing_step_ends_its_requests_and_not_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    with asking() as asker:
        asker.ask(max_tokens=2)
        (runner,) = asker.engine._models.runners
        real, calls = runner._context.decode, iter([0, 0, 0, -1])
        monkeypatch.setattr(runner._context, "decode", lambda batch: next(calls, None) or real(batch))
        jobs = [asker.submit(request(max_tokens=50, ignore_eos=True)) for _ in range(3)]
        failed = 0
        for job in jobs:
            try:
                asker.collect(job)
            except InternalError:
                failed += 1
        assert failed >= 1
        assert asker.ask(max_tokens=4, ignore_eos=True).usage.completion_tokens == 4
        assert asker.engine.stats()["running"] == 0


def test_questions_come_from_any_thread(asker: Asker) -> None:
    texts: list[str] = []

    def ask() -> None:
        texts.append(asker_text(asker, asker_tokens(asker, "Once upon a time")))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert texts == ["Once upon a time"] * 8


def test_events_keep_their_order(asker: Asker) -> None:
    reply = asker.ask(("a", "b"), n=2, best_of=2, max_tokens=5, stream=True, echo=True, logprobs=1)
    kinds = [type(event) for event in reply.events]
    assert kinds.count(PromptScored) == 2
    assert kinds.count(Finished) == 4

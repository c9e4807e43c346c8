"""A request's line to a vendor: spread over calls, tried again, handed on, left; over real sockets."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from andthen.contract.errors import (
    AndthenError,
    ModelNotFound,
    NoCapacity,
    RateLimited,
    UpstreamFailed,
    UpstreamGarbled,
    UpstreamTimeout,
    UpstreamUnauthenticated,
)
from andthen.contract.events import Text, Usage
from andthen.vendors.rows import Profile
from andthen.vendors.settings import Access, Share, Timeouts
from tests.upstream.vendor import (
    DONE,
    END,
    LIMIT_S,
    STREAM,
    CutOff,
    Sent,
    answer,
    begun,
    catalog,
    choice,
    chunk,
    completion,
    events_of,
    frame,
    json_reply,
    remote,
    vendor,
)

OVERLOADED = {"error": {"message": "busy", "type": "overloaded", "code": 503}}


async def plain(sent: Sent) -> AsyncIterator[bytes]:
    """Answers with the prompt's length as its text."""
    prompts = sent.body["prompt"] if isinstance(sent.body["prompt"], list) else [sent.body["prompt"]]
    choices = [
        choice(f"{prompt}!{sent.body.get('seed', '')}", i * sent.body.get("n", 1) + j, "length")
        for i, prompt in enumerate(prompts)
        for j in range(sent.body.get("n", 1))
    ]
    yield json_reply(completion(*choices))


async def endless(sent: Sent) -> AsyncIterator[bytes]:
    yield STREAM
    number = 0
    while not sent.left.is_set():
        yield frame(completion(choice(f" {number}"), usage=None))
        number += 1
        await asyncio.sleep(0.01)


def failing(times: int, reply: bytes) -> Any:
    """The first calls get `reply`, the others are answered."""

    async def play(sent: Sent) -> AsyncIterator[bytes]:
        nonlocal times
        times -= 1
        if times >= 0:
            yield reply
        else:
            async for piece in plain(sent):
                yield piece

    return play


async def test_a_request_is_answered_by_the_model_it_names() -> None:
    async with vendor(plain) as one, catalog({"team/m": remote(one.port)}) as models:
        reply = await answer(models, max_tokens=5)
        assert reply["choices"] == [{"index": 0, "text": "Hello!", "logprobs": None, "finish_reason": "length"}]
        assert (reply["model"], reply["usage"]["total_tokens"]) == ("team/m", 5)
        (sent,) = one.sent
        assert sent.path == "/v1/completions"
        assert sent.headers["authorization"] == "Bearer KEY-OF-OURS"
        assert sent.body["max_tokens"] == 5


async def test_what_the_server_does_not_take_at_once_is_spread_within_the_bound() -> None:
    single = msgspec.convert({"takes": {"n": False}, "prompts": ["text"]}, type=Profile)
    async with (
        vendor(plain) as one,
        catalog({"team/m": remote(one.port, over=single)}, parallel=3) as models,
    ):
        reply = await answer(models, prompt=["a", "b", "c"], n=2, seed=7)
        assert [one["text"] for one in reply["choices"]] == ["a!7", "a!8", "b!7", "b!8", "c!7", "c!8"]
        assert reply["usage"]["prompt_tokens"] == 18
        assert len(one.sent) == 6
        assert one.most_running <= 3


async def test_a_stop_that_the_server_does_not_know_ends_its_call() -> None:
    own = msgspec.convert({"takes": {"stop": False}}, type=Profile)
    async with vendor(endless) as one, catalog({"team/m": remote(one.port, over=own)}) as models:
        reply = await answer(models, stop=[" 7"], max_tokens=1000)
        assert reply["choices"][0] == {
            "index": 0, "text": " 0 1 2 3 4 5 6", "logprobs": None, "finish_reason": "stop",
        }  # fmt: skip
        (sent,) = one.sent
        assert "stop" not in sent.body
        assert sent.body["stream"] is True
        await asyncio.wait_for(sent.left.wait(), LIMIT_S)


async def test_a_caller_who_leaves_takes_every_call_along() -> None:
    own = msgspec.convert({"takes": {"n": False}}, type=Profile)
    async with vendor(endless) as one, catalog({"team/m": remote(one.port, over=own)}) as models:
        work = begun(models, n=3, stream=True, max_tokens=1000)
        async with aclosing(work.events()) as batches:
            async for _ in batches:
                if len(one.sent) == 3:
                    break
        assert work.usage is not None, "all has ended when closing returns"
        await asyncio.wait_for(asyncio.gather(*(sent.left.wait() for sent in one.sent)), LIMIT_S)
        assert work.usage.source == "estimated"
        assert work.usage.completion_tokens >= 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 529])
async def test_a_call_that_was_refused_for_a_while_is_made_again(status: int) -> None:
    async with (
        vendor(failing(1, json_reply(OVERLOADED, status))) as one,
        catalog({"team/m": remote(one.port)}) as models,
    ):
        assert (await answer(models))["choices"][0]["text"] == "Hello!"
        assert len(one.sent) == 2


@pytest.mark.parametrize("status", [408, 504, 524])
async def test_what_a_gateway_gave_up_on_may_have_been_billed(status: int) -> None:
    async with (
        vendor(failing(1, json_reply(OVERLOADED, status))) as one,
        catalog({"team/m": remote(one.port)}) as models,
    ):
        work = begun(models, prompt="12345678")
        with pytest.raises(AndthenError):
            await events_of(work)
        assert len(one.sent) == 1
        assert work.usage == Usage(2, 0, source="estimated")


async def test_an_error_behind_text_that_is_held_back_is_told_at_once() -> None:
    async def play(sent: Sent) -> AsyncIterator[bytes]:
        error = b"data: " + json.dumps({"error": {"message": "no", "code": 500}}).encode() + b"\n\n"
        text = b"data: " + json.dumps(completion(choice("N"), usage=None)).encode() + b"\n\n"
        yield STREAM + frame(completion(choice("E"), usage=None))
        await asyncio.sleep(0.05)
        yield chunk(text + error)
        await sent.left.wait()

    own = msgspec.convert({"takes": {"stop": False}}, type=Profile)
    async with vendor(play) as one, catalog({"team/m": remote(one.port, over=own)}) as models:
        with pytest.raises(UpstreamFailed):
            await asyncio.wait_for(events_of(begun(models, stream=True, stop=["END"])), LIMIT_S / 2)


async def test_calls_wait_for_a_caller_who_reads_slowly() -> None:
    sizes: list[int] = []

    async def fast(sent: Sent) -> AsyncIterator[bytes]:
        yield STREAM
        while not sent.left.is_set():
            sizes.append(2**18)
            yield frame(completion(choice("x" * sizes[-1]), usage=None))

    own = msgspec.convert({"takes": {"n": False}}, type=Profile)
    async with (
        vendor(fast) as one,
        catalog({"team/m": remote(one.port, over=own)}) as models,
        aclosing(begun(models, stream=True, n=2, max_tokens=10**6).events()) as batches,
    ):
        await anext(batches)
        before = 0
        async with asyncio.timeout(4 * LIMIT_S):
            while len(sizes) > before:
                before = len(sizes)
                await asyncio.sleep(0.3)
        assert sum(sizes) < 64 * 2**20, "it was the bound of a reply that ended them"


async def test_retries_have_one_bound_for_the_whole_request() -> None:
    own = msgspec.convert({"takes": {"n": False}}, type=Profile)
    async with (
        vendor(failing(99, json_reply(OVERLOADED, 500))) as one,
        catalog({"team/m": remote(one.port, over=own)}, retries=2) as models,
    ):
        with pytest.raises(UpstreamFailed):
            await answer(models, n=4)
        assert len(one.sent) <= 6


@pytest.mark.parametrize(
    ("status", "kind"), [(400, "upstream_refused"), (401, "upstream_unauthenticated"), (302, "upstream_refused")]
)
async def test_what_another_try_does_not_cure_is_told_at_once(status: int, kind: str) -> None:
    async with (
        vendor(failing(9, json_reply({"error": {"message": "no: KEY-OF-OURS"}}, status))) as one,
        catalog({"team/m": remote(one.port)}) as models,
    ):
        with pytest.raises(AndthenError) as caught:
            await answer(models)
        assert caught.value.code == kind
        assert "KEY-OF-OURS" not in caught.value.message
        assert len(one.sent) == 1


async def test_the_vendors_retry_after_is_waited_for_or_told() -> None:
    async with (
        vendor(failing(1, json_reply(OVERLOADED, 429, retry_after="1"))) as one,
        catalog({"team/m": remote(one.port)}) as models,
    ):
        started_s = time.monotonic()
        await answer(models)
        assert time.monotonic() - started_s >= 1
        one.play = failing(9, json_reply(OVERLOADED, 429, retry_after="40"))
        with pytest.raises(RateLimited) as caught:
            await answer(models)
        assert caught.value.retry_after_s == 40
        calls = len(one.sent)
        with pytest.raises(NoCapacity) as cooling:
            await answer(models)
        assert cooling.value.retry_after_s is not None
        assert 35 <= cooling.value.retry_after_s <= 40
        assert len(one.sent) == calls, "it asked to be left in peace"


async def test_a_call_that_may_have_been_billed_is_not_made_again() -> None:
    async def silent(sent: Sent) -> AsyncIterator[bytes]:
        await sent.left.wait()
        yield b""

    hasty = Access(private=True, timeouts=Timeouts(first_token_s=0.2))
    async with vendor(silent) as one, catalog({"team/m": remote(one.port, access=hasty)}) as models:
        work = begun(models, prompt="12345678")
        with pytest.raises(UpstreamTimeout, match="first_token_s") as caught:
            await events_of(work)
        assert len(one.sent) == 1
        assert (caught.value.should_retry, work.usage) == (True, Usage(2, 0, source="estimated"))


async def test_after_generated_tokens_a_client_is_told_not_to_try_by_itself() -> None:
    async def stalling(sent: Sent) -> AsyncIterator[bytes]:
        yield STREAM + frame(completion(choice(" one"), usage=None))
        await sent.left.wait()

    own = msgspec.convert({"takes": {"stop": False}}, type=Profile)
    hasty = Access(private=True, timeouts=Timeouts(between_tokens_s=0.2))
    async with vendor(stalling) as one, catalog({"team/m": remote(one.port, access=hasty, over=own)}) as models:
        with pytest.raises(UpstreamTimeout, match="between_tokens_s") as caught:
            await answer(models, stop=["x"])
        assert not caught.value.should_retry


@pytest.mark.parametrize("broken", ["cut", "ended", "garbage"])
async def test_a_stream_that_breaks_is_an_error_and_never_an_end(broken: str) -> None:
    async def play(sent: Sent) -> AsyncIterator[bytes]:
        yield STREAM + frame(completion(choice(" one"), usage=None))
        if broken == "cut":
            await asyncio.sleep(0.05)
            raise CutOff
        yield frame(["what"]) if broken == "garbage" else END

    async with vendor(play) as one, catalog({"team/m": remote(one.port)}) as models:
        work = begun(models, stream=True)
        texts = []
        with pytest.raises(UpstreamGarbled):
            async with aclosing(work.events()) as batches:
                async for events in batches:
                    texts += [event.text for event in events if isinstance(event, Text)]
        assert texts == [" one"]
        assert len(one.sent) == 1
        assert work.usage is not None
        assert work.usage.completion_tokens > 0


async def test_one_call_that_fails_ends_its_siblings() -> None:
    async def play(sent: Sent) -> AsyncIterator[bytes]:
        if sent.body["seed"] == 1:
            await asyncio.sleep(0.1)
            yield json_reply({"error": {"message": "no"}}, 401)
        else:
            async for piece in endless(sent):
                yield piece

    own = msgspec.convert({"takes": {"n": False}}, type=Profile)
    async with vendor(play) as one, catalog({"team/m": remote(one.port, over=own)}) as models:
        with pytest.raises(UpstreamUnauthenticated):
            await events_of(begun(models, n=2, seed=0, stream=True, max_tokens=1000))
        endless_one = next(sent for sent in one.sent if sent.body["seed"] == 0)
        await asyncio.wait_for(endless_one.left.wait(), LIMIT_S)


BOTH: dict[str, tuple[Share, ...]] = {"team/both": (Share(model="team/a"), Share(model="team/b", order=1))}


async def test_before_the_first_event_another_deployment_steps_in_unseen() -> None:
    async with (
        vendor(failing(99, json_reply(OVERLOADED, 503))) as bad,
        vendor(plain) as good,
        catalog({"team/a": remote(bad.port), "team/b": remote(good.port)}, BOTH, retries=2) as models,
    ):
        reply = await answer(models, "team/both")
        assert (reply["model"], reply["choices"][0]["text"]) == ("team/b", "Hello!")


async def test_what_was_spent_before_another_stepped_in_is_counted_and_told() -> None:
    async def silent(sent: Sent) -> AsyncIterator[bytes]:
        await sent.left.wait()
        yield b""

    hasty = Access(private=True, timeouts=Timeouts(first_token_s=0.2))
    async with (
        vendor(silent) as slow,
        vendor(plain) as good,
        catalog({"team/a": remote(slow.port, access=hasty), "team/b": remote(good.port)}, BOTH) as models,
    ):
        work = begun(models, "team/both", prompt="12345678")
        last = (await events_of(work))[-1]
        assert last == work.usage == Usage(2 + 3, 0 + 2, source="estimated")


async def test_nobody_falls_back_on_what_cools_down_by_then() -> None:
    async with (
        vendor(failing(99, json_reply(OVERLOADED, 503))) as bad,
        vendor(plain) as good,
        catalog({"team/a": remote(bad.port), "team/b": remote(good.port)}, BOTH) as models,
    ):
        work = begun(models, "team/both")
        models.health(models.find("team/b")).failed(time.monotonic(), 30, models.upstream.settings)
        with pytest.raises(NoCapacity, match="Vendor"):
            await events_of(work)
        assert work.deployment.model == "team/a"
        assert not good.sent


async def test_a_name_that_the_vendor_does_not_know_stays_unknown_and_never_cools_down() -> None:
    unknown = json_reply({"error": {"message": "no such model"}}, 404)
    async with (
        vendor(failing(99, unknown)) as one,
        catalog({"team/m": remote(one.port)}, cool_after=1) as models,
    ):
        for _ in range(3):
            with pytest.raises(ModelNotFound):
                await answer(models)


async def test_a_request_that_needs_no_call_is_no_probe() -> None:
    shy = msgspec.convert({"takes": {"max_tokens": [1, 99]}}, type=Profile)
    async with vendor(plain) as one, catalog({"team/m": remote(one.port, over=shy)}) as models:
        health = models.health(models.find("team/m"))
        health.failed(time.monotonic() - 9, 9, models.upstream.settings)
        until_s = health.cool_until_s
        await answer(models, max_tokens=0)
        assert health.cool_until_s == until_s
        assert not one.sent


async def test_a_probe_opens_the_way_for_others_as_soon_as_its_reply_begins() -> None:
    async with vendor(endless) as one, catalog({"team/m": remote(one.port)}) as models:
        models.health(models.find("team/m")).failed(time.monotonic() - 9, 9, models.upstream.settings)
        async with aclosing(begun(models, stream=True, max_tokens=999).events()) as probing:
            await anext(probing)
            async with aclosing(begun(models, stream=True, max_tokens=999).events()) as other:
                await anext(other)
        assert len(one.sent) == 2


async def test_after_the_first_event_the_error_is_told() -> None:
    async def play(sent: Sent) -> AsyncIterator[bytes]:
        yield STREAM + frame(completion(choice(" one"), usage=None))
        await asyncio.sleep(0.05)
        raise CutOff

    async with (
        vendor(play) as bad,
        vendor(plain) as good,
        catalog({"team/a": remote(bad.port), "team/b": remote(good.port)}, BOTH) as models,
    ):
        with pytest.raises(UpstreamGarbled):
            await events_of(begun(models, "team/both", stream=True))
        assert not good.sent


async def test_a_deployment_that_cannot_take_the_request_is_passed_over() -> None:
    able = msgspec.convert({"takes": {"suffix": True}}, type=Profile)
    async with (
        vendor(plain) as plain_one,
        vendor(plain) as filler,
        catalog({"team/a": remote(plain_one.port), "team/b": remote(filler.port, over=able)}, BOTH) as models,
    ):
        assert (await answer(models, "team/both", suffix="end"))["model"] == "team/b"
        assert not plain_one.sent
        assert (await answer(models, "team/both"))["model"] == "team/a"


async def test_what_keeps_failing_is_left_in_peace_and_then_probed_by_one() -> None:
    async with (
        vendor(failing(3, json_reply(OVERLOADED, 500))) as flaky,
        vendor(plain) as good,
        catalog(
            {"team/a": remote(flaky.port), "team/b": remote(good.port)}, BOTH, retries=1, cool_after=1, cool_s=0.3
        ) as models,
    ):
        assert (await answer(models, "team/both"))["model"] == "team/b"
        calls = len(flaky.sent)
        assert (await answer(models, "team/both"))["model"] == "team/b"
        assert len(flaky.sent) == calls
        flaky.play = plain
        await asyncio.sleep(0.35)
        assert (await answer(models, "team/both"))["model"] == "team/a"


async def test_the_streams_usage_is_the_vendors() -> None:
    async def play(sent: Sent) -> AsyncIterator[bytes]:
        assert sent.body["stream_options"] == {"include_usage": True}
        yield (
            STREAM
            + frame(completion(choice("a"), usage=None))
            + frame(completion(choice("b", reason="stop"), usage=None))
        )
        yield frame(completion(usage=(5, 9))) + DONE + END

    async with vendor(play) as one, catalog({"team/m": remote(one.port)}) as models:
        work = begun(models, stream=True)
        await events_of(work)
        assert work.usage is not None
        assert (work.usage.prompt_tokens, work.usage.completion_tokens, work.usage.source) == (5, 9, "vendor")
        assert json.dumps(one.bodies[0])

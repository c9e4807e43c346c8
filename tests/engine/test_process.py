"""The engine in its own process, and a worker's link to it: over real sockets and real processes."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andthen.contract.errors import AndthenError, EngineRestarted, NoCapacity
from andthen.contract.events import Event, Finished, PromptScored, Text, Usage
from andthen.contract.request import CompletionRequest
from andthen.engine import process
from andthen.engine.client import EngineClient
from andthen.engine.frames import decode_answers, decode_question
from andthen.engine.messages import (
    CREDIT_TOKENS,
    Answer,
    Cancel,
    Credit,
    Detokenize,
    Emitted,
    Failed,
    Question,
    Submit,
    Tokenize,
)
from andthen.engine.settings import EngineSettings, ModelSettings
from andthen.frames import FrameCutter, frame
from andthen.observability.logs import LogSettings

MODEL = "local/count"
COMMAND = (sys.executable, "-m", "tests.server.scripted_engine")


def asked(prompt: str, **fields: Any) -> CompletionRequest:
    return CompletionRequest(model=MODEL, prompts=(prompt,), **fields)


class Home:
    """The socket and the engine processes behind it, as the supervisor keeps them."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "engine")
        self._folder = folder
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(self.path)
        self._listening.listen()
        self.process: subprocess.Popen[bytes]

    def start(self, settings: EngineSettings | None = None) -> subprocess.Popen[bytes]:
        boot = process.Boot(
            self._listening.fileno(), str(self._folder), settings or EngineSettings(), LogSettings(level="error")
        )
        self.process = process.spawn(boot, COMMAND)
        return self.process

    def stop(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(10)

    def close(self) -> None:
        self._listening.close()
        self.process.kill()
        self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    home.start()
    yield home
    home.close()


@pytest.fixture
async def engine(home: Home) -> AsyncIterator[EngineClient]:
    async with EngineClient(home.path) as client, asyncio.timeout(30):
        await client.wait_ready()
        yield client


async def jobs_open(engine: EngineClient) -> int:
    return (await engine.tokenize(MODEL, "jobs"))[0]


async def tokens_made(engine: EngineClient) -> int:
    return (await engine.tokenize(MODEL, "made"))[0]


async def everything(engine: EngineClient, request: CompletionRequest) -> list[Event]:
    events: list[Event] = []
    await engine.job("me", MODEL, request).run(events.extend)
    return events


class Running:
    """A job that runs in a task; leaving the block cancels it."""

    def __init__(self, engine: EngineClient, request: CompletionRequest) -> None:
        self.job = engine.job("me", MODEL, request)
        self._came: asyncio.Queue[list[Event] | None] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.job.run(self._came.put_nowait))
        self._task.add_done_callback(lambda _: self._came.put_nowait(None))
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def next(self) -> list[Event]:
        """Raises what the job raised, once its events are over."""
        events = await self._came.get()
        if events is None:
            await self._task
        return events or []

    async def rest(self) -> list[Event]:
        await asyncio.wait([self._task])
        events = [event for events in iter(self._came.get_nowait, None) if events for event in events]
        await self._task
        return events


async def test_a_job_gives_its_events_in_order_and_then_its_usage(engine: EngineClient) -> None:
    events = await everything(engine, asked("go", max_tokens=3))
    assert events == [
        PromptScored(0, 3),
        Text(0, 0, " 1", generated=1),
        Text(0, 0, " 2", generated=1),
        Text(0, 0, " 3", generated=1),
        Finished(0, 0, "length"),
        Usage(3, 3, 0),
    ]
    assert await jobs_open(engine) == 0


async def test_jobs_of_one_link_run_side_by_side(engine: EngineClient) -> None:
    requests = [asked("go", max_tokens=n) for n in range(1, 40)]
    results = await asyncio.gather(*(everything(engine, request) for request in requests))
    assert [events[-1] for events in results] == [Usage(3, n, 0) for n in range(1, 40)]


async def test_a_refusal_is_raised_as_it_was_meant(engine: EngineClient) -> None:
    with pytest.raises(NoCapacity, match="256 requests are waiting") as refused:
        await everything(engine, asked("refuse"))
    assert refused.value.retry_after_s == 7


async def test_an_error_comes_after_the_events_before_it(engine: EngineClient) -> None:
    events: list[Event] = []
    with pytest.raises(AndthenError, match="the engine broke"):
        await engine.job("me", MODEL, asked("break")).run(events.extend)
    assert sum(isinstance(event, Text) for event in events) == 2


@pytest.mark.parametrize("prompt", ["slow", "hold"])
async def test_a_cancelled_job_ends_and_its_usage_is_known(engine: EngineClient, prompt: str) -> None:
    async with Running(engine, asked(prompt, max_tokens=1000)) as running:
        if prompt == "slow":
            await running.next()
            await running.next()
        assert await jobs_open(engine) == 1
    assert running.job.usage is not None
    assert running.job.usage.completion_tokens < 1000
    assert await jobs_open(engine) == 0


async def test_a_receiver_that_fails_ends_the_job(engine: EngineClient) -> None:
    def fail(events: list[Event]) -> None:
        raise ValueError("the receiver broke")

    job = engine.job("me", MODEL, asked("slow", max_tokens=1000))
    with pytest.raises(ValueError, match="the receiver broke"):
        await job.run(fail)
    assert job.usage is not None
    assert job.usage.completion_tokens < 1000
    assert await jobs_open(engine) == 0


async def test_a_paused_job_stops_at_its_credit_and_then_goes_on(engine: EngineClient) -> None:
    async with Running(engine, asked("go", max_tokens=CREDIT_TOKENS + 500)) as running:
        running.job.pause()
        while await tokens_made(engine) < CREDIT_TOKENS:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert await tokens_made(engine) == CREDIT_TOKENS
        running.job.resume()
        numbers = [event.text for event in await running.rest() if isinstance(event, Text)]
    assert numbers == [f" {number}" for number in range(1, CREDIT_TOKENS + 501)]


async def test_text_and_ids(engine: EngineClient) -> None:
    assert await engine.tokenize(MODEL, "ab") == [1, 97, 98]
    assert await engine.tokenize(MODEL, "ab", add_special=False) == [97, 98]
    assert await engine.detokenize(MODEL, (97, 98)) == "ab"
    assert [model.name for model in await engine.describe()] == [MODEL]
    assert list(engine.models) == [MODEL]


async def test_a_killed_engine_ends_its_jobs_and_the_next_one_serves(home: Home, engine: EngineClient) -> None:
    async with Running(engine, asked("slow", max_tokens=1000)) as running:
        await running.next()
        home.process.kill()
        home.process.wait()
        with pytest.raises(EngineRestarted):
            await running.rest()
    with pytest.raises(EngineRestarted) as refused:
        await everything(engine, asked("go"))
    assert refused.value.retry_after_s == 1
    with pytest.raises(EngineRestarted):
        await engine.tokenize(MODEL, "a")
    assert not engine.ready
    assert list(engine.models) == [MODEL], "what was configured stays known"
    assert home.process.stdin is not None
    home.process.stdin.close()
    home.start()
    await engine.wait_ready()
    assert len(await everything(engine, asked("go", max_tokens=1))) == 4


async def test_a_worker_that_goes_away_takes_its_work_along(home: Home, engine: EngineClient) -> None:
    async with EngineClient(home.path) as other:
        await other.wait_ready()
        tasks = [asyncio.create_task(everything(other, asked(prompt, max_tokens=1000))) for prompt in ("hold", "slow")]
        while await jobs_open(engine) < 2:
            await asyncio.sleep(0.01)
    for task in tasks:
        with pytest.raises(EngineRestarted):
            await task
    while await jobs_open(engine):
        await asyncio.sleep(0.01)


async def test_a_garbled_link_is_cut_and_harms_no_other(home: Home, engine: EngineClient) -> None:
    reader, writer = await asyncio.open_unix_connection(home.path)
    writer.write(b"\x03\x00\x00\x00abc")
    assert await reader.read() == b""
    writer.close()
    assert await jobs_open(engine) == 0


async def test_signals_to_the_group_are_left_to_the_supervisor(home: Home, engine: EngineClient) -> None:
    os.kill(home.process.pid, signal.SIGINT)
    os.kill(home.process.pid, signal.SIGTERM)
    assert len(await everything(engine, asked("go", max_tokens=1))) == 4
    assert await asyncio.to_thread(home.stop) == 0


def test_an_engine_outlives_no_supervisor(tmp_path: Path) -> None:
    script = (
        "import os, sys, pathlib\n"
        "from tests.engine.test_process import Home\n"
        "print(Home(pathlib.Path(sys.argv[1])).start().pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        engine = os.pidfd_open(pid)
        supervisor.kill()
    try:
        assert select.select([engine], [], [], 10)[0], "the engine still runs"
    finally:
        os.close(engine)


def test_an_engine_that_can_not_start_says_so_by_its_code(tmp_path: Path) -> None:
    home = Home(tmp_path)
    try:
        home.start(EngineSettings(models={"local/broken": ModelSettings(path="x")}))
        assert home.process.wait(10) == process.EXIT_CANNOT_START
    finally:
        home.close()


QUESTIONS: list[Question] = [
    Submit(1, "me", MODEL, asked("é" * 300, logit_bias={5: -1.5}, stop=("x",), seed=2**63 - 1)),
    Submit(2, "me", MODEL, CompletionRequest(model=MODEL, prompts=((1, 2), (3,)))),
    Cancel(3),
    Credit(4, 5),
    Tokenize(6, MODEL, "text", False, True),
    Detokenize(7, MODEL, (1, 2, 3)),
]


@given(st.lists(st.integers(1, 40), min_size=1))
def test_any_cut_of_the_bytes_gives_the_same_frames(cuts: list[int]) -> None:
    answers: list[Answer] = [
        Emitted(1, [PromptScored(0, 3), Text(0, 1, "x"), Usage(1, 2)]),
        Failed(2, "no_capacity", "m"),
    ]
    data = b"".join([*map(frame, QUESTIONS), frame(answers), frame([])])
    cutter = FrameCutter()
    bodies: list[bytes] = []
    while data:
        for size in cuts:
            bodies += cutter.feed(data[:size])
            data = data[size:]
    assert [decode_question(body) for body in bodies[:-2]] == QUESTIONS
    assert decode_answers(bodies[-2]) == answers
    assert decode_answers(bodies[-1]) == []

"""A completion by a vendor without a server: routed and executed in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager

import uvloop

from andthen.cli.rows import every_row
from andthen.config import Config
from andthen.contract.events import Event
from andthen.contract.request import CompletionRequest
from andthen.gateway.catalog import Catalog
from andthen.gateway.execution import Execution
from andthen.http.client import HttpClient
from andthen.plan.abilities import Abilities

_OWNER = "terminal"
_AHEAD = 16
"""Batches of events that wait for a slow reader before the calls are paused."""


class _Catalog(Catalog):
    """Reads the local models' rows only to suggest a model in a refusal: that takes a while."""

    def __init__(self, config: Config, client: HttpClient) -> None:
        super().__init__(dict, config.upstream, client, config.limits)
        self._config = config

    def abilities(self) -> Iterator[Abilities]:
        yield from every_row(self._config)


async def events_of(execution: Execution) -> AsyncGenerator[list[Event]]:
    """Executes a routed request and yields its events as they come. Closing it cancels the work and waits until it has
    ended. Raises what `Execution.execute` raises."""
    queue: asyncio.Queue[list[Event] | None] = asyncio.Queue()

    def receive(events: list[Event]) -> None:
        queue.put_nowait(events)
        if queue.qsize() >= _AHEAD:
            execution.pause()

    async def execute() -> None:
        try:
            await execution.execute(receive)
        finally:
            queue.put_nowait(None)

    task = asyncio.create_task(execute())
    try:
        while (events := await queue.get()) is not None:
            if queue.empty():
                execution.resume()
            yield events
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
    await task


@contextmanager
def executing(request: CompletionRequest, config: Config) -> Iterator[tuple[Execution, Iterator[Event]]]:
    """A request and its events; leaving the block ends its calls. Raises `AndthenError`, also while it is read."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stack = AsyncExitStack()
        try:
            client = runner.run(stack.enter_async_context(HttpClient()))
            execution = Execution()
            execution.route(_OWNER, request, _Catalog(config, client))
            yield execution, _each(runner, runner.run(stack.enter_async_context(aclosing(events_of(execution)))))
        finally:
            runner.run(stack.aclose())


def _each(runner: asyncio.Runner, batches: AsyncGenerator[list[Event]]) -> Iterator[Event]:
    async def following() -> list[Event] | None:
        return await anext(batches, None)

    while (events := runner.run(following())) is not None:
        yield from events

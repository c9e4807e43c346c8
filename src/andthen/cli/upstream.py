"""Asking a vendor from a command that needs no server: the line of a request, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager

import uvloop

from andthen.catalog import Catalog
from andthen.cli.rows import every_row
from andthen.complete import Work, prepare
from andthen.config import Config
from andthen.contract.events import Event
from andthen.contract.request import CompletionRequest
from andthen.http.client import HttpClient
from andthen.plan.abilities import Abilities

_OWNER = "terminal"


class _Catalog(Catalog):
    """Knows the local models' rows only for the remedy in a refusal: reading them takes a while."""

    def __init__(self, config: Config, client: HttpClient) -> None:
        super().__init__(dict, config.upstream, client, config.limits)
        self._config = config

    def abilities(self) -> Iterator[Abilities]:
        yield from every_row(self._config)


@contextmanager
def asking(request: CompletionRequest, config: Config) -> Iterator[tuple[Work, Iterator[Event]]]:
    """A request under way and its events; leaving the block ends its calls. Raises `AndthenError`, also while read."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stack = AsyncExitStack()
        try:
            client = runner.run(stack.enter_async_context(HttpClient()))
            work = prepare(_OWNER, request, _Catalog(config, client))
            yield work, _each(runner, runner.run(stack.enter_async_context(aclosing(work.events()))))
        finally:
            runner.run(stack.aclose())


def _each(runner: asyncio.Runner, batches: AsyncGenerator[list[Event]]) -> Iterator[Event]:
    async def following() -> list[Event] | None:
        return await anext(batches, None)

    while (events := runner.run(following())) is not None:
        yield from events

"""Work that would keep the event loop from others for too long, done in a thread.

One thread for the process: however many callers and vendors send what is large, one of it is worked on at a time, so
that its memory does not add up. The interpreter lets the event loop run in between, every few milliseconds, except
while a single call into C lasts.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

LARGE_BYTES = 2**17
"""JSON from this size on is worth the way to the thread and back. Below, parsing takes some 10 ms at worst."""
LARGE_EVENTS = 4096
"""The same for tokens and events that are to be worked on one by one."""

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_thread = ThreadPoolExecutor(1, "offload")


async def offload(
    work: Callable[_Arguments, _Result], *arguments: _Arguments.args, **named: _Arguments.kwargs
) -> _Result:
    """What `work` returns or raises. A cancellation waits until work that has begun has ended, for it may change what
    others go on with."""
    job = _thread.submit(work, *arguments, **named)
    done = asyncio.wrap_future(job)
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        if not job.cancel():
            while not done.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait((done,))
            done.exception()  # whatever it was, nobody waits for it
        raise

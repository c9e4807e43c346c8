"""A process of ours that another of ours started. Knows nothing of what it does.

Its orders come on standard input: one line of JSON says what to do, and the end of the input says to stop. That end
comes also when the parent dies, however it dies, so no child outlives it. Terminals and service managers signal whole
groups of processes; a child has a group of its own and leaves those signals to its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec
from msgspec import Struct

_Boot = TypeVar("_Boot", bound=Struct)


def spawn(
    command: Sequence[str], boot: Struct, *, descriptors: Sequence[int], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Starts a child. It is told to stop by closing the returned process's `stdin`.

    Args:
        command: runs a program that calls `read_boot` and `on_told_to_stop`.
        boot: what it is told.
        descriptors: open files that it inherits under the same numbers.
        environment: what is set in its environment beyond our own.
    """
    process = subprocess.Popen(  # noqa: S603 - our own command
        command,
        stdin=subprocess.PIPE,
        pass_fds=descriptors,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    if process.stdin:
        with contextlib.suppress(BrokenPipeError):  # it died already: its exit code tells
            process.stdin.write(msgspec.json.encode(boot) + b"\n")
            process.stdin.flush()
    return process


def read_boot(kind: type[_Boot]) -> _Boot:
    """In the child: what it was told. Ends the process where the parent is gone already."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(sys.stdin.fileno(), 1)
        if not byte:
            sys.exit(0)
        line += byte
    return msgspec.json.decode(line, type=kind)


def on_told_to_stop(told: Callable[[], object]) -> None:
    """In the child, within its event loop: calls `told` when standard input has ended."""
    loop = asyncio.get_running_loop()
    descriptor = sys.stdin.fileno()

    def readable() -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)
            told()

    loop.add_reader(descriptor, readable)

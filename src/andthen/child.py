"""A process of ours that another of ours started. Knows nothing of what it does.

Its orders come on standard input: one line of JSON says what to do, and the end of the input says to stop. That end
comes also when the parent dies, however it dies, so no child outlives it. Terminals and service managers signal whole
groups of processes; a child has a group of its own and leaves those signals to its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec
from msgspec import Struct

_Boot = TypeVar("_Boot", bound=Struct)

_NEEDED = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_\w+|TZ|TZDIR|TMPDIR|VIRTUAL_ENV|PYTHON_?[A-Z]+"
    r"|(LD|DYLD)_(LIBRARY_PATH|PRELOAD|INSERT_LIBRARIES)|MALLOC_\w+|GLIBC_TUNABLES"
)
"""Names of variables that any program in Python may need."""


def spawn(
    command: Sequence[str],
    boot: Struct,
    *,
    descriptors: Sequence[int],
    inherited: re.Pattern[str],
    environment: Mapping[str, str],
) -> subprocess.Popen[bytes]:
    """Starts a child. It is told to stop by closing the returned process's `stdin`.

    Args:
        command: runs a program that calls `read_boot` and `on_told_to_stop`.
        boot: what it is told.
        descriptors: open files that it inherits under the same numbers.
        inherited: names of variables that it gets from our environment, beyond what every program needs. It gets no
            others: ours may hold the keys of vendors.
        environment: what is set in its environment beyond those.
    """
    passed_on = {
        name: value for name, value in os.environ.items() if _NEEDED.fullmatch(name) or inherited.fullmatch(name)
    }
    process = subprocess.Popen(  # noqa: S603 - our own command
        command,
        stdin=subprocess.PIPE,
        pass_fds=descriptors,
        env={**passed_on, **environment},
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

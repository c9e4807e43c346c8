"""Whether the engine's process still works: its threads write into memory that the supervisor maps too and looks at.

Memory and not a message, for a message needs the very threads that are watched. A decode may take minutes on a slow
machine; so llama.cpp itself writes there, each time that it has computed a node of its graph.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
import threading
from collections.abc import Callable
from typing import Final

_PAGE_BYTES = mmap.PAGESIZE
_LOOP, _SOCKET = 0, 64
"""Where the threads' counters stand; 64 bytes each, a cache line."""
_NODES = 128
"""Where the semaphore stands that counts the nodes; it is the loop's thread that computes."""
_END = 192
_LOOKS = 8
"""So often is looked within the time that a silence may last."""

Address = int


_libc = ctypes.CDLL(None)
_libc.sem_init.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint]


class Own:
    """What this process shows; nobody sees it before `join`."""

    def __init__(self) -> None:
        self.join(-1)

    def join(self, descriptor: int) -> None:
        """From now on it is shown to whoever opened the `Pulse`. To be called before any model is loaded."""
        memory = mmap.mmap(descriptor, _PAGE_BYTES)
        self._loop = ctypes.c_uint64.from_buffer(memory, _LOOP)
        self._socket = ctypes.c_uint64.from_buffer(memory, _SOCKET)
        self._nodes: Address = ctypes.addressof(ctypes.c_char.from_buffer(memory, _NODES))
        self._memory = memory

    def beat(self) -> None:
        """The engine's thread is between two steps."""
        _libc.sem_init(self._nodes, 1, 0)
        self._loop.value += 1

    def beat_at_socket(self) -> None:
        """The thread of the links works."""
        self._socket.value += 1

    def on_node(self) -> tuple[Address, Address] | None:
        """A C function and its argument, to be called for each node that is computed, as llama.cpp calls its abort
        callback (`bool (*)(void *)`, false to go on). It is `sem_post`: it counts in the memory, returns 0 and needs no
        GIL, for which a function in Python would have to wait. `beat` begins the count anew, so that it never reaches
        its end.

        None on a system without such semaphores (macOS): a decode then shows no life before its end."""
        address = ctypes.cast(_libc.sem_post, ctypes.c_void_p).value
        if address is None or _libc.sem_init(self._nodes, 1, 0) != 0:
            return None
        return address, self._nodes


own = Own()


def _nameless_file() -> int:
    """The descriptor of a file that nothing else opens."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("andthen-pulse")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Pulse:
    """The memory in which one engine process after the other shows its life."""

    def __init__(self) -> None:
        self.descriptor: Final = _nameless_file()
        os.truncate(self.descriptor, _PAGE_BYTES)
        self._memory = mmap.mmap(self.descriptor, _PAGE_BYTES)

    def clear(self) -> None:
        """The process has ended."""
        self._memory[:_END] = bytes(_END)

    def signs(self) -> tuple[bytes, bytes]:
        """Of the loop's thread and of the links'. Who has not begun to work shows zeros; each sign of life changes
        them."""
        whole = self._memory[:_END]
        return whole[_LOOP:_SOCKET] + whole[_NODES:], whole[_SOCKET:_NODES]

    def close(self) -> None:
        self._memory.close()
        os.close(self.descriptor)


class Watch(threading.Thread):
    """Looks at a pulse. A thread of its own, so that no busy loop delays it.

    Args:
        pulse: shown by the process that is watched.
        silence_s: after so long without a sign, from a thread that had shown one, the process hangs.
        on_hang: called with how long it was silent; then the process ends, and `Pulse.clear` is to be called.
    """

    def __init__(self, pulse: Pulse, silence_s: float, on_hang: Callable[[float], None]) -> None:
        super().__init__(name="watch-engine", daemon=True)
        self._pulse = pulse
        self._silence_s = silence_s
        self._on_hang = on_hang
        self._told = threading.Event()

    def run(self) -> None:
        """Counts its own looks and not the time: a machine that slept has not shown that its engine hangs."""
        looks = [0, 0]
        seen: tuple[bytes, bytes] = (b"", b"")
        while not self._told.wait(self._silence_s / _LOOKS):
            now = self._pulse.signs()
            for place, sign in enumerate(now):
                looks[place] = looks[place] + 1 if sign == seen[place] and any(sign) else 0
            seen = now
            if max(looks) >= _LOOKS:
                looks = [0, 0]
                self._on_hang(self._silence_s)

    def stop(self) -> None:
        """Also where it was never started."""
        self._told.set()
        if self.is_alive():
            self.join()

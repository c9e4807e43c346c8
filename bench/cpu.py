"""What processes spend. Linux only."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

_LEAST_S = 0.02
"""What is timed at once, so that the clock's own time is nothing."""
_REPEATS = 9


def process_cpu_s(pid: int) -> float:
    """Of a process with all its threads, those that ended too; to the nanosecond."""
    return time.clock_gettime(~pid << 3 | 2)  # the clock's number as clock_getcpuclockid(3) makes it


def family(pid: int) -> list[int]:
    """A process and all its living descendants."""
    by_thread = [task.joinpath("children").read_text().split() for task in Path(f"/proc/{pid}/task").iterdir()]
    return [pid, *(one for children in by_thread for child in children for one in family(int(child)))]


def family_cpu_s(pid: int) -> float:
    return sum(map(process_cpu_s, family(pid)))


def resident_bytes(pid: int) -> int:
    """The memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def time_us(function: Callable[[], object]) -> float:
    """Median CPU time of a call."""
    began_s = time.thread_time()
    function()
    calls = 1 + int(_LEAST_S / max(1e-6, time.thread_time() - began_s))
    times_s = []
    for _ in range(_REPEATS):
        began_s = time.thread_time()
        for _ in range(calls):
            function()
        times_s.append((time.thread_time() - began_s) / calls)
    return statistics.median(times_s) * 1e6


def machine() -> str:
    """Its processor, cores, memory and system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), os.uname().machine)
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{name}, {os.cpu_count()} cores, {memory_gib:.0f} GiB, {os.uname().sysname} {os.uname().machine}"

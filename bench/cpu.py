"""What processes spend. Linux only."""

from __future__ import annotations

import os
import time
from pathlib import Path


def process_cpu_s(pid: int) -> float:
    """Of a process with all its threads, those that ended too; to the nanosecond."""
    return time.clock_gettime(~pid << 3 | 2)  # the clock's number as clock_getcpuclockid(3) makes it


def family(pid: int) -> list[int]:
    """A process and all its living descendants."""
    by_thread = [task.joinpath("children").read_text().split() for task in Path(f"/proc/{pid}/task").iterdir()]
    return [pid, *(one for children in by_thread for child in children for one in family(int(child)))]


def family_cpu_s(pid: int) -> float:
    return sum(map(process_cpu_s, family(pid)))


def machine() -> str:
    """Its processor, cores, memory and system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), os.uname().machine)
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{name}, {os.cpu_count()} cores, {memory_gib:.0f} GiB, {os.uname().sysname} {os.uname().machine}"

"""Where metrics are: one file of numbers for each process, mapped into its memory. Any process can add up all files.

To count is to add to a number in memory: no lock, no system call. A killed process leaves its numbers in the file, and
a process that takes its place goes on with them, so that counters never go back.

A file holds, in this order: a flag (8 bytes) that says whether its process is alive, the length of the index (8 bytes),
the index (one JSON array for each series: the metric's name and its label values), and the values (64-bit floats, those
of each series in the order of the index). It has its whole size from the start: a process that writes into a hole of a
mapped file while the disk is full is killed by SIGBUS.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
import structlog
from msgspec import Struct

FILE_BYTES = 2 << 20
_INDEX_AT = 16
_VALUES_AT = 512 << 10
_VALUES = (FILE_BYTES - _VALUES_AT) // 8
_HEADER = struct.Struct("<QQ")
_SUFFIX = ".metrics"

_LOG = structlog.get_logger("andthen.metrics")

Key = tuple[str, tuple[str, ...]]
"""A metric's name and its label values."""


class Metric(Struct, frozen=True):
    """A metric before any process measures it.

    Attributes:
        buckets_s: upper bounds of a histogram's buckets, except for the last one, which is infinite.
        over_processes: how the gauges of several processes become one.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()
    buckets_s: tuple[float, ...] = ()
    over_processes: Literal["sum", "min"] = "sum"

    @property
    def size(self) -> int:
        """How many values a series has; a histogram's are the counts of its buckets, not cumulative, and their sum."""
        return len(self.buckets_s) + 2 if self.kind == "histogram" else 1


class Series:
    """A counter or a gauge with its label values."""

    __slots__ = ("_at", "_values")

    def __init__(self, values: memoryview[float], at: int) -> None:
        self._values = values
        self._at = at

    def inc(self, amount: float = 1.0) -> None:
        self._values[self._at] += amount

    def dec(self, amount: float = 1.0) -> None:
        self._values[self._at] -= amount

    def set(self, value: float) -> None:
        self._values[self._at] = value


class Histogram:
    """A histogram with its label values."""

    __slots__ = ("_at", "_bounds", "_values")

    def __init__(self, values: memoryview[float], at: int, bounds: tuple[float, ...]) -> None:
        self._values = values
        self._at = at
        self._bounds = bounds

    def observe(self, value: float) -> None:
        values, at = self._values, self._at
        values[at + bisect_left(self._bounds, value)] += 1.0
        values[at + len(self._bounds) + 1] += value


class MetricStore:
    """One process's values. A predecessor's counters go on, its gauges start at 0.

    Args:
        path: the file; None keeps the values in this process's memory alone.
        metrics: all metrics there are, by name.
    """

    def __init__(self, path: Path | None, metrics: dict[str, Metric]) -> None:
        self._memory = _map(path) if path is not None else memoryview(bytearray(FILE_BYTES))
        self._values: memoryview[float] = self._memory[_VALUES_AT:].cast("d")
        self._series: dict[Key, int] = {}
        self._used = 0
        self._is_full = False
        self._index_bytes: int = _HEADER.unpack_from(self._memory)[1]
        for key in _read_index(self._memory):
            metric = metrics[key[0]]
            self._series[key] = self._used
            if metric.kind == "gauge":
                self._values[self._used] = 0.0
            self._used += metric.size
        self._write_header()

    @classmethod
    def shared(cls, run_dir: Path, place: str, metrics: dict[str, Metric]) -> MetricStore:
        """The file of one process of a server.

        Args:
            run_dir: the folder that all processes of this server share.
            place: the process's name, unique among the living.
        """
        return cls(run_dir / f"{place}{_SUFFIX}", metrics)

    def series(self, metric: Metric, *labels: str) -> Series:
        """The counter or gauge with these label values."""
        return Series(*self._place(metric, labels))

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        values, at = self._place(metric, labels)
        return Histogram(values, at, metric.buckets_s)

    def _place(self, metric: Metric, labels: tuple[str, ...]) -> tuple[memoryview[float], int]:
        key = (metric.name, labels)
        at = self._series.get(key)
        if at is not None:
            return self._values, at
        line = msgspec.json.encode(key) + b"\n"
        end = _INDEX_AT + self._index_bytes + len(line)
        if end > _VALUES_AT or self._used + metric.size > _VALUES:
            if not self._is_full:
                self._is_full = True
                _LOG.warning("metrics_full", metric=metric.name)
            return memoryview(bytearray(8 * metric.size)).cast("d"), 0
        at = self._series[key] = self._used
        self._used += metric.size
        self._memory[end - len(line) : end] = line
        self._index_bytes += len(line)
        self._write_header()  # last: readers see whole lines only
        return self._values, at

    def read(self, metrics: dict[str, Metric]) -> Iterator[tuple[Key, tuple[float, ...]]]:
        """All series of this process."""
        return _read(self._memory, metrics)

    def _write_header(self) -> None:
        _HEADER.pack_into(self._memory, 0, 1, self._index_bytes)


def mark_dead(run_dir: Path, place: str) -> None:
    """The process died: its gauges no longer count. Its counters do. Raises OSError."""
    with contextlib.suppress(FileNotFoundError), (run_dir / f"{place}{_SUFFIX}").open("r+b") as file:
        _, index_bytes = _HEADER.unpack(file.read(_HEADER.size))
        file.seek(0)
        file.write(_HEADER.pack(0, index_bytes))


def read_all(run_dir: Path, metrics: dict[str, Metric]) -> Iterator[tuple[Key, tuple[float, ...]]]:
    """The series of all processes, except for the gauges of dead ones."""
    for path in sorted(run_dir.glob(f"*{_SUFFIX}")):
        yield from _read(memoryview(path.read_bytes()), metrics)


def _read(memory: memoryview, metrics: dict[str, Metric]) -> Iterator[tuple[Key, tuple[float, ...]]]:
    is_alive, _ = _HEADER.unpack_from(memory)
    values: memoryview[float] = memory[_VALUES_AT:].cast("d")
    at = 0
    for key in _read_index(memory):
        metric = metrics[key[0]]
        if is_alive or metric.kind != "gauge":
            yield key, tuple(values[at : at + metric.size])
        at += metric.size


def _read_index(memory: memoryview) -> list[Key]:
    _, index_bytes = _HEADER.unpack_from(memory)
    lines = bytes(memory[_INDEX_AT : _INDEX_AT + index_bytes]).splitlines()
    return [msgspec.json.decode(line, type=Key) for line in lines]


def _map(path: Path) -> memoryview:
    if not path.exists():
        part = path.with_suffix(".part")
        part.write_bytes(_HEADER.pack(1, 0) + bytes(FILE_BYTES - _HEADER.size))
        part.rename(path)
    with path.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), FILE_BYTES))

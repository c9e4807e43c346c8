"""The metrics of several processes on one page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from andthen.metrics import ROWS, EngineMetrics, ServerMetrics, SupervisorMetrics, exposition, metrics_markdown

PROCESS = """
import sys, pathlib
from prometheus_client import CollectorRegistry
from andthen import metrics
run_dir, place = pathlib.Path(sys.argv[1]), sys.argv[2]
metrics.join(run_dir, place)
registry = CollectorRegistry()
measured = metrics.ServerMetrics(registry)
measured.requests.labels("completions", "200").inc()
measured.open_requests.inc(5)
if place == "worker-1":
    metrics.forget(run_dir, "worker-0")
print(metrics.exposition(registry).decode())
"""


def measure(run_dir: Path, place: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, str(run_dir), place], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_any_process_tells_the_sum_of_all(tmp_path: Path) -> None:
    page = measure(tmp_path, "worker-0")
    assert 'andthen_requests_total{route="completions",status="200"} 1.0' in page
    page = measure(tmp_path, "worker-1")
    assert 'andthen_requests_total{route="completions",status="200"} 2.0' in page
    assert "andthen_open_requests 5.0" in page, "the dead one has none open"


def test_a_process_that_is_started_again_goes_on_counting_and_leaves_no_file_behind(tmp_path: Path) -> None:
    measure(tmp_path, "worker-0")
    files = sorted(tmp_path.iterdir())
    page = measure(tmp_path, "worker-0")
    assert 'andthen_requests_total{route="completions",status="200"} 2.0' in page
    assert "andthen_open_requests 5.0" in page
    assert sorted(tmp_path.iterdir()) == files


def test_a_file_has_all_its_room_before_a_disk_can_fill_up(tmp_path: Path) -> None:
    measure(tmp_path, "worker-0")
    for file in tmp_path.iterdir():
        assert file.stat().st_blocks * 512 >= file.stat().st_size == 1 << 20


def test_the_engine_tells_counts_and_the_page_has_what_was_added() -> None:
    registry = CollectorRegistry()
    measured = EngineMetrics(registry)
    measured.update({"steps": 5, "running": 2, "cells_total": 100})
    measured.update({"steps": 7, "running": 1, "unknown": 1})
    page = exposition(registry).decode()
    assert "andthen_engine_steps_total 7.0" in page
    assert "andthen_engine_running 1.0" in page
    assert "andthen_engine_cells 0.0" in page


def test_every_metric_is_in_the_table_and_every_row_is_measured() -> None:
    registry = CollectorRegistry()
    ServerMetrics(registry)
    EngineMetrics(registry)
    SupervisorMetrics(registry)
    measured = {(family.name, family.type) for family in text_string_to_metric_families(exposition(registry).decode())}
    assert measured >= {(row.name.removesuffix("_total"), row.kind) for row in ROWS}
    assert len(metrics_markdown().splitlines()) == len(ROWS) + 2

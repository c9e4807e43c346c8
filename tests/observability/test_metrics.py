"""The metrics of several processes on one page."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from andthen.observability.metric_store import FILE_BYTES
from andthen.observability.metrics import (
    METRICS,
    EngineMetrics,
    ServerMetrics,
    SupervisorMetrics,
    exposition,
    metrics_markdown,
    private_store,
)

PROCESS = """
import sys, pathlib
import os, signal
from andthen.observability import metrics
run_dir, place = pathlib.Path(sys.argv[1]), sys.argv[2]
measured = metrics.ServerMetrics(metrics.shared_store(run_dir, place))
measured.count_request("completions", 200, 0.02)
measured.open_requests.inc(5)
measured.set_ledger_healthy(place != "worker-1")
if place == "worker-1":
    metrics.process_died(run_dir, "worker-0")
print(metrics.exposition(run_dir).decode(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def measure(run_dir: Path, place: str) -> str:
    command = [sys.executable, "-c", PROCESS, str(run_dir), place]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout


def test_any_process_tells_the_sum_of_all(tmp_path: Path) -> None:
    page = measure(tmp_path, "worker-0")
    assert 'andthen_requests_total{route="completions",status="200"} 1.0' in page
    page = measure(tmp_path, "worker-1")
    assert 'andthen_requests_total{route="completions",status="200"} 2.0' in page
    assert "andthen_open_requests 5.0" in page, "the dead one has none open"
    assert "andthen_ledger_healthy 0.0" in page, "the least of all"
    assert 'andthen_request_seconds_bucket{le="0.01",route="completions"} 0.0' in page
    assert 'andthen_request_seconds_bucket{le="0.025",route="completions"} 2.0' in page
    assert 'andthen_request_seconds_count{route="completions"} 2.0' in page
    assert 'andthen_request_seconds_sum{route="completions"} 0.04' in page


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
        assert file.stat().st_blocks * 512 >= file.stat().st_size == FILE_BYTES


def test_the_engine_tells_counts_and_the_page_has_what_was_added() -> None:
    store = private_store()
    measured = EngineMetrics(store)
    measured.update({"steps": 5, "running": 2, "cells_total": 100})
    measured.update({"steps": 7, "running": 1, "unknown": 1})
    page = exposition(store).decode()
    assert "andthen_engine_steps_total 7.0" in page
    assert "andthen_engine_running 1.0" in page
    assert "andthen_engine_cells 0.0" in page


def test_every_metric_is_in_the_table_and_every_metric_is_measured() -> None:
    store = private_store()
    ServerMetrics(store)
    EngineMetrics(store)
    SupervisorMetrics(store)
    measured = {(family.name, family.type) for family in text_string_to_metric_families(exposition(store).decode())}
    assert measured >= {(metric.name.removesuffix("_total"), metric.kind) for metric in METRICS}
    assert len(metrics_markdown().splitlines()) == len(METRICS) + 2

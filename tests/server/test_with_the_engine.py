"""The server with the real engine behind it, when one of the two sides ends."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.serving import LOG, Server, serving

WAIT_S = 20


def until(true: Callable[[], bool], why: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, f"not so after {WAIT_S} s: {why}"
        time.sleep(0.05)


def measured(server: Server, name: str) -> float:
    (value,) = re.findall(rf"^{name} (\S+)$", server.get("/metrics").decode(), re.MULTILINE)
    return float(value)


def ready(server: Server) -> bool:
    try:
        return bool(server.get("/readyz"))
    except urllib.error.HTTPError:
        return False


def engine_of(server: Server) -> int:
    """The process id of the first engine."""
    log = (server.home / LOG).read_text()
    return int(next(json.loads(line)["pid"] for line in log.splitlines() if '"process_started"' in line))


@contextmanager
def streaming(server: Server, **fields: object) -> Iterator[http.client.HTTPResponse]:
    """A stream of which the first bytes have come."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=WAIT_S)
    body = {"model": server.model, "prompt": "Once upon a time", "stream": True, "ignore_eos": True} | fields
    connection.request("POST", "/v4/beta/completions", json.dumps(body), {"x-api-key": server.key})
    with connection.getresponse() as reply:
        assert reply.status == 200
        assert reply.read(6) == b"data: "
        yield reply
    connection.close()


@pytest.mark.parametrize("told", [signal.SIGKILL, signal.SIGSTOP])
def test_an_engine_that_ends_or_hangs_ends_streams_honestly_and_the_next_one_gives_the_same_text(
    tmp_path: Path, told: signal.Signals
) -> None:
    with serving(tmp_path, settings="[engine]\nhang_s = 3.0\n") as server:

        def text() -> str:
            return str(server.complete(seed=7, max_tokens=24)["choices"][0]["text"])

        before = text()
        with streaming(server, max_tokens=900) as reply:
            os.kill(engine_of(server), told)
            with pytest.raises(http.client.IncompleteRead) as cut:
                reply.read()
        assert b'"code":"engine_restarted"' in cut.value.partial
        until(lambda: ready(server), "the engine is back")
        assert text() == before


def test_clients_that_leave_in_numbers_leave_nothing_running(server: Server) -> None:
    def leave(number: int) -> None:
        with streaming(server, max_tokens=900, seed=number):
            pass

    before = measured(server, "andthen_engine_prompt_tokens_total")
    leaving = [threading.Thread(target=leave, args=(number,)) for number in range(24)]
    for thread in leaving:
        thread.start()
    for thread in leaving:
        thread.join()
    until(lambda: measured(server, "andthen_engine_prompt_tokens_total") > before, "the engine's numbers are new")
    until(lambda: measured(server, "andthen_engine_running") == 0, "nothing runs")
    assert measured(server, "andthen_engine_waiting") == 0
    assert measured(server, "andthen_open_requests") == 1, "that for the metrics"


def post(server: Server, path: str, body: bytes) -> tuple[int, str]:
    """The status and the code of the error."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=WAIT_S)
    connection.request("POST", path, body, {"x-api-key": server.key, "content-type": "application/json"})
    with connection.getresponse() as reply:
        told = json.load(reply)
    connection.close()
    return reply.status, str(told["error"]["code"]) if "error" in told else ""


def peak_bytes(pid: int) -> int:
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return 1024 * int(kilobytes)


def test_what_the_tokenizer_can_not_take_costs_nobody_anything(server: Server) -> None:
    text = {letters: json.dumps({"prompt": "ab " * (letters // 3)}).encode() for letters in (9_000, 60_000, 15_000_000)}
    ids = {count: json.dumps({"tokens": [500] * count}).encode() for count in (1024, 1025, 4_000_000)}
    assert post(server, "/tokenize", text[9_000]) == post(server, "/detokenize", ids[1024]) == (200, "")
    assert post(server, "/tokenize", text[60_000]) == (400, "context_length_exceeded")
    assert post(server, "/detokenize", ids[1025]) == (400, "context_length_exceeded")
    server.complete(max_tokens=1)  # the engine's first step takes memory that it keeps
    engine = engine_of(server)
    before = peak_bytes(engine)
    with ThreadPoolExecutor(9) as pool:
        large = [pool.submit(post, server, "/tokenize", text[15_000_000]) for _ in range(8)]
        large.append(pool.submit(post, server, "/v4/beta/completions/detokenize", ids[4_000_000]))
        assert server.complete(max_tokens=1)["usage"]["completion_tokens"] == 1
        for reply in large:
            assert reply.result()[0] == 413
    assert peak_bytes(engine) - before < 50_000_000


def test_a_text_that_no_model_takes_is_not_counted_for_a_budget(tmp_path: Path) -> None:
    """The count is the tokenizer's too, and comes before the engine has looked at the prompt."""
    with serving(tmp_path, policy=["--budget", "day=1000000t"]) as server:
        engine = engine_of(server)
        assert server.complete(max_tokens=1)["usage"]["completion_tokens"] == 1
        before = peak_bytes(engine)
        body = json.dumps({"model": server.model, "prompt": "ab " * 4_000_000, "max_tokens": 1}).encode()
        assert post(server, "/v1/completions", body) == (400, "context_length_exceeded")
        assert peak_bytes(engine) - before < 150_000_000

"""`andthen complete` with a model that stands upstream: a server in this test is the vendor."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.cli.running import run


class Handler(BaseHTTPRequestHandler):
    bodies: ClassVar[list[dict[str, Any]]] = []
    fails: ClassVar[bool] = False

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.bodies.append(body)
        if self.fails:
            self._reply(401, "application/json", json.dumps({"error": {"message": "no such key"}}).encode())
        elif body.get("stream"):
            chunks = [
                {"choices": [{"index": 0, "delta": {"content": " there"}, "finish_reason": None}]},
                {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
                {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}},
            ]
            frames = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
            self._reply(200, "text/event-stream", frames.encode())
        else:
            choice = {"index": 0, "message": {"content": " there"}, "finish_reason": "length"}
            usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
            self._reply(200, "application/json", json.dumps({"choices": [choice], "usage": usage}).encode())

    def _reply(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    Handler.bodies.clear()
    Handler.fails = False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    (tmp_path / "andthen.toml").write_text(f"""
[models."team/chat"]
address = "http://127.0.0.1:{server.server_address[1]}"
language = "openai_chat"

[models."team/both"]
deployments = [{{ model = "team/chat" }}, {{ model = "local/tale", order = 1 }}]
""")
    yield tmp_path
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_text_is_written_as_it_comes(home: Path) -> None:
    done = run(home, "complete", "Hello", "--model", "team/chat")
    assert (done.returncode, done.stdout) == (0, " there\n")
    assert Handler.bodies[0]["messages"] == [{"role": "user", "content": "Hello"}]


def test_the_json_is_the_servers_own_reply(home: Path) -> None:
    done = run(home, "complete", "Hello", "--model", "team/chat", "--n", "2", "--best-of", "2", "--json")
    assert done.returncode == 1
    done = run(home, "complete", "Hello", "--model", "team/chat", "--json")
    reply = json.loads(done.stdout)
    assert (reply["model"], reply["choices"][0]["text"], reply["usage"]["total_tokens"]) == ("team/chat", " there", 4)


def test_a_refusal_and_a_vendors_error_are_told_in_a_line(home: Path) -> None:
    done = run(home, "complete", "Hello", "--model", "team/chat", "--suffix", "end")
    assert done.returncode == 2
    assert "`suffix` is not taken by team/chat" in done.stderr
    assert done.stderr.endswith("or use a model that takes it: local/tale.\n")
    Handler.fails = True
    done = run(home, "complete", "Hello", "--model", "team/chat")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "status 401" in done.stderr


def test_a_name_for_local_and_other_models_is_one_for_the_server(home: Path) -> None:
    done = run(home, "complete", "Hello", "--model", "team/both")
    assert done.returncode == 2
    assert "stands for a local model and others" in done.stderr

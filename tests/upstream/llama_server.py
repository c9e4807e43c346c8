"""llama-server as the `xllamacpp` wheel brings it, with the model that ships with the package, in a process of its own.

python -m tests.upstream.llama_server
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from andthen.engine.settings import ENVIRONMENT
from tests.engine.asking import SHIPPED

SLOTS = 4
SLOT_TOKENS = 1024
WAIT_S = 20


class LlamaServer:
    """One that is ready."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url

    @property
    def busy(self) -> int:
        """Slots that work."""
        return sum(bool(slot["is_processing"]) for slot in self._slots())

    @property
    def most_tokens(self) -> int:
        """Tokens of the longest text that a slot holds, those of its prompt among them."""
        return max(int(slot.get("n_prompt_tokens", 0)) for slot in self._slots())

    def _slots(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.url}/slots", timeout=WAIT_S) as reply:
            return list(json.load(reply))

    def post(self, path: str, **fields: object) -> dict[str, Any]:
        """What it answers when it is asked itself."""
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(fields).encode(), headers)
        with urllib.request.urlopen(request, timeout=WAIT_S) as reply:
            return dict(json.load(reply))

    def templated(self, content: str) -> str:
        """The prompt that it makes of a user's message."""
        return str(self.post("/apply-template", messages=[{"role": "user", "content": content}])["prompt"])


@contextmanager
def llama_server() -> Iterator[LlamaServer]:
    """Killed at the end, and ends by itself with the process that started it."""
    command = [sys.executable, "-m", "tests.upstream.llama_server"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | ENVIRONMENT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:")
            yield LlamaServer(process, url)
        finally:
            process.kill()


def main() -> None:
    out, sys.stdout = sys.stdout, sys.stderr  # logs go the other way
    xllamacpp = importlib.import_module("xllamacpp")
    params: Any = xllamacpp.CommonParams()
    params.model.path = str(SHIPPED)
    params.model_alias = {"tale"}
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * SLOT_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_prompt = params.fit_params = params.warmup = False
    params.cache_ram_mib = 0
    params.verbosity = -1
    params.port = 0
    server = xllamacpp.Server(params)
    print(server.listening_address, file=out, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()

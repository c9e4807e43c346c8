"""The contenders that are asked inside their process: a child that reads loads as lines on its standard input, and
answers each with the seconds it took.

    python -m bench.inside NAME SETUP
"""

from __future__ import annotations

import importlib
import itertools
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np

from bench.load import BATCH_TOKENS, NEW_TOKENS, PROMPT_TOKENS, SLOTS, TEMPERATURE, Load, Setup

Run = Callable[[Load], None]

_MODEL = "local/bench"
_FLASH_ATTENTION_ON = 1


def engine(setup: Setup) -> tuple[Run, str]:
    """Our engine, asked as a worker asks it: questions in, events out as they come. (Credit would be due later.)"""
    from andthen.contract.events import Usage
    from andthen.contract.request import CompletionRequest
    from andthen.engine.loop import Engine
    from andthen.engine.messages import Answer, Emitted, Submit
    from andthen.engine.settings import EngineSettings, ModelSettings

    model = ModelSettings(path=setup.path, deterministic=setup.deterministic)
    numbers = itertools.count()
    on_end: dict[int, Callable[[], None]] = {}

    def emit(answers: list[tuple[int, Answer]]) -> None:
        for _, answer in answers:
            if not isinstance(answer, Emitted):
                raise SystemExit(f"the engine refused: {answer}")
            if answer.events and isinstance(answer.events[-1], Usage):
                on_end.pop(answer.job)()

    asked = Engine(EngineSettings(models={_MODEL: model}, threads=setup.threads, batch_tokens=BATCH_TOKENS), emit)
    threading.Thread(target=asked.run, daemon=True).start()

    def run(load: Load) -> None:
        clients = threading.Semaphore(0)

        def submit(client: int, turn: int) -> None:
            if turn == load.requests:
                clients.release()
                return
            number = next(numbers)
            on_end[number] = lambda: submit(client, turn + 1)
            request = CompletionRequest(
                model=_MODEL,
                prompts=(load.prompt(client, turn),),
                max_tokens=NEW_TOKENS,
                temperature=TEMPERATURE,
                seed=client,
                ignore_eos=True,
                stream=True,
            )
            asked.handle(0, Submit(number, "bench", _MODEL, request))

        for client in range(load.clients):
            submit(client, 0)
        for _ in range(load.clients):
            clients.acquire()

    return run, ""


class _Bare:
    """`llama_decode` and nothing else: the prompts, then one token a sequence and step, whichever it be.

    Args:
        setup: of the model.
        streams: the pool, and if the model is deterministic the slices and the neighbours too, are those that the
            engine uses for it (see `andthen.engine.batches`); else one shared pool and whole batches.
    """

    def __init__(self, setup: Setup, *, streams: bool) -> None:
        from andthen.engine.batches import SLICE_TOKENS
        from andthen.engine.llama import Batch, Context, Model

        known = setup.known()
        bounds = known.bounds
        self._exact = streams and known.exact
        self._batch = Batch(BATCH_TOKENS)
        self._context = Context(
            Model(setup.path),
            cells=bounds.cells,
            sequences=bounds.ids if streams else SLOTS,
            batch_tokens=BATCH_TOKENS,
            slice_tokens=SLICE_TOKENS if self._exact else 0,
            streams=streams,
            threads=setup.threads,
        )

    def run(self, load: Load) -> None:
        clients = np.arange(load.clients)
        for turn in range(load.requests):
            self._context.clear()
            prompts = np.array([load.prompt(client, turn) for client in range(load.clients)])
            self._read(prompts)
            for step in range(NEW_TOKENS - 1):
                self._decode(prompts[:, step % PROMPT_TOKENS], PROMPT_TOKENS + step, clients, 1)

    def _read(self, prompts: np.ndarray) -> None:
        positions = np.arange(PROMPT_TOKENS)
        together = 1 if self._exact else BATCH_TOKENS // PROMPT_TOKENS
        last = positions >= PROMPT_TOKENS - 1 - self._exact
        for first in range(0, len(prompts), together):
            part = prompts[first : first + together]
            ids = np.repeat(np.arange(first, first + len(part)), PROMPT_TOKENS)
            self._decode(part.ravel(), np.tile(positions, len(part)), ids, np.tile(last, len(part)))

    def _decode(self, tokens: Any, positions: Any, ids: Any, wanted: Any) -> None:
        batch = self._batch
        count = batch.count = len(tokens)
        batch.tokens[:count], batch.positions[:count] = tokens, positions
        batch.sequences[:count], batch.wanted[:count] = ids, wanted
        alone = self._exact and count == 1
        if alone:
            batch.count = 2
            batch.tokens[1], batch.positions[1], batch.sequences[1], batch.wanted[1] = tokens[0], positions + 1, 0, 1
        if code := self._context.decode(batch):
            raise SystemExit(f"llama_decode returned {code}")
        self._context.logits(1)
        if alone:
            self._context.drop(0, positions + 1)


def llama_server(setup: Setup) -> tuple[Run, str]:
    """llama-server as the wheel brings it: its own batching, its own sampling, and its own HTTP server."""
    xllamacpp = importlib.import_module("xllamacpp")
    params: Any = xllamacpp.CommonParams()
    params.model.path = setup.path
    params.n_ctx = setup.known().bounds.cells
    params.n_parallel = SLOTS
    params.kv_unified = True
    params.flash_attn_type = xllamacpp.llama_flash_attn_type(_FLASH_ATTENTION_ON)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = setup.threads
    params.sampling.samplers = "temperature"
    params.cache_prompt = params.fit_params = params.warmup = False
    params.cache_ram_mib = 0
    params.verbosity = -1
    params.port = 0
    server = xllamacpp.Server(params)
    pool = ThreadPoolExecutor(SLOTS)

    def run(load: Load) -> None:
        def ask(client: int) -> None:
            for turn in range(load.requests):
                reply = server.handle_completions(load.body(client, turn))
                if reply["usage"]["completion_tokens"] != NEW_TOKENS:
                    raise SystemExit(f"llama-server answered {reply}")

        list(pool.map(ask, range(load.clients)))

    return run, server.listening_address


CONTENDERS: dict[str, Callable[[Setup], tuple[Run, str]]] = {
    "engine": engine,
    "bare": lambda setup: (_Bare(setup, streams=False).run, ""),
    "bare in streams": lambda setup: (_Bare(setup, streams=True).run, ""),
    "llama-server": llama_server,
}
"""Each starts, and gives what runs a load and the address where it listens, if it does."""


def main() -> None:
    out, sys.stdout = sys.stdout, sys.stderr  # logs go the other way
    run, address = CONTENDERS[sys.argv[1]](msgspec.json.decode(sys.argv[2], type=Setup))
    print("ready", address, file=out, flush=True)
    for line in sys.stdin:
        load = msgspec.json.decode(line, type=Load)
        began_s = time.perf_counter()
        run(load)
        print(time.perf_counter() - began_s, file=out, flush=True)


if __name__ == "__main__":
    main()

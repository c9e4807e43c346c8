"""lm-evaluation-harness, as it comes, by its `local-completions` model on two local tasks: a multiple choice scored by
log-likelihood, and a generation with more stops than the contract's four, which `limits.max_stops` allows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.clients.test_clients import HERE, run
from tests.engine.asking import Plain
from tests.serving import Server, serving

ROOT = Path(__file__).parents[2]
TASKS = HERE / "lm_eval_tasks"
CLOSE_NAT = 0.05


@pytest.fixture(scope="module")
def plain() -> Plain:
    return Plain()


@pytest.fixture(scope="module")
def many_stops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("home"), settings="[limits]\nmax_stops = 16\n") as server:
        yield server


def evaluate(server: Server, folder: Path, *, tokenized: bool, batch_size: int) -> dict[str, list[dict[str, Any]]]:
    """Task → what was logged of each of its documents, in their order."""
    shutil.copytree(TASKS, folder, dirs_exist_ok=True)
    model = {
        "model": server.model,
        "base_url": f"{server.url}/v1/completions",
        "tokenizer_backend": "remote",
        "tokenized_requests": tokenized,
        "auth_token": server.key,
        "max_retries": 1,
    }
    command: list[str | Path] = [ROOT / ".venvs" / "lm-eval" / "bin" / "lm_eval", "run", "--model", "local-completions"]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in model.items())]
    command += ["--tasks", "endings,goes_on", "--include_path", ".", "--batch_size", str(batch_size)]
    command += ["--output_path", "out", "--log_samples"]
    run(command, {"OPENAI_API_KEY": server.key, "HF_HOME": str(folder / "cache")}, cwd=folder)
    return {task: samples(folder / "out", task) for task in ("endings", "goes_on")}


def samples(out: Path, task: str) -> list[dict[str, Any]]:
    (log,) = out.rglob(f"samples_{task}_*.jsonl")
    return sorted(map(json.loads, log.read_text().splitlines()), key=lambda sample: int(sample["doc_id"]))


def scores(sample: dict[str, Any]) -> list[float]:
    """One document's log-likelihoods, in nat, one for each of its endings."""
    return [float(answer[0][0]) for answer in sample["resps"]]


def said(samples: list[dict[str, Any]]) -> list[str]:
    return [sample["resps"][0][0] for sample in samples]


def computed(plain: Plain, sample: dict[str, Any], *, tokenized: bool) -> list[float]:
    """The same log-likelihoods without a server, one token at a time. The harness sends token ids as they are; before
    a string the model's start token is put."""
    found = []
    for asked in sample["arguments"].values():
        start = 1 if tokenized else 0
        whole = plain.tokens(asked["arg_0"] + asked["arg_1"])[start:]
        context = plain.tokens(asked["arg_0"])[start:]
        found.append(sum(plain.prompt_logprobs(whole)[len(context) - 1 :]))
    return found


@pytest.mark.timeout(600)
def test_the_harness_finds_what_is_computed_directly(many_stops: Server, plain: Plain, tmp_path: Path) -> None:
    ways = [(tokenized, size) for tokenized in (True, False) for size in (1, 4)]

    def seen(way: tuple[bool, int]) -> dict[str, list[dict[str, Any]]]:
        return evaluate(many_stops, tmp_path / f"{way[0]}-{way[1]}", tokenized=way[0], batch_size=way[1])

    with ThreadPoolExecutor(max_workers=2) as pool:
        runs = dict(zip(ways, pool.map(seen, ways), strict=True))
    for (tokenized, _), run_of in runs.items():
        assert len(run_of["endings"]) == len((TASKS / "endings.jsonl").read_text().splitlines())
        for sample in run_of["endings"]:
            wanted = computed(plain, sample, tokenized=tokenized)
            assert scores(sample) == pytest.approx(wanted, abs=CLOSE_NAT)
            right = sample["doc"]["right"]
            assert sample["acc"] == (max(range(len(wanted)), key=wanted.__getitem__) == right)
    for tokenized in (True, False):
        alone, together = (said(runs[tokenized, size]["goes_on"]) for size in (1, 4))
        assert alone == together
        assert any(alone)
        assert not any(stop in text for text in alone for stop in ("\n", ".", "!", "?", ";", "THE END"))

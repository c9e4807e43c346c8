"""lm-evaluation-harness, as it comes, by its `local-completions` model on two local tasks: a multiple choice scored by
log-likelihood, and a generation with more stops than the contract's four, which `limits.max_stops` allows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.test_clients import HERE, run
from tests.serving import Server, serving

ROOT = Path(__file__).parents[2]
TASKS = HERE / "lm_eval_tasks"
CLOSE_NAT = 0.05


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


@pytest.mark.timeout(600)
def test_every_way_of_asking_gives_one_score(many_stops: Server, tmp_path: Path) -> None:
    runs = {
        (tokenized, size): evaluate(many_stops, tmp_path / f"{tokenized}-{size}", tokenized=tokenized, batch_size=size)
        for tokenized in (True, False)
        for size in (1, 4)
    }
    first = runs[True, 1]
    lines = (TASKS / "endings.jsonl").read_text().splitlines()
    assert [len(scores(sample)) for sample in first["endings"]] == [len(json.loads(line)["endings"]) for line in lines]
    for seen in runs.values():
        for sample, other in zip(first["endings"], seen["endings"], strict=True):
            assert scores(sample) == pytest.approx(scores(other), abs=CLOSE_NAT)
            assert all(score < 0 for score in scores(sample))
        for sample, other in zip(first["goes_on"], seen["goes_on"], strict=True):
            text = sample["resps"][0][0]
            assert text == other["resps"][0][0]
            assert not any(stop in text for stop in ("\n", ".", "!", "?", ";", "THE END"))

"""What the finished model writes, asked through the engine as a server asks it. No choosing: the first ten prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from andthen.cli.local import LocalEngine, running
from andthen.config import load
from andthen.contract.events import Finished, Text
from andthen.contract.request import CompletionRequest
from training import corpus

PROMPTS = 10
PROMPT_CHARACTERS = 100
MOST_TOKENS = 100
SAMPLED = {"temperature": 0.8, "top_p": 0.95}


@dataclass(frozen=True)
class Sample:
    prompt: str
    sampled: str
    """By `SAMPLED`, with the sample's number, from 1, as the seed."""
    greedy: str


def prompts(text: corpus.Text, count: int, length: int) -> list[str]:
    """The beginnings of paragraphs, evenly spread over the text."""
    every = len(text.paragraphs) // count
    return [text.passage(number * every, length)[0] for number in range(count)]


def write(gguf: Path, held_out: corpus.Text) -> list[Sample]:
    """Continues the first ten of twenty spread beginnings of held-out paragraphs by `MOST_TOKENS` at most."""
    asked = prompts(held_out, 2 * PROMPTS, PROMPT_CHARACTERS)[:PROMPTS]
    with running(load({}, models=[f"tale={gguf}"])) as engine:
        return [
            Sample(
                prompt,
                _completion(engine, prompt, seed=number, **SAMPLED),
                _completion(engine, prompt, temperature=0.0),
            )
            for number, prompt in enumerate(asked, 1)
        ]


def _completion(engine: LocalEngine, prompt: str, **fields: Any) -> str:
    """The text, and `<|endoftext|>` where the model ended it."""
    request = CompletionRequest(model="local/tale", prompts=(prompt,), max_tokens=MOST_TOKENS, **fields)
    events = list(engine.complete(request))
    ended = any(isinstance(event, Finished) and event.reason == "stop" for event in events)
    return "".join(event.text for event in events if isinstance(event, Text)) + ("<|endoftext|>" if ended else "")

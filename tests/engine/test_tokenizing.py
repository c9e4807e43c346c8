"""What the engine answers about texts and token ids: bounded, and fair between those who ask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import pytest

from andthen.contract.errors import AndthenError, ContextLengthExceeded, NoCapacity
from andthen.engine.loop import Engine
from andthen.engine.messages import Answer, Detokenize, Detokenized, Failed, Tokenize, Tokenized
from andthen.engine.settings import EngineSettings, ModelSettings
from tests.engine.asking import MODEL, SHIPPED, WAIT_S, Asker, Plain


def longest(plain: Plain) -> int:
    """Of the texts that are read: bytes."""
    return (plain.model.context + 1) * plain.model.longest_piece - 1


def test_a_text_that_can_not_fit_the_context_is_refused_as_a_prompt_is(asker: Asker, plain: Plain) -> None:
    text = "é" * ((longest(plain) + 1) // 2)
    found = asker.next(asker.post(Tokenize, model=MODEL, text=text[:-1]))
    assert isinstance(found, Tokenized)
    assert len(found.tokens) > plain.model.context, "what fits by its bytes is told in tokens"
    errors: list[AndthenError] = []
    for ask in (lambda: asker.ask(text + "é"), lambda: asker.next(asker.post(Tokenize, model=MODEL, text=text + "é"))):
        with pytest.raises(ContextLengthExceeded) as refused:
            ask()
        errors.append(refused.value)
    assert [(error.param, error.message) for error in errors] == [("prompt", errors[0].message)] * 2


def test_more_ids_than_the_context_holds_are_refused(asker: Asker, plain: Plain) -> None:
    ids = (500,) * plain.model.context
    assert isinstance(asker.next(asker.post(Detokenize, model=MODEL, tokens=ids)), Detokenized)
    with pytest.raises(ContextLengthExceeded) as refused:
        asker.next(asker.post(Detokenize, model=MODEL, tokens=(*ids, 500)))
    assert refused.value.param == "tokens"


class Crowd:
    """Several who ask one engine much at once."""

    def __init__(self, settings: EngineSettings) -> None:
        self._answers: SimpleQueue[tuple[int, Answer]] = SimpleQueue()
        self._asked = 0
        self._owners: dict[int, str] = {}
        self.engine = Engine(settings, self._deliver)

    def _deliver(self, answers: list[tuple[int, Answer]]) -> None:
        for answer in answers:
            self._answers.put(answer)

    def ask(self, owner: str, text: str, link: int = 1) -> int:
        self._asked += 1
        self._owners[self._asked] = owner
        self.engine.handle(link, Tokenize(self._asked, MODEL, text, owner=owner))
        return self._asked

    def answers(self, count: int) -> list[tuple[str, Answer]]:
        """The next so many, each with the owner of its question."""
        found = [self._answers.get(timeout=WAIT_S)[1] for _ in range(count)]
        return [(self._owners[answer.job], answer) for answer in found]


@contextmanager
def crowd(**fields: Any) -> Iterator[Crowd]:
    found = Crowd(EngineSettings(models={MODEL: ModelSettings(path=str(SHIPPED))}, **fields))
    found.ask("", "a")
    found.answers(1)  # the model is known
    try:
        yield found
    finally:
        found.engine.stop()


@pytest.fixture(scope="module")
def long(plain: Plain) -> str:
    return "ab " * (longest(plain) // 3)


def test_who_asks_much_is_not_answered_first(long: str) -> None:
    with crowd() as asked:
        for _ in range(60):
            asked.ask("greedy", long)
        asked.ask("modest", long)
        order = [owner for owner, _ in asked.answers(61)]
    assert order.index("modest") < 30


def test_who_asks_much_fills_no_others_place(long: str) -> None:
    with crowd(max_waiting=8) as asked:
        for _ in range(40):
            asked.ask("greedy", long)
        for _ in range(4):
            asked.ask("modest", long)
        answers = asked.answers(44)
    refused = Counter(owner for owner, answer in answers if isinstance(answer, Failed))
    assert {answer.code for _, answer in answers if isinstance(answer, Failed)} == {NoCapacity.code}
    assert refused["modest"] == 0
    assert 20 < refused["greedy"] < 40
    assert len({answer.job for _, answer in answers}) == 44, "each has one answer"


def test_a_large_text_takes_the_places_of_several(long: str) -> None:
    large = "ab " * 1_000_000
    with crowd(max_waiting=24) as asked:
        for _ in range(8):
            asked.ask("greedy", large)
        codes = {answer.code for _, answer in asked.answers(8) if isinstance(answer, Failed)}
    assert codes == {"no_capacity", "context_length_exceeded"}


def test_who_leaves_is_not_worked_for(long: str) -> None:
    with crowd() as asked:
        for _ in range(60):
            asked.ask("leaving", long, link=2)
        asked.engine.gone(2)
        last = asked.ask("leaving", "a")
        answered = 0
        while asked.answers(1)[0][1].job != last:
            answered += 1
    assert answered < 30

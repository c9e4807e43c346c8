"""What the scheduler schedules: a prompt and the sequences that grow from it.

Pure. A group is one prompt of one request. It is read once, into its trunk; each candidate is a sequence that shares
the trunk's cells and adds its own. The states, and the only ways between them:

    group       waiting → reading → open → done
    sequence    waiting → running → done          (running: it holds a sequence id and its cells)

A sequence that is preempted goes from running back to waiting: it gives up its id and its cells and keeps the tokens
that it chose. A group whose last sequence is preempted goes back to waiting too. What is admitted again is computed
again, prompt and chosen tokens, and then goes on with the next token.
"""

from __future__ import annotations

import enum

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]


class State(enum.Enum):
    WAITING = "waiting"
    READING = "reading"
    OPEN = "open"
    RUNNING = "running"
    DONE = "done"


TRANSITIONS: frozenset[tuple[State, State]] = frozenset(
    {
        (State.WAITING, State.READING),
        (State.READING, State.OPEN),
        (State.OPEN, State.DONE),
        (State.WAITING, State.RUNNING),
        (State.RUNNING, State.DONE),
        (State.WAITING, State.DONE),
        (State.READING, State.DONE),
        (State.RUNNING, State.WAITING),
        (State.READING, State.WAITING),
        (State.OPEN, State.WAITING),
    }
)


class _Stateful:
    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state = State.WAITING

    def become(self, state: State) -> None:
        if (self.state, state) not in TRANSITIONS:
            raise AssertionError(f"{self.state.value} → {state.value} is no transition")
        self.state = state


class Sequence(_Stateful):
    """One candidate: its place in the pool and the tokens it was given."""

    __slots__ = ("chosen", "decoded", "group", "id", "number", "resumed_at")

    def __init__(self, group: Group, number: int) -> None:
        super().__init__()
        self.group = group
        self.number = number
        self.id = -1
        self.chosen: list[int] = []
        """Generated tokens."""
        self.decoded = 0
        """How many of them are in the pool: all but the last one, and fewer after a preemption."""
        self.resumed_at = 0
        """How many tokens it had chosen when it was last admitted."""

    @property
    def position(self) -> int:
        """Where its next token to decode stands in the text."""
        return len(self.group.tokens) + self.decoded

    def become(self, state: State) -> None:
        before = self.state
        super().become(state)
        self.group.waiting += (state is State.WAITING) - (before is State.WAITING)
        self.group.running += (state is State.RUNNING) - (before is State.RUNNING)


class Group(_Stateful):
    """One prompt with its candidates.

    Args:
        owner: whose turn it is.
        tokens: the prompt, int32, not empty.
        max_tokens: cells that each candidate may fill.
        candidates: how many; 0 reads the prompt only.
        scored: the logits of every prompt position are wanted, so that nothing of it can come from the prefix cache.
    """

    __slots__ = (
        "cached", "given", "held", "max_tokens", "owner", "paused_at_s", "read", "running", "scored", "sequences",
        "tokens", "trunk", "waiting",
    )  # fmt: skip

    def __init__(self, owner: str, tokens: Tokens, *, max_tokens: int, candidates: int, scored: bool = False) -> None:
        super().__init__()
        self.owner = owner
        self.tokens = tokens
        self.max_tokens = max_tokens
        self.scored = scored
        self.sequences = [Sequence(self, number) for number in range(candidates)]
        self.waiting = candidates
        """Candidates that wait: not yet admitted, or preempted."""
        self.running = 0
        self.trunk = -1
        """The sequence id that holds the prompt."""
        self.held = 0
        """Prompt tokens in the pool."""
        self.given = 0
        """How many of those that are held another sequence had already computed."""
        self.read = 0
        """The most prompt tokens that were ever in the pool: fewer are held after a preemption."""
        self.cached = 0
        """How many of the tokens read another sequence had already computed."""
        self.paused_at_s: float | None = None
        """Since when its reader is behind; None: it is not. Its sequences are then left out of the batches."""

    @property
    def single(self) -> bool:
        """Its one candidate goes on in the trunk itself."""
        return len(self.sequences) == 1

    @property
    def has_unstarted(self) -> bool:
        """Some candidate has yet to get its first token."""
        return any(not sequence.chosen and sequence.state is not State.DONE for sequence in self.sequences)

    def next_waiting(self) -> Sequence:
        """The first of the candidates that wait; there is one."""
        return next(sequence for sequence in self.sequences if sequence.state is State.WAITING)

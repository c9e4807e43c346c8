"""What the scheduler schedules: a prompt and the sequences that grow from it.

Pure. A group is one prompt of one request. It is read once, into its trunk; each candidate is a sequence that shares
the trunk's cells and adds its own. The states, and the only ways between them:

    group       waiting → reading → open → done
    sequence    waiting → running → done          (running: it holds a sequence id and its cells)
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

    __slots__ = ("chosen", "decoded", "group", "id", "number", "paused")

    def __init__(self, group: Group, number: int) -> None:
        super().__init__()
        self.group = group
        self.number = number
        self.id = -1
        self.chosen: list[int] = []
        """Generated tokens; all but the last few are decoded, that is in the pool."""
        self.decoded = 0
        self.paused = False
        """Its reader is behind: it keeps its cells and is left out of the batches."""

    @property
    def position(self) -> int:
        """Where its next token to decode stands in the text."""
        return len(self.group.tokens) + self.decoded


class Group(_Stateful):
    """One prompt with its candidates.

    Args:
        owner: whose turn it is.
        tokens: the prompt, int32, not empty.
        max_tokens: cells that each candidate may fill.
        candidates: how many; 0 reads the prompt only.
        scored: the logits of every prompt position are wanted, so that nothing of it can come from the prefix cache.
    """

    __slots__ = ("admitted", "cached", "max_tokens", "owner", "read", "scored", "sequences", "tokens", "trunk")

    def __init__(self, owner: str, tokens: Tokens, *, max_tokens: int, candidates: int, scored: bool = False) -> None:
        super().__init__()
        self.owner = owner
        self.tokens = tokens
        self.max_tokens = max_tokens
        self.scored = scored
        self.sequences = [Sequence(self, number) for number in range(candidates)]
        self.admitted = 0
        """Candidates that were given their place; they come in order."""
        self.trunk = -1
        """The sequence id that holds the prompt."""
        self.read = 0
        """Prompt tokens in the pool."""
        self.cached = 0
        """How many of them another sequence had already computed."""

    @property
    def single(self) -> bool:
        """Its one candidate goes on in the trunk itself."""
        return len(self.sequences) == 1

    @property
    def has_unadmitted(self) -> bool:
        return self.admitted < len(self.sequences)

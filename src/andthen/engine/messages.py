"""What is said to the engine and what it answers; the same words in one process and between two.

A job is one request or one question, numbered by the asker; the numbers of one link never repeat. Every `Submit`
is answered by `Emitted` frames whose last event is a `Usage` (also after `Cancel`), or by one `Failed`. Every other
question is answered by its own reply or by `Failed`; after `Cancel`, perhaps by nothing.
"""

from __future__ import annotations

from msgspec import Struct

from andthen.contract.events import Event
from andthen.contract.request import CompletionRequest

CREDIT_TOKENS = 1024
"""Generated tokens that a job may be ahead of its reader before the engine pauses it. What is paused for half a second
gives up its place to whoever wants it, and is computed again when its reader goes on."""


class ModelInfo(Struct, frozen=True):
    """What the engine knows of a model without loading its weights."""

    name: str
    """The whole name, `local/NAME`."""
    context: int
    """Longest sequence in tokens, prompt and completion together."""
    vocab_size: int
    parameters: int
    size_bytes: int
    fill_in_the_middle: bool
    deterministic: bool
    """A seed gives the same bytes alone and under load."""
    fingerprint: str
    """Engine build and model hash: `system_fingerprint`."""
    add_bos: bool
    description: str
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    chat_template: str | None = None
    longest_piece: int = 256
    """Bytes of the longest token: a text of b bytes has at least b / longest_piece tokens."""


class Submit(Struct, frozen=True, tag=True):
    job: int
    owner: str
    """Whose turn it is: jobs of different owners are served fairly."""
    model: str
    request: CompletionRequest


class Cancel(Struct, frozen=True, tag=True):
    job: int


class Credit(Struct, frozen=True, tag=True):
    """The reader took this many generated tokens."""

    job: int
    tokens: int


class Describe(Struct, frozen=True, tag=True):
    """Asks for all models' `ModelInfo`."""

    job: int


class Tokenize(Struct, frozen=True, tag=True):
    job: int
    model: str
    text: str
    add_special: bool = True
    parse_special: bool = True
    owner: str = ""
    """As of `Submit`."""


class Detokenize(Struct, frozen=True, tag=True):
    job: int
    model: str
    tokens: tuple[int, ...]
    owner: str = ""
    """As of `Submit`."""


Question = Submit | Cancel | Credit | Describe | Tokenize | Detokenize


class Emitted(Struct, frozen=True, tag=True):
    """What the job came to since the last frame. The first may be empty: the job's turn has come."""

    job: int
    events: list[Event]


class Failed(Struct, frozen=True, tag=True):
    """An `AndthenError`, by its code."""

    job: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: int | None = None


class Described(Struct, frozen=True, tag=True):
    job: int
    models: list[ModelInfo]


class Tokenized(Struct, frozen=True, tag=True):
    job: int
    tokens: list[int]


class Detokenized(Struct, frozen=True, tag=True):
    job: int
    text: str


Answer = Emitted | Failed | Described | Tokenized | Detokenized

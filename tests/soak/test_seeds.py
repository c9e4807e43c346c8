"""The promise of `seed`, through the whole server: the same bytes on every run, alone and among 31 others."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from tests.serving import Server, serving
from tests.soak.asking import ask, is_idle, text, until

COMPLETIONS = 20
OTHERS = 31
ROUNDS = 5

pytestmark = [pytest.mark.soak, pytest.mark.timeout(300)]

WORDS = ("once", "upon", "a", "time", "the", "king", "said", "no", "little", "fox")


def seeded(seed: int) -> dict[str, object]:
    """A request that is drawn with this seed; each with a prompt and a temper of its own."""
    dice = random.Random(seed)
    return {
        "prompt": " ".join(dice.choices(WORDS, k=dice.randint(1, 80))),
        "seed": seed,
        "max_tokens": dice.randint(16, 160),
        "temperature": dice.choice((0, 0.7, 1.0)),
        "top_p": dice.choice((1.0, 0.9)),
    }


async def other(server: Server, dice: random.Random) -> None:
    """A client that asks for this and that, for ever."""
    while True:
        fields = seeded(dice.getrandbits(32)) | {"n": dice.choice((1, 1, 3)), "logprobs": dice.choice((None, 3))}
        await ask(server, **fields, stream=dice.random() < 0.5)


@asynccontextmanager
async def among_others(server: Server) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        others = [group.create_task(other(server, random.Random(number))) for number in range(OTHERS)]
        yield
        for task in others:
            task.cancel()


async def texts(server: Server) -> list[str]:
    """One after another."""
    return [text(await ask(server, **seeded(seed))) for seed in range(COMPLETIONS)]


async def together(server: Server) -> list[str]:
    return [text(reply) for reply in await asyncio.gather(*(ask(server, **seeded(i)) for i in range(COMPLETIONS)))]


def test_twenty_seeds(tmp_path: Path) -> None:
    async def run(server: Server) -> None:
        alone = await texts(server)
        assert len(set(alone)) == COMPLETIONS
        found = {"alone again": await texts(server), "all at once": await together(server)}
        async with among_others(server):
            for number in range(ROUNDS):
                found[f"among {OTHERS} others, round {number}"] = await texts(server)
        await until(lambda: is_idle(server), "nothing is left behind")
        found["alone at last"] = await texts(server)
        alike = {name: sum(map(str.__eq__, alone, given)) for name, given in found.items()}
        print(f"\nalike with those alone, of {COMPLETIONS}: {alike}")
        assert set(alike.values()) == {COMPLETIONS}

    with serving(tmp_path) as server:
        uvloop.run(run(server))

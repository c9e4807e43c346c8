"""A decode shows that it goes on, without the interpreter."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing

from andthen.engine.pulse import Pulse
from tests.engine.asking import SHIPPED

SCRIPT = """
import sys
from andthen.engine import pulse
from andthen.engine.llama import Batch, Context, Model

pulse.own.join(int(sys.argv[1]))
model = Model(sys.argv[2])
context = Context(model, cells=1024, sequences=1, batch_tokens=256, threads=1)
batch = Batch(256)
batch.fill([5] * 256, list(range(256)), [0] * 256, [0] * 255 + [1])
for told in sys.stdin:
    if told == "beat\\n":
        pulse.own.beat()
        print("beaten", flush=True)
    elif told == "rest\\n":
        print("rested", flush=True)
    else:
        print(context.decode(batch), flush=True)
        context.clear()
"""


def test_each_part_of_a_decode_is_a_sign_of_life() -> None:
    with (
        closing(Pulse()) as shown,
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(shown.descriptor), str(SHIPPED)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[shown.descriptor],
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        signs = []
        for told, answer in (
            ("beat", "beaten"),
            ("rest", "rested"),
            ("decode", "0"),
            ("decode", "0"),
            ("beat", "beaten"),
        ):
            process.stdin.write(f"{told}\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{answer}\n"
            signs.append(shown.signs())
        process.stdin.close()
    loop = [sign for sign, _ in signs]
    assert loop[0] == loop[1], "nothing is shown where nothing is done"
    assert len(set(loop)) == 4, "each decode and each beat shows"
    assert not any(any(socket) for _, socket in signs), "the other thread never worked"

"""The plainest fan-out against the general one, event for event."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from andthen.contract.errors import AndthenError
from andthen.contract.events import Event, Finished, FinishReason, PromptScored, Text, Token, Usage
from andthen.contract.limits import Limits
from andthen.contract.request import parse
from andthen.plan.abilities import Row, remote
from andthen.plan.plan import plan
from andthen.plan.single_call import SingleCall, is_single_call
from andthen.plan.spread import Spread

LIMITS = Limits()
ROW = remote("team/m", Row(takes={"max_tokens": True}, prompts=("text", "empty")), LIMITS)
REASONS: st.SearchStrategy[FinishReason] = st.sampled_from(["stop", "length", "content_filter"])
COUNTS = st.sampled_from([0, 1, 5, 10**18])
TEXTS = st.text("abcé\n 漢", max_size=6)


@st.composite
def told(draw: st.DrawFn) -> list[Event]:
    """What a vendor may tell, in any order that a decoder lets through, and some that it does not."""
    events: list[Event] = []
    for _ in range(draw(st.integers(0, 8))):
        reason: FinishReason = draw(REASONS)
        tokens = tuple(Token(None, text, -1.0, 0) for text in draw(st.lists(TEXTS, max_size=2)))
        generated = draw(st.sampled_from([0, 1, 2, 3, 10**6]))
        choices: list[Event] = [
            Text(0, 0, draw(TEXTS) * draw(st.sampled_from([1, 1, 1, 3000])), tokens, generated),
            Text(0, 0, draw(TEXTS), (), generated),
            Text(0, draw(st.sampled_from([0, 0, 0, 1])), draw(TEXTS)),
            Finished(0, 0, reason, generated),
            Usage(draw(COUNTS), draw(COUNTS)),
            PromptScored(0, draw(COUNTS), draw(st.integers(0, 2))),
        ]
        events.append(draw(st.sampled_from(choices)))
    return events


def play(fanout: SingleCall | Spread, batches: list[list[Event]], *, begins: bool) -> list[object]:
    """All that can be seen of a fan-out."""
    seen: list[object] = []
    (part,) = fanout.parts
    seen += [part, fanout.usage(), fanout.untouched(part)]
    if begins:
        fanout.begin(part)
    try:
        for batch in batches:
            seen += fanout.feed(part, batch)
            seen += [fanout.untouched(part), fanout.usage_of(part)]
            if not fanout.wanted(part):
                seen.append("not wanted")
                break
        fanout.close(part)
        seen.append(fanout.end())
    except AndthenError as error:
        seen.append(str(error))
        fanout.fail(part, error)
    seen.append(fanout.usage())
    return seen


@given(
    told(),
    st.lists(st.integers(1, 3), max_size=8),
    st.fixed_dictionaries(
        {
            "prompt": TEXTS, "echo": st.booleans(), "stream": st.booleans(),
            "stop": st.lists(st.text("abc\n", min_size=1, max_size=3), max_size=3),
        }
    ),
    st.booleans(),
)  # fmt: skip
def test_the_plainest_fan_out_does_what_the_general_one_does(
    events: list[Event], cuts: list[int], fields: dict[str, object], begins: bool
) -> None:
    request = parse(json.dumps({"model": "team/m", **fields}).encode(), LIMITS)
    planned = plan(request, ROW)
    assert is_single_call(request, planned)
    batches: list[list[Event]] = []
    for size in [*cuts, len(events)]:
        batches, events = [*batches, events[:size]], events[size:]
    assert play(SingleCall(request, planned), batches, begins=begins) == play(
        Spread(request, planned), batches, begins=begins
    )

"""The cache of a real server: what is given again, to whom, how it looks and what it leaves in the books."""

from __future__ import annotations

import http.client
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from andthen.books.policy import Policy
from andthen.books.store import open_sqlite
from andthen.ledger.records import Budget
from tests.books.limiting import OwnRedis, redis_of_its_own
from tests.server.running import running
from tests.serving import Server, andthen, serving
from tests.upstream.vendor import Playing, Sent, choice, completion, json_reply

WAIT_S = 15
SCORED = {"temperature": 0, "echo": True, "logprobs": 2, "max_tokens": 1}


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str

    @property
    def outcome(self) -> str | None:
        return self.headers.get("x-andthen-cache")

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.text))

    @property
    def chunks(self) -> list[dict[str, Any]]:
        return [json.loads(line[6:]) for line in self.text.splitlines() if line.startswith("data: {")]

    @property
    def same(self) -> list[dict[str, Any]]:
        """All that does not differ from one reply to its like."""
        bodies = self.chunks if self.headers["content-type"] == "text/event-stream" else [self.json]
        return [{name: one[name] for name in one if name not in ("id", "created", "usage")} for one in bodies]


class Client(NamedTuple):
    server: Server
    secret: str

    def ask(self, cache_control: str | tuple[str, ...] = (), **fields: Any) -> Reply:
        """On a connection of its own."""
        body = json.dumps({"model": self.server.model, "prompt": "Once upon a time", "max_tokens": 8} | fields)
        link = http.client.HTTPConnection(self.server.url.removeprefix("http://"), timeout=WAIT_S)
        with closing(link):
            link.putrequest("POST", "/v1/completions")
            sent = [cache_control] if isinstance(cache_control, str) else cache_control
            headers = [("x-api-key", self.secret), ("content-length", str(len(body)))]
            for name, value in [*headers, *(("cache-control", one) for one in sent)]:
                link.putheader(name, value)
            link.endheaders(body.encode())
            reply = link.getresponse()
            return Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read().decode())


class Place(NamedTuple):
    server: Server
    vendor: Playing

    def client(self, name: str, **policy: Any) -> Client:
        """Somebody with a key of this name."""
        with closing(open_sqlite(self.server.home / "andthen.db")) as store:
            return Client(self.server, store.create_key(name, policy=Policy(**policy)).secret)

    def rows(self, name: str, count: int) -> list[dict[str, Any]]:
        """The ledger's rows of a key, oldest first, once there are so many."""
        deadline = time.monotonic() + WAIT_S
        while len(found := self._rows(name)) < count:
            assert time.monotonic() < deadline, found
            time.sleep(0.02)
        return found

    def _rows(self, name: str) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(f"file:{self.server.home / 'andthen.db'}?mode=ro", uri=True)) as raw:
            raw.row_factory = sqlite3.Row
            query = (
                "SELECT r.*, (SELECT count(*) FROM calls c WHERE c.request_id = r.id) AS calls FROM requests r "
                "JOIN keys k ON k.id = r.key_id WHERE k.name = ? ORDER BY started_at_ms, settled_at_ms"
            )
            return [dict(row) for row in raw.execute(query, (name,))]

    def measures(self) -> dict[str, float]:
        """The cache's metrics."""
        lines = self.server.get("/metrics").decode().splitlines()
        split = (line.rpartition(" ") for line in lines if line.startswith("andthen_cache_"))
        return {name: float(value) for name, _, value in split}


async def _echoing(sent: Sent) -> AsyncIterator[bytes]:
    yield json_reply(completion(choice(f"{sent.body['prompt']}!", 0, "stop")))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    vendor = Playing(_echoing)
    settings = f"""
[cache]
enabled = true

[models."team/text"]
address = "http://127.0.0.1:{vendor.port}/v1"
language = "openai_completions"

[models."team/dead"]
address = "http://127.0.0.1:1/v1"
language = "openai_completions"

[models."team/any"]
deployments = [{{ model = "team/text", order = 1 }}, {{ model = "team/dead" }}]

[models."team/exact"]
address = "http://127.0.0.1:1/v1"
language = "openai_completions"
deterministic = true

[models."team/seeded"]
deployments = [{{ model = "team/text", order = 1 }}, {{ model = "team/exact" }}]
"""
    with closing(vendor), serving(tmp_path_factory.mktemp("cache"), settings=settings) as server:
        yield Place(server, vendor)


SETTLED: list[dict[str, Any]] = [
    {"temperature": 0},
    {"seed": 7},
    {"seed": 7, "n": 2, "best_of": 3},
    {"seed": 7, "prompt": ["Once", "Twice"], "n": 2, "logprobs": 1},
    {"temperature": 0, "prompt": [300, 301], "logprobs": 0},
    SCORED,
]


@pytest.mark.parametrize("fields", SETTLED, ids=str)
def test_a_reply_is_given_again_and_costs_nothing(place: Place, fields: dict[str, Any]) -> None:
    client = place.client(f"again {SETTLED.index(fields)}")
    first, again = client.ask(**fields), client.ask(**fields)
    assert (first.status, first.outcome, "age" in first.headers) == (200, "miss", False)
    assert (again.status, again.outcome, int(again.headers["age"]) <= WAIT_S) == (200, "hit", True)
    assert again.same == first.same
    assert first.json["id"] != again.json["id"] == again.headers["x-request-id"]
    assert first.json["usage"]["total_tokens"] > 0
    assert again.json["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert again.headers["x-andthen-plan"] == first.headers["x-andthen-plan"]


@pytest.mark.parametrize("fields", [{"temperature": 0}, {"seed": 7, "n": 2, "logprobs": 1}, SCORED], ids=str)
def test_a_stream_is_given_again_chunk_by_chunk(place: Place, fields: dict[str, Any]) -> None:
    client = place.client(f"stream {len(fields)}")
    whole = client.ask(**fields)
    stream = fields | {"stream": True, "stream_options": {"include_usage": True}, "user": "reader-1"}
    made, again = client.ask("no-cache", **stream), client.ask(**stream)
    assert [whole.outcome, made.outcome, again.outcome] == ["miss", "bypass", "hit"]
    assert again.same == made.same
    assert again.text.endswith("data: [DONE]\n\n")
    assert again.chunks[-1]["usage"]["total_tokens"] == 0
    counted = client.ask(**fields, stream=True, stream_options={"continuous_usage_stats": True})
    assert {chunk["usage"]["total_tokens"] for chunk in counted.chunks} == {0}
    folded = client.ask(**fields)
    assert (folded.outcome, folded.same) == ("hit", whole.same), "what was streamed is given whole too"


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.5}, {"top_p": 0.2}], ids=str)
def test_what_chance_decides_is_made_each_time(place: Place, fields: dict[str, Any]) -> None:
    client = place.client(f"chance {fields}".translate(dict.fromkeys(b"{}':", " ")).strip())
    assert [client.ask(**fields).outcome for _ in range(2)] == ["bypass", "bypass"]


@pytest.mark.parametrize(
    ("number", "asked", "outcomes"),
    [
        (0, ["no-store", ""], ["bypass", "miss"]),
        (1, ["no-cache", ""], ["bypass", "hit"]),
        (2, ["", "No-Cache", "x, NO-STORE"], ["miss", "bypass", "bypass"]),
        (3, ["", "max-age=0", "max-age=3600", 'max-age="60"'], ["miss", "miss", "hit", "hit"]),
        (4, ["", "max-age=soon", "only-if-cached"], ["miss", "miss", "hit"]),
        (5, ["", ("private", "no-store")], ["miss", "bypass"]),
    ],
)
def test_the_caller_may_say_no(place: Place, number: int, asked: list[Any], outcomes: list[str]) -> None:
    client = place.client(f"control {number}")
    assert [client.ask(said, temperature=0).outcome for said in asked] == outcomes


def test_no_key_finds_what_another_was_given(place: Place) -> None:
    one, other = place.client("one"), place.client("other")
    assert [client.ask(seed=3).outcome for client in (one, other, one, other)] == ["miss", "miss", "hit", "hit"]


def test_a_hit_is_in_the_ledger_and_cost_nothing(place: Place) -> None:
    client = place.client("ledger")
    for _ in range(2):
        client.ask(seed=1, user="reader-1")
    made, hit = place.rows("ledger", 2)
    assert (made["origin"], made["calls"], made["completion_tokens"] > 0) == ("model", 1, True)
    nothing = ("cost_micros", "prompt_tokens", "completion_tokens", "calls", "reserved_tokens", "retries")
    assert (hit["origin"], *(hit[name] for name in nothing)) == ("cache", 0, 0, 0, 0, 0, 0)
    same = ("status", "ended_by", "model_asked", "model_answered", "plan", "user")
    assert [hit[name] for name in same] == [made[name] for name in same]
    assert (hit["queue_ms"], hit["first_ms"]) == (None, None), "they tell of a model's work"


def test_a_budget_that_is_spent_still_gives_what_was_paid_for(place: Place) -> None:
    most = Client(place.server, place.server.key).ask("no-store", temperature=0).json["usage"]["total_tokens"]
    client = place.client("spent", budgets=(Budget(window="total", tokens=most),))
    replies = [client.ask(temperature=0, seed=seed) for seed in (1, 1, 2, 1)]
    assert [reply.status for reply in replies] == [200, 200, 429, 200]
    assert [row["origin"] for row in place.rows("spent", 4)] == ["model", "cache", "model", "cache"]


def test_hits_count_as_requests_and_use_no_tokens(place: Place) -> None:
    most = Client(place.server, place.server.key).ask("no-store", temperature=0).json["usage"]["total_tokens"]
    client = place.client("limited", requests_per_minute=5, tokens_per_minute=3 * most + 60)
    left = [client.ask(temperature=0).headers["x-ratelimit-remaining-tokens"] for _ in range(4)]
    assert left[1] == left[2] == left[3]
    assert client.ask(temperature=0).outcome == "hit"
    assert client.ask(temperature=0).status == 429


def test_a_vendor_is_not_called_for_what_it_said_before(place: Place) -> None:
    client = place.client("vendor")
    called = len(place.vendor.vendor.sent)
    fields = {"model": "team/text", "prompt": "Say"}
    cold = [client.ask(**fields, temperature=0) for _ in range(3)]
    assert [reply.outcome for reply in cold] == ["miss", "hit", "hit"]
    assert len(place.vendor.vendor.sent) == called + 1
    seeded = [client.ask(**fields, seed=1).outcome for _ in range(2)]
    assert seeded == ["bypass", "bypass"], "its row does not say that a seed settles the text"
    assert len(place.vendor.vendor.sent) == called + 3


def test_a_fallbacks_reply_is_found_under_who_gave_it(place: Place) -> None:
    client = place.client("fallback")
    replies = [client.ask(model="team/any", prompt="Fall", temperature=0) for _ in range(2)]
    assert [reply.json["model"] for reply in replies] == ["team/text", "team/text"]
    direct = client.ask(model="team/text", prompt="Fall", temperature=0)
    assert (direct.outcome, direct.same) == ("hit", replies[0].same)


def test_a_fallback_that_keeps_no_seed_leaves_nothing(place: Place) -> None:
    before = place.measures()["andthen_cache_bytes"]
    reply = place.client("seeded").ask(model="team/seeded", prompt="Fall", seed=1)
    assert (reply.status, reply.outcome, reply.json["model"]) == (200, "miss", "team/text")
    assert place.measures()["andthen_cache_bytes"] == before


def test_metrics_tell_hits_misses_and_bytes(place: Place) -> None:
    client = place.client("measured")
    before = place.measures()
    for seed in (1, 1, None):
        client.ask(seed=seed)
    after = place.measures()
    for outcome in ("hit", "miss", "bypass"):
        name = f'andthen_cache_requests_total{{outcome="{outcome}"}}'
        assert after[name] == before.get(name, 0.0) + 1
    assert after["andthen_cache_bytes"] > before["andthen_cache_bytes"]


def test_it_is_off_unless_it_is_asked_for(server: Server) -> None:
    replies = [Client(server, server.key).ask(temperature=0) for _ in range(2)]
    assert [reply.outcome for reply in replies] == [None, None]
    assert replies[1].json["usage"]["total_tokens"] > 0


def test_only_whole_replies_are_kept(tmp_path: Path) -> None:
    with running(tmp_path / "home", "[cache]\nenabled = true\nreply_bytes = 1024") as server:
        broken = [server.complete("break it", temperature=0) for _ in range(2)]
        assert [(reply.status, reply.headers["x-andthen-cache"]) for reply in broken] == [(500, "miss")] * 2
        with server.sent("slow one", temperature=0, max_tokens=5, stream=True) as client:
            while b"data: " not in client.recv(4096):
                pass
        server.until_jobs(0)
        left = [server.complete("slow one", temperature=0, max_tokens=5).headers["x-andthen-cache"] for _ in range(2)]
        assert left == ["miss", "hit"], "who left had it ended"
        large = [server.complete("long", temperature=0, max_tokens=500).headers["x-andthen-cache"] for _ in range(2)]
        assert large == ["miss", "miss"], "too large"


def test_a_kept_reply_goes_out_as_fast_as_it_is_read(tmp_path: Path) -> None:
    with running(tmp_path / "home", "[cache]\nenabled = true") as server:
        first = server.complete("flood", temperature=0, max_tokens=1)
        assert first.headers["x-andthen-cache"] == "miss"
        counted = [server.complete("count", temperature=0, max_tokens=900, stream=True) for _ in range(2)]
        assert [reply.headers["x-andthen-cache"] for reply in counted] == ["miss", "hit"]
        assert counted[0].body.count(b"data: {") == counted[1].body.count(b"data: {") == 901


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[OwnRedis]:
    with redis_of_its_own(tmp_path) as found:
        yield found


def test_workers_and_servers_share_by_redis_what_none_can_read(own_redis: OwnRedis, tmp_path: Path) -> None:
    settings = f'[server]\nworkers = 2\n[cache]\nenabled = true\nredis = "{own_redis.url}"\n'
    with serving(tmp_path, settings=settings) as server:
        with closing(open_sqlite(tmp_path / "andthen.db")) as store:
            client = Client(server, store.create_key("stays").secret)
        replies = [client.ask(temperature=0, max_tokens=16) for _ in range(16)]
        assert [reply.outcome for reply in replies] == ["miss", *["hit"] * 15]
    with redis.Redis.from_url(own_redis.url) as raw:
        names = [name for name in raw.scan_iter("andthen:cache:*") if not name.endswith(b"probe".hex().encode())]
        assert len(names) == 1
        assert 0 < int(raw.pttl(names[0])) <= 3_600_000
        stored = raw.get(names[0])
    text = replies[0].json["choices"][0]["text"].strip()
    assert isinstance(stored, bytes)
    assert not any(word.encode() in stored for word in text.split() if len(word) > 3)
    andthen("keys", "revoke", "tests", home=tmp_path)
    with serving(tmp_path, settings=settings) as again:
        kept = Client(again, client.secret).ask(temperature=0, max_tokens=16)
        assert (kept.outcome, kept.same) == ("hit", replies[0].same), "after a restart"
        assert Client(again, again.key).ask(temperature=0, max_tokens=16).outcome == "miss", "another key"
        own_redis.kill()
        without = [Client(again, client.secret).ask(temperature=0, max_tokens=16) for _ in range(4)]
        assert [(reply.status, reply.outcome) for reply in without] == [(200, "miss")] * 4
        assert without[0].same == replies[0].same

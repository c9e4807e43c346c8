"""One long scenario on a real server at the debug level, and a search of all that it left anywhere for what nobody may
know: keys, the passwords of its database and its Redis, and the text of those who asked.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from andthen.books.policy import Policy
from andthen.books.store import open_store
from andthen.contract.limits import Limits
from andthen.ledger.records import Budget
from andthen.server.routes import Access, Routes
from tests.books.limiting import OwnRedis, free_port, redis_of_its_own
from tests.postgres import own_database
from tests.serving import ANDTHEN, Server, serving
from tests.upstream.vendor import Playing, Sent, choice, completion, json_reply

DATABASE, REDIS, METRICS, VENDOR, AWS = (
    f"sesame-{what}-5e5a4e" for what in ("db", "redis", "metrics", "vendor", "aws")
)
PROMPT = "An unmentionable beginning"
WAIT_S = 20


async def play(sent: Sent) -> AsyncIterator[bytes]:
    """Answers; or quotes in its error all that it was sent."""
    if sent.body["prompt"] == PROMPT:
        yield json_reply(completion(choice(" unmentionable end", reason="length"), usage=(3, 1)))
    else:
        quoted = json.dumps([sent.headers, sent.body])
        yield json_reply({"error": {"message": quoted, "code": quoted}}, int(sent.body["prompt"]), x_quoted=quoted)


class Scenario:
    """What was done, and what was told."""

    def __init__(self, server: Server, database: str, engine: sa.Engine) -> None:
        self.server = server
        self.database = database
        self.engine = engine
        self.secrets: list[str] = [DATABASE, REDIS, METRICS, VENDOR, AWS, server.key]
        self.told: list[str] = []
        self.statuses: set[int] = set()

    def ask(self, method: str, path: str, body: object = None, *, key: str | None, **headers: str) -> Any:
        """What it says, kept to be searched; and given, where it may hold a new secret."""
        host = self.server.url.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=WAIT_S)
        sent = headers | ({} if key is None else {"x-api-key": key})
        connection.request(method, path, None if body is None else json.dumps(body), sent)
        reply = connection.getresponse()
        text = reply.read().decode()
        connection.close()
        told = json.loads(text) if reply.headers["content-type"] == "application/json" and method != "HEAD" else {}
        issued = told.get("secret") if isinstance(told, dict) else None
        if issued:
            self.secrets.append(issued)
        self.statuses.add(reply.status)
        self.told.append(f"{reply.headers}\n{'' if issued else text}")
        return told

    def complete(self, model: str, prompt: str, key: str, **fields: object) -> None:
        for stream in (False, True):
            asked = {"model": model, "prompt": prompt, "max_tokens": 2, "stream": stream, **fields}
            self.ask("POST", "/v1/completions", asked, key=key)

    def command(self, *arguments: str) -> None:
        environment = os.environ | {"ANDTHEN_HOME": str(self.server.home)}
        done = subprocess.run([ANDTHEN, *arguments], env=environment, capture_output=True, text=True, check=False)
        self.told.append(done.stdout + done.stderr)

    def processes(self) -> list[str]:
        """The argument lists of the server's processes."""
        found, new = [], [self.server.process.pid]
        while new:
            pid = new.pop()
            found.append(Path(f"/proc/{pid}/cmdline").read_text())
            for task in Path(f"/proc/{pid}/task").iterdir():
                new += map(int, (task / "children").read_text().split())
        assert len(found) >= 3, "the supervisor, the engine and a worker"
        return found

    def rows(self) -> Iterator[str]:
        tables = sa.MetaData()
        tables.reflect(self.engine)
        with self.engine.connect() as reading:
            for table in tables.sorted_tables:
                for row in reading.execute(sa.select(table)):
                    yield f"{table.name} {row!r}"


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenario]:
    home = tmp_path_factory.mktemp("secrets")
    with ExitStack() as stack, pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "AKIA0123456789ABCDEF")
        environment.setenv("AWS_SECRET_ACCESS_KEY", AWS)
        environment.setenv("AWS_SESSION_TOKEN", AWS)
        environment.setenv("AWS_REGION", "us-east-1")
        vendor = stack.enter_context(closing(Playing(play)))
        url = stack.enter_context(own_database()).set(password=DATABASE)
        engine = sa.create_engine(url.set(drivername="postgresql+psycopg"))
        stack.callback(engine.dispose)
        database = url.render_as_string(hide_password=False)
        open_store(database, migrate=True).close()
        port = free_port()
        redis = stack.enter_context(redis_of_its_own(home, port, "--requirepass", REDIS))
        settings = f"""
[server]
metrics_key = "{METRICS}"
workers = 2
cors_origins = ["https://page.example"]
[logs]
level = "debug"
[books]
database = "{database}"
redis = "redis://:{REDIS}@127.0.0.1:{port}/0"
[upstream]
retries = 0
[vendors.bedrock]
address = "http://127.0.0.1:{vendor.port}"
private = true
[models."team/m"]
address = "http://127.0.0.1:{vendor.port}/v1"
language = "openai_completions"
key = "{VENDOR}"
"""
        server = stack.enter_context(serving(home, settings=settings))
        scenario = Scenario(server, database, engine)
        play_it(scenario, redis)
        scenario.told += scenario.processes()
        yield scenario


def play_it(scenario: Scenario, redis: OwnRedis) -> None:
    """Everything once, and everything that goes wrong."""
    own = scenario.server.key
    with closing(open_store(scenario.database)) as store:
        budget = Budget(window="day", tokens=100_000)
        bounded = store.create_key("bounded", policy=Policy(requests_per_minute=500, budgets=(budget,))).secret
        admin = store.create_key("administrator", admin=True).secret
        ended = store.create_key("ended").secret
        store.revoke_key("ended")
    scenario.secrets += [bounded, admin, ended]
    for key in (own, bounded):
        for model in ("local/tale", "team/m"):
            scenario.complete(model, PROMPT, key, user="reader")
    for status in ("400", "401", "404", "429", "500"):
        scenario.complete("team/m", status, own)
        scenario.complete("bedrock/some.model", status, own)
    scenario.ask("POST", "/admin/keys", {"name": "made"}, key=admin)
    scenario.ask("POST", "/admin/keys/made/rotate", {}, key=admin)
    for path, route in Routes(Limits()):
        for method in route.methods:
            for sent in (own, admin, METRICS, ended, None):
                if sent != admin or route.access is not Access.ADMIN or method in ("GET", "HEAD"):
                    scenario.ask(method, path, {"unmentionable": PROMPT}, key=sent, Origin="https://page.example")
    scenario.ask("PUT", "/v1/models", key=own)
    scenario.ask("GET", f"/v1/models?key={own}&prompt=unmentionable", key=None, Authorization=f"Basic {own}")
    redis.kill()
    scenario.complete("team/m", PROMPT, bounded)
    redis.start("--requirepass", "another")
    scenario.complete("team/m", PROMPT, bounded)
    with scenario.engine.connect() as other:
        other.execute(sa.text("ALTER TABLE requests RENAME TO mislaid"))
        other.commit()
        scenario.complete("team/m", PROMPT, bounded)
        scenario.ask("GET", "/v4/beta/usage", key=own)
        other.execute(sa.text("ALTER TABLE mislaid RENAME TO requests"))
        other.commit()
    for command in ("models", "keys list", "complete -m team/m 401"):
        scenario.command(*command.split())


def test_no_secret_is_told(scenario: Scenario) -> None:
    home = scenario.server.home
    log = (home / "server.log").read_text()
    assert re.search('"level": ?"debug"', log)
    assert scenario.statuses >= {200, 400, 401, 403, 404, 405, 502, 503}
    rows = list(scenario.rows())
    assert any(row.startswith("calls") for row in rows)
    left = [
        path.read_text(errors="replace")
        for path in home.rglob("*")
        if path.is_file() and path.name not in ("andthen.toml", "andthen.db")
    ]
    assert len(scenario.secrets) == len(set(scenario.secrets)) >= 11
    for place, texts in {"log": [log], "replies": scenario.told, "rows": rows, "files": left}.items():
        whole = "\n".join(texts)
        for secret in scenario.secrets:
            assert secret not in whole, f"{place}: {whole[max(0, whole.find(secret) - 300) :][:400]}"


def test_no_word_of_those_who_asked_is_kept(scenario: Scenario) -> None:
    log = (scenario.server.home / "server.log").read_text()
    for text in (log, *scenario.rows()):
        assert "unmentionable" not in text

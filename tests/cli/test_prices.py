"""`andthen prices`, and the price in `andthen models NAME`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.running import run

TOML = """
[models."local/tale"]
enabled = false
[models."team/draft"]
address = "http://127.0.0.1:9/v1"
language = "openai_completions"
[models."team/other"]
address = "http://127.0.0.1:9/v1"
language = "openai_completions"
[models."team/any"]
deployments = [{ model = "team/draft" }, { model = "team/other" }]
[prices."team/draft"]
prompt = "0.20"
completion = 0.6
request = "0.001"
from = 2026-11-01
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "andthen.toml").write_text(TOML)
    return tmp_path


def test_prices_are_listed(home: Path) -> None:
    done = run(home, "prices")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert (done.returncode, lines[0][:4]) == (0, ["NAME", "PROMPT", "CACHED", "COMPLETION"])
    assert lines[1][:8] == ["team/draft", "0.2", "0.2", "0.6", "0.6", "0.001", "since", "2026-11-01"]
    assert lines[2] == ["team/other", *["–"] * 5]
    assert "US dollars per million tokens" in done.stdout


def test_prices_are_told_as_json(home: Path) -> None:
    told = json.loads(run(home, "prices", "--json").stdout)
    assert [one["model"] for one in told] == ["team/draft", "team/other"]
    assert (told[0]["price"]["prompt"], told[0]["price"]["request"], told[1]["price"]) == ("0.2", "0.001", None)


def test_a_model_tells_its_price(home: Path) -> None:
    line = next(line for line in run(home, "models", "team/draft").stdout.splitlines() if line.startswith("price"))
    assert "0.2 for prompts, 0.6 for completions, 0.001 for each call; since 2026-11-01 (set in " in line
    assert "price          not known" in run(home, "models", "team/other").stdout
    assert json.loads(run(home, "models", "team/other", "--json").stdout)["price"] is None
    assert json.loads(run(home, "models", "team/draft", "--json").stdout)["price"]["completion"] == "0.6"


def test_a_mistake_in_a_price_ends_every_command_with_its_line(home: Path) -> None:
    (home / "andthen.toml").write_text(TOML.replace('"0.20"', '"cheap"'))
    done = run(home, "prices")
    assert done.returncode == 2
    assert "line 13: " in done.stderr

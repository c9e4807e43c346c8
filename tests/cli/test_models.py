"""`andthen models`: what is configured, what it takes, and pulling more from a hub that runs here."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from andthen.config import HOUSE_MODEL, load
from andthen.engine.hub import HubFile
from andthen.vendors.rows import vendors
from tests.cli.running import run

GGUF = Path(load({}).engine.models[HOUSE_MODEL].path)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(BaseHTTPRequestHandler):
    """The part of the hub's protocol by which one file is fetched: HEAD, then GET, of `/REPO/resolve/main/FILE`."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        body = GGUF.read_bytes()
        repo, _, file = self.path.removeprefix("/").partition("/resolve/main/")
        errors = {"team/none": "RepoNotFound", "team/gated": "GatedRepo"}
        wrong = errors.get(repo) or ("" if file == "models/draft.gguf" else "EntryNotFound")
        if wrong:
            self.send_response(403 if wrong == "GatedRepo" else 404)
            self.send_header("X-Error-Code", wrong)
            self.send_header("Content-Length", "0")
        else:
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body and not wrong:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def hub(home: Path) -> Iterator[dict[str, str]]:
    """The variables that lead to it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield offline(home) | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
        server.shutdown()
        thread.join()


def offline(home: Path) -> dict[str, str]:
    return {"HF_HOME": str(home / "hub"), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def test_the_configured_models_are_listed(tmp_path: Path) -> None:
    done = run(tmp_path, "models")
    assert (done.returncode, done.stderr) == (0, "")
    head, tale = done.stdout.splitlines()
    assert head.split() == ["NAME", "CONTEXT", "PARAMETERS", "SIZE", "SUFFIX", "DETERMINISTIC", "FILE"]
    assert tale.startswith(f"{HOUSE_MODEL}  ")
    assert tale.endswith(str(GGUF))
    assert list(tmp_path.iterdir()) == []


def test_models_of_the_settings_file_are_listed(tmp_path: Path) -> None:
    config = tmp_path / "other.toml"
    config.write_text(f"[models.'local/mine']\npath = '{GGUF}'\ncontext = 64\n")
    mine, tale = run(tmp_path, "models", "--config", config).stdout.splitlines()[1:]
    assert mine.split()[:2] == ["local/mine", "64"]
    assert tale.startswith(HOUSE_MODEL)


UPSTREAM = """
[vendors.openai]
key = "hunter2"

[models."team/fim"]
address = "http://127.0.0.1:9/v1"
language = "openai_completions"
model = "filler"
takes = { suffix = true, top_p = [0, 0.5] }
context = 4096

[models."team/any"]
deployments = [{ model = "team/fim", weight = 3 }, { model = "openai/other", order = 1 }]
"""


def test_models_upstream_and_names_for_several_are_listed(tmp_path: Path) -> None:
    (tmp_path / "andthen.toml").write_text(UPSTREAM)
    done = run(tmp_path, "models")
    assert (done.returncode, done.stderr) == (0, "")
    local, remote, routes = done.stdout.split("\n\n")
    assert HOUSE_MODEL in local
    head, fim, *listed, others = remote.splitlines()
    assert head.split()[:5] == ["NAME", "CONTEXT", "SUFFIX", "LANGUAGE", "VENDOR"]
    assert fim.split() == ["team/fim", "4,096", "yes", "openai_completions", "team", "filler"]
    assert listed
    assert all(line.startswith("openai/") for line in listed)
    assert others.startswith("openai/…")
    assert [line.split() for line in routes.splitlines()[1:]] == [
        ["team/any", "team/fim", "0", "3"],
        ["team/any", "openai/other", "1", "1"],
    ]
    assert "hunter2" not in done.stdout


def test_a_model_upstream_tells_what_it_takes(tmp_path: Path) -> None:
    (tmp_path / "andthen.toml").write_text(UPSTREAM)
    shown = run(tmp_path, "models", "team/fim").stdout
    rows = {line.split("  ")[0]: line.split(maxsplit=1)[1] for line in shown.splitlines() if line}
    assert rows["address"] == "http://127.0.0.1:9/v1"
    assert rows["key"] == "no"
    assert rows["top_p"].split() == ["native", "0", "to", "0.5"]
    assert rows["seed"].endswith("the vendor promises no more than to try")
    assert rows["logit_bias"] == "native"
    row = json.loads(run(tmp_path, "models", "openai/anything", "--json").stdout)
    assert (row["name"], row["fill_in_the_middle"]) == ("openai/anything", False)
    assert run(tmp_path, "models", "team/any").stdout.splitlines() == [
        "team/any stands for",
        "team/fim, order 0, weight 3",
        "openai/other, order 1, weight 1",
    ]
    assert json.loads(run(tmp_path, "models", "team/any", "--json").stdout)["deployments"][0]["model"] == "team/fim"


def test_the_matrix_has_every_vendor_and_every_configured_model(tmp_path: Path) -> None:
    (tmp_path / "andthen.toml").write_text(UPSTREAM)
    done = run(tmp_path, "models", "--matrix", variables={"COLUMNS": "100"})
    assert (done.returncode, done.stderr) == (0, "")
    legend, *tables = done.stdout.rstrip().split("\n\n")
    assert legend.startswith("N native, E emulated, – refused")
    names = [f"{prefix}/" for prefix in vendors()]
    for shown in tables:
        head, *lines = shown.splitlines()
        assert max(map(len, [head, *lines])) <= 100
        assert {line.split()[0] for line in lines} == {*names, "team/fim", HOUSE_MODEL}
    cells = next(line for line in done.stdout.splitlines() if "0..0.5" in line or "≤ 0.5" in line)
    assert cells.startswith("team/fim")
    assert {name for shown in tables for name in shown.splitlines()[0].split()} >= set(
        row_of_the_house(tmp_path)["parameters"]
    )


def row_of_the_house(home: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads(run(home, "models", HOUSE_MODEL, "--json").stdout)
    return found


def test_a_model_tells_what_it_takes(tmp_path: Path) -> None:
    done = run(tmp_path, "models", HOUSE_MODEL)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line.split()[0]: line.split(maxsplit=2) for line in done.stdout.splitlines() if line}
    assert rows["temperature"][1:] == ["native", "0 to 2"]
    assert rows["seed"][2] == "-2⁶³ to 2⁶³−1"
    assert rows["response_format"][1] == "refused"
    assert run(tmp_path, "models", "tale").stdout == done.stdout
    row = json.loads(run(tmp_path, "models", HOUSE_MODEL, "--json").stdout)
    assert (row["name"], row["deterministic"]) == (HOUSE_MODEL, True)
    assert row["parameters"]["n"] == {"support": "native", "minimum": 1, "maximum": 128}


def test_the_model_that_ships_shows_its_card(tmp_path: Path) -> None:
    card = GGUF.with_name("CARD.md").read_text(encoding="utf-8")
    assert run(tmp_path, "models", HOUSE_MODEL).stdout.endswith("\n\n" + card)
    (tmp_path / "andthen.toml").write_text(f"[models.'local/mine']\npath = '{GGUF}'\n")
    mine = run(tmp_path, "models", "mine")
    assert mine.returncode == 0
    assert card not in mine.stdout


def test_a_damaged_file_is_told_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(GGUF.read_bytes()[:-10_000])
    (tmp_path / "andthen.toml").write_text("[models.'local/cut']\npath = 'cut.gguf'\n")
    for arguments in (["models", "cut"], ["complete", "x", "--model", "cut"]):
        done = run(tmp_path, *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert "corrupted or incomplete" in done.stderr
        assert done.stderr.endswith("Error: local/cut can't be read, as told above: mend or replace its file\n")


def test_an_unknown_model_is_exit_code_2(tmp_path: Path) -> None:
    done = run(tmp_path, "models", "local/nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert "local/nothing is not configured: `andthen models` lists the models" in done.stderr


def test_a_pulled_model_can_be_used_and_later_without_the_hub(tmp_path: Path) -> None:
    name = "hf:team/stories:models/draft.gguf"
    before = run(tmp_path, "complete", "x", "--model", f"draft={name}", variables=offline(tmp_path))
    assert (before.returncode, before.stdout) == (2, "")
    assert f"run `andthen models pull {name}`" in before.stderr
    with hub(tmp_path) as there:
        pulled = run(tmp_path, "models", "pull", name, variables=there)
    assert pulled.returncode == 0, pulled.stderr
    assert Path(pulled.stdout.strip()).read_bytes() == GGUF.read_bytes()
    assert f"andthen serve --model draft={name}" in pulled.stderr
    after = run(
        tmp_path,
        "complete",
        "x",
        "--max-tokens",
        "1",
        "--json",
        "--model",
        f"draft={name}",
        variables=offline(tmp_path),
    )
    assert after.returncode == 0, after.stderr
    assert json.loads(after.stdout)["model"] == "local/draft"
    again = run(tmp_path, "models", "pull", name, variables=offline(tmp_path))
    assert (again.returncode, again.stdout) == (0, pulled.stdout)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:team/none:models/draft.gguf", "the hub has no repository team/none, or it is private"),
        ("hf:team/gated:models/draft.gguf", "ask for access on its page"),
        ("hf:team/stories:other.gguf", "team/stories has no file other.gguf"),
    ],
)
def test_what_the_hub_does_not_give_is_told(tmp_path: Path, name: str, message: str) -> None:
    with hub(tmp_path) as there:
        done = run(tmp_path, "models", "pull", name, variables=there)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: {name}: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hub_that_cannot_be_reached_is_told(tmp_path: Path) -> None:
    variables = offline(tmp_path) | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = run(tmp_path, "models", "pull", "hf:team/stories:draft.gguf", variables=variables)
    assert (done.returncode, done.stdout) == (1, "")
    assert "the hub can't be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_offline_is_told(tmp_path: Path) -> None:
    done = run(tmp_path, "models", "pull", "hf:team/stories:draft.gguf", variables=offline(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert "HF_HUB_OFFLINE forbids to ask" in done.stderr


@pytest.mark.parametrize(
    "name", ["draft.gguf", "hf:team:draft.gguf", "hf:team/stories:../x.gguf", "hf:a/b:c.bin", "hf:"]
)
def test_a_name_that_is_none_is_exit_code_2(tmp_path: Path, name: str) -> None:
    done = run(tmp_path, "models", "pull", name)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not of the form hf:owner/repo:file.gguf" in done.stderr


def test_a_hub_name_is_written_as_it_is_read() -> None:
    for text in ("hf:team/stories:draft.gguf", "team/stories:a/b/draft-1.5_Q8.gguf"):
        assert str(HubFile.parse(text)).removeprefix("hf:") == text.removeprefix("hf:")

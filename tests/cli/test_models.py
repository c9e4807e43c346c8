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


def test_a_model_tells_what_it_takes(tmp_path: Path) -> None:
    done = run(tmp_path, "models", HOUSE_MODEL)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line.split()[0]: line.split(maxsplit=2) for line in done.stdout.splitlines() if line}
    assert rows["temperature"][1:] == ["native", "0 to 2"]
    assert rows["response_format"][1] == "refused"
    assert run(tmp_path, "models", "tale").stdout == done.stdout
    row = json.loads(run(tmp_path, "models", HOUSE_MODEL, "--json").stdout)
    assert (row["name"], row["deterministic"]) == (HOUSE_MODEL, True)
    assert row["parameters"]["n"] == {"support": "native", "minimum": 1, "maximum": 128}


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

"""Unmodified clients of other people against a real server, each in an environment of its own.

`make test` makes the environments from `requirements/client-*.txt`.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.serving import Server

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
TIMEOUT_S = 120


def run(command: list[str | Path], environment: dict[str, str], cwd: Path = HERE) -> str:
    """The command's standard output; its whole output where it fails."""
    done = subprocess.run(
        command, env=os.environ | environment, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def python(name: str) -> Path:
    found = ROOT / ".venvs" / name / "bin" / "python"
    assert found.exists(), f"{found} is missing: `make clients` makes it"
    return found


@pytest.mark.parametrize("name", ["scale-gp", "scale-gp-beta"])
def test_scale(server: Server, name: str) -> None:
    script = HERE / "scripts" / f"{name.replace('-', '_')}_.py"
    environment = {"SGP_CLIENT_BASE_URL": server.url, "SGP_API_KEY": server.key, "SGP_ACCOUNT_ID": "account"}
    run([python(name), script], environment | {"MODEL": server.model})


@pytest.mark.parametrize("path", ["/v4/beta", "/v1"])
def test_openai(server: Server, path: str) -> None:
    run([python("openai"), HERE / "scripts" / "openai_.py"], openai_environment(server, path))


@pytest.mark.parametrize("path", ["/v4/beta", "/v1"])
def test_openai_of_node(server: Server, path: str) -> None:
    node = ROOT / ".venvs" / "node" / "bin" / "node"
    run([node, "client.mjs"], openai_environment(server, path), cwd=HERE / "node")


def test_langchain(server: Server) -> None:
    run([python("langchain-openai"), HERE / "scripts" / "langchain_openai_.py"], openai_environment(server, "/v1"))


def openai_environment(server: Server, path: str) -> dict[str, str]:
    return {"OPENAI_BASE_URL": server.url + path, "OPENAI_API_KEY": server.key, "MODEL": server.model}

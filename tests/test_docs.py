"""Every block of code in README and docs runs, against a real server where it speaks to one.

By its language: `sh` by bash, with `$KEY` a valid key and 127.0.0.1:8000 the server's address, except that `make` is
asked only whether it would know what to do; `python` in the environment of the client that it imports; `toml` as a
settings file; `text` is no code. A block of another language fails.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from andthen import config
from andthen.vendors.rows import vendors
from checks.docs import pages
from tests.serving import Server, serving

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
CLIENTS = {"openai": "openai", "scale_gp": "scale-gp", "scale_gp_beta": "scale-gp-beta"}
HOUSE_FILE = Path(config.load({}).engine.models[config.HOUSE_MODEL].path)
TIMEOUT_S = 120


def blocks(language: str) -> Iterator[object]:
    for page in pages(ROOT):
        text = page.read_text()
        for block in BLOCK.finditer(text):
            if block["language"] == language:
                name = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, block.start()) + 1}"
                yield pytest.param(block["code"], id=name)


def run(command: list[str | Path], server: Server, cwd: Path) -> None:
    bins = [ROOT / ".venv" / "bin", ROOT / ".venvs" / "lm-eval" / "bin", Path(sys.executable).parent]
    environment = os.environ | {
        "KEY": server.key,
        "OPENAI_API_KEY": server.key,
        "SGP_API_KEY": server.key,
        "ANDTHEN_HOME": str(server.home),
        "HF_HOME": str(cwd / "cache"),
        "PATH": os.pathsep.join([*map(str, bins), os.environ["PATH"]]),
    }
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def at(server: Server, code: str) -> str:
    return code.replace("http://127.0.0.1:8000", server.url)


@pytest.mark.parametrize("code", [*blocks("sh")])
def test_shell(code: str, server: Server, tmp_path: Path) -> None:
    if code.startswith("make"):
        for line in code.splitlines():
            subprocess.run(["make", "--dry-run", *shlex.split(line, comments=True)[1:]], cwd=ROOT, check=True)
    elif code.startswith("andthen serve"):
        with serving(tmp_path, *shlex.split(code, comments=True)[2:]) as started:
            assert started.complete()["choices"]
    else:
        shutil.copytree(ROOT / "tests" / "clients" / "lm_eval_tasks", tmp_path, dirs_exist_ok=True)
        run(["bash", "-euo", "pipefail", "-c", at(server, code)], server, tmp_path)


@pytest.mark.parametrize("code", [*blocks("python")])
def test_python(code: str, server: Server, tmp_path: Path) -> None:
    (client,) = (CLIENTS[name] for name in re.findall(r"^from (\w+) import", code, re.MULTILINE) if name in CLIENTS)
    run([ROOT / ".venvs" / client / "bin" / "python", "-c", at(server, code)], server, tmp_path)


@pytest.mark.parametrize("code", [*blocks("toml")])
def test_settings(code: str, tmp_path: Path) -> None:
    settings = tomllib.loads(code)
    tables = [*settings.get("models", {}).values(), *settings.get("vendors", {}).values()]
    for table in tables:
        if "path" in table:
            shutil.copy(HOUSE_FILE, tmp_path / table["path"])
    for table in [*tables, settings.get("upstream", {})]:
        if "ca_file" in table:
            trustme.CA().cert_pem.write_to_path(tmp_path / table["ca_file"])
    words = [*(row.key_variable for row in vendors().values()), *(table.get("key_variable", "") for table in tables)]
    keys = {variable.removesuffix("?"): "secret" for word in words for variable in word.split()}
    path = tmp_path / "andthen.toml"
    path.write_text(code)
    assert config.load(keys | {"ANDTHEN_HOME": str(tmp_path)}, file=path).file == path


def test_no_block_goes_untested() -> None:
    for page in pages(ROOT):
        for block in BLOCK.finditer(page.read_text()):
            assert block["language"] in {"sh", "python", "toml", "text", ""}, page
            drawn = block["language"] == ""
            assert not drawn or page.name == "ARCHITECTURE.md", f"{page}: a block without its language"

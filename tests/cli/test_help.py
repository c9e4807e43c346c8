"""What the command says of itself, and how it fails."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from andthen import __version__
from andthen.cli import COMMANDS, EXIT_CODES
from andthen.cli.docs import cli_markdown
from tests.cli.running import environment, run
from tests.serving import ANDTHEN


def test_help_names_every_command(tmp_path: Path) -> None:
    done = run(tmp_path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for command in COMMANDS:
        assert re.search(rf"^  {command} +\w", done.stdout, re.MULTILINE)
    assert run(tmp_path, "-h").stdout == done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        *COMMANDS,
        "keys create",
        "keys list",
        "keys revoke",
        "models pull",
        "ledger export",
        "ledger show",
        "ledger prune",
    ],
)
def test_every_command_has_help(tmp_path: Path, command: str) -> None:
    done = run(tmp_path, *command.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: andthen {command} ")
    assert not [line for line in done.stdout.splitlines() if len(line) > 100]


def test_help_in_a_narrow_terminal_stays_within_it(tmp_path: Path) -> None:
    reader, writer = pty.openpty()
    subprocess.run([ANDTHEN, "--help"], stdout=writer, env=environment(tmp_path, COLUMNS="60"), check=True)
    os.close(writer)
    shown = os.read(reader, 65_536).decode()
    os.close(reader)
    assert max(map(len, shown.splitlines())) <= 60


def test_the_version_is_told(tmp_path: Path) -> None:
    assert run(tmp_path, "--version").stdout == f"andthen {__version__}\n"


def test_the_module_is_the_command(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "andthen", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"andthen {__version__}\n"


def test_help_costs_little(tmp_path: Path) -> None:
    code = "import sys; sys.argv[1:] = ['--help']\nimport atexit, runpy\n"
    code += "atexit.register(lambda: print(*sys.modules, file=sys.stderr)); runpy.run_module('andthen')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"numpy", "sqlalchemy", "alembic", "aiohttp", "uvloop", "structlog", "huggingface_hub", "asyncio"}
    assert heavy & set(done.stderr.split()) == set()
    began = time.process_time()
    children = os.times().children_user
    run(tmp_path, "--help")
    assert os.times().children_user - children + time.process_time() - began < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sevre"], "No such command 'sevre'"),
        (["serve", "--prot", "1"], "No such option"),
        (["keys", "create"], "Missing option '--name'"),
        (["complete"], "Give a PROMPT"),
    ],
)
def test_a_wrong_call_is_exit_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_setting_is_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "andthen.toml").write_text("[server]\nprot = 1\n")
    done = run(tmp_path, "models")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"Error: {tmp_path}/andthen.toml, line 2: [server] has no setting `prot`. Did you mean `port`?\n"
    )


@pytest.mark.parametrize("arguments", ["complete --help", "complete x --json"])
def test_output_that_nobody_reads_is_no_traceback(tmp_path: Path, arguments: str) -> None:
    command = f"{shlex.quote(str(ANDTHEN))} {arguments} | true"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        env=environment(tmp_path, PYTHONUNBUFFERED=""),
        check=False,
    )
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", [["--help"], ["models"], ["complete", "x", "--json"], ["complete", "x"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_finds_no_room_is_no_traceback(tmp_path: Path, arguments: list[str], unbuffered: str) -> None:
    variables = environment(tmp_path, PYTHONUNBUFFERED=unbuffered)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [ANDTHEN, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, env=variables, check=False
        )
    assert (done.returncode, done.stderr) == (1, "Error: [Errno 28] No space left on device\n")


def test_the_page_tells_every_command_and_every_exit_code() -> None:
    page = cli_markdown()
    for command in [*COMMANDS, "keys create", "keys revoke", "models pull"]:
        assert f"### `andthen {command}`" in page
    for code in EXIT_CODES:
        assert f"| {code} |" in page

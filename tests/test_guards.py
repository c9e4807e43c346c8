"""The suite's own guards work: no way out, and no skip that passes for a pass."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

SKIPS = """
import pytest

def test_skips_itself():
    pytest.skip("not today")

@pytest.mark.xfail(strict=True)
def test_is_expected_to_fail():
    assert False

def test_passes():
    pass
"""


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_the_outside_is_not_reached(host: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.settimeout(0.1)
        with pytest.raises(RuntimeError, match="loopback only"):
            probe.connect((host, 9))


def test_no_name_of_the_outside_is_looked_up() -> None:
    with pytest.raises(RuntimeError, match="loopback only"):
        socket.getaddrinfo("example.invalid", 9)


def test_loopback_is_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()


@pytest.mark.parametrize(("ci", "said"), [("true", "2 failed, 1 passed"), ("", "1 passed, 1 skipped, 1 xfailed")])
def test_a_skip_fails_in_ci(tmp_path: Path, ci: str, said: str) -> None:
    (tmp_path / "test_skips.py").write_text(SKIPS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.guards", "-p", "no:cacheprovider", str(tmp_path)],
        env=os.environ | {"CI": ci, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said in run.stdout, run.stdout
    assert run.returncode == (1 if ci else 0)

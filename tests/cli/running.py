"""The command, run as people run it: a process of its own, a state folder of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.serving import ANDTHEN


def environment(home: Path, **variables: str) -> dict[str, str]:
    """This process's variables, with only these of andthen's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANDTHEN_")}
    return kept | {"ANDTHEN_HOME": str(home)} | variables


def run(
    home: Path, *arguments: str | Path, stdin: bytes = b"", variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [ANDTHEN, *arguments],
        input=stdin,
        capture_output=True,
        env=environment(home, **(variables or {})),
        timeout=60,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

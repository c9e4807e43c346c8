"""Log lines, as a process of their own writes them."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

SCRIPT = """
import logging, sys, structlog
from andthen.observability.logs import LogSettings, configure
configure(LogSettings(level=sys.argv[1], format=sys.argv[2]))
log = structlog.get_logger("andthen.test")
log.debug("quiet")
with structlog.contextvars.bound_contextvars(request_id="cmpl-1"):
    log.info("said", name="a\\nb\\x1b[31m", count=2)
    logging.getLogger("aiohttp.client").warning("of %s\\n", "aiohttp")
try:
    secret = "at-" + "secret"
    raise ValueError("wrong")
except ValueError:
    log.exception("failed")
"""


AGAIN = """
import structlog
from andthen.observability.logs import LogSettings, configure
log = structlog.get_logger("andthen.test")
for level, style in (("info", "json"), ("debug", "console"), ("error", "json")):
    configure(LogSettings(level=level, format=style))
    log.debug("quiet")
    log.info("said")
"""


def run(level: str, style: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, level, style], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_an_event_is_one_json_object_a_line() -> None:
    said, library, failed = map(json.loads, run("info", "auto"))
    assert said.pop("at").endswith("Z")
    assert said == {"event": "said", "level": "info", "name": "a\nb\x1b[31m", "count": 2, "request_id": "cmpl-1"}
    assert (library["event"], library["level"], library["request_id"]) == ("of aiohttp\n", "warning", "cmpl-1")
    assert (failed["event"], failed["level"]) == ("failed", "error")
    assert "ValueError: wrong" in failed["exception"]


def test_a_traceback_shows_no_local_variables() -> None:
    for style in ("json", "console"):
        assert "at-secret" not in "\n".join(run("debug", style))


def test_the_level_is_the_least_that_is_written() -> None:
    assert json.loads(run("debug", "json")[0])["event"] == "quiet"
    assert [json.loads(line)["event"] for line in run("error", "json")] == ["failed"]


def test_what_is_set_again_holds_for_loggers_that_have_spoken_too() -> None:
    done = subprocess.run([sys.executable, "-c", AGAIN], capture_output=True, text=True, check=True)
    first, *later = done.stderr.splitlines()
    assert json.loads(first)["event"] == "said"
    assert [line.split("[")[1].split("]")[0].strip() for line in later] == ["debug", "info"]


def test_a_value_cannot_break_a_line_for_eyes() -> None:
    lines = run("info", "console")
    said, library = lines[:2]
    assert r"a\nb\x1b[31m" in said
    assert "request_id=cmpl-1" in said
    assert r"of aiohttp\n" in library
    assert "\x1b" not in "".join(lines)


def test_a_terminal_gets_lines_for_eyes() -> None:
    reader, writer = pty.openpty()
    subprocess.run([sys.executable, "-c", SCRIPT, "info", "auto"], stderr=writer, check=True)
    os.close(writer)
    shown = os.read(reader, 65_536).decode()
    os.close(reader)
    assert "said" in shown
    assert not shown.startswith("{")


def test_nobody_fails_by_a_log_that_cannot_be_written() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT + "print('went on')", "info", "auto"],
            stdout=subprocess.PIPE, stderr=full, text=True, check=False,
        )  # fmt: skip
    assert done.stdout == "went on\n"

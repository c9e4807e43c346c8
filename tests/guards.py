"""A pytest plugin: no network but loopback, and no skip that passes for a pass in CI."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator
from ipaddress import ip_address

import pytest

# For the processes that tests start: a proxy that nobody listens at stands between them and the outside.
_NOWHERE = "http://127.0.0.1:9"
for name in ("http_proxy", "https_proxy", "all_proxy"):
    os.environ[name] = os.environ[name.upper()] = _NOWHERE
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost,::1"
os.environ["HF_HUB_OFFLINE"] = "1"

# A shell makes what it starts in the background deaf to SIGINT, and so everything that tests start from there.
signal.signal(signal.SIGINT, signal.default_int_handler)


class OutsideReached(RuntimeError):
    """A test spoke to an address that is not on this machine."""


def is_loopback(host: object) -> bool:
    if isinstance(host, bytes | bytearray):
        host = host.decode()
    if host in (None, "", "localhost"):
        return True
    try:
        return ip_address(str(host)).is_loopback
    except ValueError:
        return False


def _guard(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # a path of the file system is on this machine
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if not is_loopback(host):
        raise OutsideReached(f"{event} {host!r}: tests reach loopback only")


sys.addaudithook(_guard)

_CI = os.environ.get("CI") == "true"


def _as_failure(report: pytest.TestReport | pytest.CollectReport) -> None:
    """A test that did not run has shown nothing."""
    if _CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, which counts as a failure where CI=true: {report.longrepr}"
        vars(report).pop("wasxfail", None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _as_failure(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _as_failure(report)
    return report

"""Whether a request comes from a program on this machine, as far as its headers tell. They can't tell of a proxy that
adds none and writes a `host` of its own; so what is open to this machine is so only where a setting says it.
"""

from __future__ import annotations

import ipaddress
import re

from andthen.server.http import Exchange

_HOST = re.compile(r"(localhost|127(?:\.\d{1,3}){3}|\[[0-9a-f:]+\])(:\d{1,5})?", re.IGNORECASE)
_OWN_SITE = (b"same-origin", b"none")
_PASSED_ON = (b"forwarded", b"via", b"x-real-ip")


def is_loopback(host: str) -> bool:
    """Only this machine can reach a server that listens there."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def asked_here(exchange: Exchange) -> bool:
    """Of a request to a server that listens on a loopback address.

    It names this machine in `host`: a page whose name was made to lead here (DNS rebinding) is asked for by that name.
    No header tells of a proxy. And no page of another site sent it, one on another port of this machine included:
    browsers say which did in `sec-fetch-site`, and in `origin` with all that is not a plain GET.
    """
    hosts = [value.decode("latin-1") for name, value in exchange.headers if name == b"host"]
    if len(hosts) != 1 or not (named := _HOST.fullmatch(hosts[0])) or not is_loopback(named[1].strip("[]")):
        return False
    for name, value in exchange.headers:
        if name in _PASSED_ON or name.startswith(b"x-forwarded-"):
            return False
        if name == b"sec-fetch-site" and value.lower() not in _OWN_SITE:
            return False
        if name == b"origin" and value.decode("latin-1").lower() != f"http://{hosts[0].lower()}":
            return False
    return True

"""nginx and Caddy before a server, each as an unprivileged process with connections to the server that it keeps."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.books.limiting import free_port
from tests.deploying import DEPLOY

WAIT_S = 15

NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr error;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream andthen {{
        server 127.0.0.1:{server};
        keepalive 2;
    }}
    server {{
        listen 127.0.0.1:{port};
        proxy_http_version 1.1;
        proxy_buffering off;
        location / {{
            proxy_pass http://andthen;
            proxy_set_header Connection $http_connection;
            proxy_set_header Upgrade $http_upgrade;
        }}
    }}
}}
"""
"""With the upgrade passed on, as it is set for WebSockets."""


def _nginx(folder: Path, port: int, server: int) -> list[str]:
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, server=server))
    return ["nginx", "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]


def _caddy(folder: Path, port: int, server: int) -> list[str]:
    (folder / "Caddyfile").write_text(
        "{\n\tadmin off\n\tauto_https off\n\tdefault_bind 127.0.0.1\n}\nimport " + str(folder / "site") + "\n"
    )
    # The repository's own site, without its global options, which the file above has.
    site = (DEPLOY / "Caddyfile").read_text()
    (folder / "site").write_text(site[site.index("{$SITE") :])
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


COMMANDS = {"nginx": _nginx, "caddy": _caddy}


@contextmanager
def proxy(name: str, server: int) -> Iterator[int]:
    """The port at which a proxy before the server's port listens."""
    program = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip(f"the server is tested behind {name}, and none is here: `make proxies` installs it")
    port = free_port()
    with tempfile.TemporaryDirectory() as made:  # not below pytest's, which is for its user's eyes only
        folder = Path(made)
        folder.chmod(0o777)
        _, *arguments = COMMANDS[name](folder, port, server)
        variables = {"SITE": f":{port}", "REPLICAS": f"127.0.0.1:{server}"}
        variables |= dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"), made)
        user = "nobody" if os.geteuid() == 0 else None
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [program, *arguments], stdout=log, stderr=log, env=os.environ | variables, user=user, cwd=made
            )
        try:
            _wait_until_it_listens(port, process, folder / "log")
            yield port
        finally:
            process.terminate()
            process.wait(WAIT_S)


def _wait_until_it_listens(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        else:
            return

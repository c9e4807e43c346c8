"""`andthen serve` with the scripted engine behind it: `python -m tests.server.scripted_server HOME`.

Prints the port once it serves. Settings stand in HOME/andthen.toml; a model named local/broken makes an engine that
can't start.
"""

from __future__ import annotations

import sys
from pathlib import Path

from andthen import supervisor
from andthen.config import Config, load
from andthen.observability import logs

ENGINE = (sys.executable, "-m", "tests.server.scripted_engine")


def main(home: Path) -> int:

    def read() -> Config:
        return load({"ANDTHEN_HOME": str(home)})

    config = read()
    logs.configure(config.logs)
    listening = supervisor.bind(config.server.host, config.server.port)
    port = listening.getsockname()[1]
    return supervisor.serve(config, listening, lambda: print(port, flush=True), read, ENGINE)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

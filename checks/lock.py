"""Resolves `requirements/*.txt` again: every package for every platform, by version and hash, from the public index.

The settings of the machine that runs it (mirrors, extra indexes, link folders) are kept out, and `tests/test_locks.py`
says whether any got in.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

FOLDER = Path("requirements")

COMPILE = (
    *("uv", "pip", "compile", "--no-config", "--quiet", "--universal", "--python-version", "3.11"),
    *("--generate-hashes", "--no-emit-index-url", "--no-emit-find-links"),
)
COMPILED_HERE = "llama-cpp-python"
"""The extra that no lock has."""


def recipes(folder: Path = FOLDER) -> dict[Path, tuple[str, ...]]:
    """Lock → what it is resolved from, in the order in which they may look at each other's versions."""
    locks: dict[Path, tuple[str, ...]] = {
        folder / "runtime.txt": ("pyproject.toml",),
        folder / "dev.txt": ("pyproject.toml", "--group", "dev", "--constraints", str(folder / "runtime.txt")),
        folder / "image.txt": ("pyproject.toml", *_extras(), "--constraints", str(folder / "dev.txt")),
        folder / "build.txt": (str(folder / "build.in"), "--constraints", str(folder / "dev.txt")),
    }
    for source in sorted(folder.glob("client-*.in")):
        locks[source.with_suffix(".txt")] = (str(source),)
    return locks


def _extras() -> list[str]:
    """What the container's image has: all that needs no compiler."""
    extras = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return [f"--extra={extra}" for extra in extras if extra != COMPILED_HERE]


def main(options: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
    environment["UV_CUSTOM_COMPILE_COMMAND"] = "make lock"
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    for lock, sources in recipes().items():
        print(lock)
        subprocess.run([*COMPILE, *sources, *options, "--output-file", str(lock)], check=True, env=environment)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Holds the code to its sizes: no file of src over 500 lines, no function over 60.

Seven arguments at most is the linter's part (`PLR0913`).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FILE_LINES = 500
FUNCTION_LINES = 60


def oversized(path: Path) -> Iterator[str]:
    """What is too long in one Python file, as `path:line: what`."""
    source = path.read_text(encoding="utf-8")
    lines = len(source.splitlines())
    if lines > FILE_LINES:
        yield f"{path}:1: {lines} lines, more than {FILE_LINES}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            if length > FUNCTION_LINES:
                yield f"{path}:{node.lineno}: {node.name} has {length} lines, more than {FUNCTION_LINES}"


def main(folder: Path) -> int:
    found = [line for path in sorted(folder.rglob("*.py")) for line in oversized(path)]
    print("\n".join(found) or f"{folder}: no file over {FILE_LINES} lines, no function over {FUNCTION_LINES}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path("src")))

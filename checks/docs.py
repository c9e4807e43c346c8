"""Keeps what the docs print of the code fresh.

A part of a page between the comments `<!-- printed by andthen.room.module:function -->` and `<!-- end -->` is what
that function returns. `make docs` writes it, `make check` fails where it is stale, and where a public function named
`*_markdown` is printed on no page.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PRINTED = re.compile(r"(<!-- printed by (?P<module>[\w.]+):(?P<function>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages(root: Path) -> list[Path]:
    return [*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md"))]


def printed(text: str) -> str:
    """The page as the code of this moment prints it."""

    def fresh(part: re.Match[str]) -> str:
        function = getattr(importlib.import_module(part["module"]), part["function"])
        return f"{part[1]}{function().strip()}\n{part[4]}"

    return PRINTED.sub(fresh, text)


def unprinted(root: Path) -> Iterator[str]:
    """Functions that make a part of the docs which no page shows, as `module:function`."""
    shown = {
        f"{part['module']}:{part['function']}" for page in pages(root) for part in PRINTED.finditer(page.read_text())
    }
    source = root / "src"
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef) or not re.fullmatch(r"[^_]\w*_markdown", node.name):
                continue
            if f"{module}:{node.name}" not in shown:
                yield f"{module}:{node.name}"


def main(root: Path, *, write: bool) -> int:
    stale = [(page, fresh) for page in pages(root) if (fresh := printed(page.read_text())) != page.read_text()]
    if write:
        for page, fresh in stale:
            page.write_text(fresh)
            print(f"{page}: printed anew")
        return 0
    found = [f"{page}: stale; run `make docs`" for page, _ in stale]
    found += [f"{name} is printed on no page" for name in unprinted(root)]
    print("\n".join(found) or "docs: fresh")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(), write="--write" in sys.argv[1:]))

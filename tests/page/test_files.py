"""What ships as the pages: nothing in it reaches outside or asks for a weaker policy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import andthen.server

FOLDER = Path(andthen.server.__file__).parent / "page"
FILES = sorted(FOLDER.iterdir())
SVG_NAMESPACE = "http://www.w3.org/2000/svg"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_names_an_address_outside(path: Path) -> None:
    text = path.read_text().replace(f'xmlns="{SVG_NAMESPACE}"', "")
    assert re.findall(r"(?:https?|wss?|ftp|data|blob):[/\w][^\s\"']*|[\"'(]//\w[^\s\"']*", text) == []


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".html"], ids=lambda path: path.name)
def test_no_page_carries_script_or_style_in_itself(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text) == []


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.suffix in (".html", ".js", ".css")], ids=lambda path: path.name
)
def test_what_a_file_loads_is_there(path: Path) -> None:
    named = re.findall(r"(?:from |href=|src=)\"(?:/page|\.)/([\w.]+)\"", path.read_text())
    assert {name for name in named if not (FOLDER / name).is_file()} == set()

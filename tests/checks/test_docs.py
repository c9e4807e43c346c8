import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from checks import docs

PAGE = "# Page\n\n<!-- printed by printer:table_markdown -->\n{}<!-- end -->\n\nAfter.\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    source = tmp_path / "src" / "printer.py"
    source.parent.mkdir()
    source.write_text('def table_markdown() -> str:\n    return "| a |\\n"\n')
    (tmp_path / "docs").mkdir()
    monkeypatch.syspath_prepend(source.parent)
    yield tmp_path
    sys.modules.pop("printer", None)


def test_a_stale_page_fails_and_writing_mends_it(root: Path) -> None:
    page = root / "docs" / "page.md"
    page.write_text(PAGE.format("| old |\n"))
    assert docs.main(root, write=False) == 1
    assert docs.main(root, write=True) == 0
    assert page.read_text() == PAGE.format("| a |\n")
    assert docs.main(root, write=False) == 0


def test_a_table_on_no_page_fails(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert docs.main(root, write=False) == 1
    assert "printer:table_markdown is printed on no page" in capsys.readouterr().out

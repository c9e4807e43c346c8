from pathlib import Path

import pytest

from checks.docs import printed

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["parameters.md", "errors.md"])
def test_the_page_is_as_the_code_prints_it(page: str) -> None:
    text = (DOCS / page).read_text()
    assert "<!-- printed by andthen.contract.markdown:" in text
    assert printed(text) == text

from pathlib import Path

import pytest

from checks import sizes


def function(lines: int) -> str:
    return "def long():\n" + "    pass\n" * (lines - 1)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x = 1\n" * 500, []),
        ("x = 1\n" * 501, ["1: 501 lines, more than 500"]),
        (function(60), []),
        (function(61), ["1: long has 61 lines, more than 60"]),
        (
            "class A:\n" + "".join(f"    {line}\n" for line in ("async " + function(61)).splitlines()),
            ["2: long has 61"],
        ),
    ],
)
def test_what_is_too_long_is_named_with_its_line(tmp_path: Path, source: str, found: list[str]) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    said = list(sizes.oversized(path))
    assert len(said) == len(found)
    assert all(line.startswith(f"{path}:{start}") for line, start in zip(said, found, strict=True))


def test_the_exit_status_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sizes.main(tmp_path) == 0
    (tmp_path / "module.py").write_text(function(61))
    assert sizes.main(tmp_path) == 1
    assert "long has 61 lines" in capsys.readouterr().out

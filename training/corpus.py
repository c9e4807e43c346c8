"""The training text: `PART.train.txt.xz` and `PART.val.txt.xz`, a paragraph a line, a blank line between books."""

from __future__ import annotations

import hashlib
import json
import lzma
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NEWLINE = ord("\n")


@dataclass(frozen=True)
class Text:
    """A part of the corpus with the character offsets at which its paragraphs begin and its books end, ascending."""

    characters: str
    paragraphs: NDArray[np.int64]
    book_ends: NDArray[np.int64]

    @classmethod
    def of(cls, characters: str) -> Text:
        """Indexes `characters`. Raises UnicodeEncodeError unless it is ASCII, so that characters are bytes."""
        letters = np.frombuffer(characters.encode("ascii"), np.uint8)
        begins_line = np.concatenate(([True], letters[:-1] == NEWLINE)) & (letters != NEWLINE)
        blank_line = (letters[:-1] == NEWLINE) & (letters[1:] == NEWLINE)
        book_ends = np.append(np.flatnonzero(blank_line), len(characters.rstrip("\n")))
        return cls(characters, np.flatnonzero(begins_line), book_ends)

    def passage(self, paragraph: int, length: int) -> tuple[str, bool]:
        """About `length` characters from a paragraph's start on, cut before a word; and whether the book ends there."""
        start = int(self.paragraphs[paragraph])
        book_end = int(self.book_ends[np.searchsorted(self.book_ends, start, "right")])
        if start + length >= book_end:
            return self.characters[start:book_end], True
        text = self.characters[start : start + length + 1]
        edge = max(text.rfind(" "), text.rfind("\n"))
        return text[: edge if edge > 0 else length], False

    def books(self) -> list[str]:
        return [book for book in self.characters.strip("\n").split("\n\n") if book]


def read(folder: Path, part: str, split: str) -> Text:
    """The `part` of the corpus in `folder`; `split` is `train` or `val`."""
    return Text.of(lzma.decompress(_path(folder, part, split).read_bytes()).decode("ascii"))


def digest(folder: Path, part: str, split: str) -> str:
    """SHA-256 of the uncompressed text, for the provenance."""
    return hashlib.sha256(lzma.decompress(_path(folder, part, split).read_bytes())).hexdigest()


def sources(folder: Path, parts: list[str]) -> str:
    """What the corpus's `manifest.json` says of the parts' training text, in a sentence's words."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    files = [manifest["files"][f"{part}.train.txt"] for part in parts]
    books, megabytes = sum(file["books"] for file in files), sum(file["bytes"] for file in files) / 1e6
    repository = f"github.com/{manifest['source_repo']} at `{manifest['source_commit'][:12]}`"
    return f"{books} books in the public domain, {megabytes:.1f} MB, from {repository}"


def _path(folder: Path, part: str, split: str) -> Path:
    return folder / f"{part}.{split}.txt.xz"

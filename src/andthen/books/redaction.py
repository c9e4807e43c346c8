"""What is taken out of texts before they are written anywhere: whatever a rule matches is replaced by the rule's name.

Rules are regular expressions of RE2 (https://github.com/google/re2/wiki/Syntax), which takes time in proportion to the
text: whatever a caller writes, no rule can be made to stand still.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

COMMON: Mapping[str, str] = {
    "private key": r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)",
    "token": r"\beyJ[\w-]+\.[\w-]+\.[\w-]*|(?i:\b(?:bearer|basic)\s+[a-z0-9._~+/=-]{12,})",
    "key": r"\b(?:(?:sk|pk|rk|at)-[\w-]{16,}|gh[opsru]_\w{20,}|github_pat_\w{20,}|hf_\w{20,}|AKIA[0-9A-Z]{16}"
    r"|AIza[\w-]{30,}|xox[abprs]-[\w-]{10,})",
    "email": r"[\w.%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+",
}
"""What is taken out of every text, before the rules that are set: private keys, tokens and keys by the forms that
common services give them, and addresses of e-mail."""

_NAME = re.compile(r"[a-z0-9][a-z0-9 _-]{0,31}", re.ASCII)
_AHEAD = 4096
"""Characters that are read beyond what is kept, so that nothing is half kept because it passes the bound."""


class BadRule(ValueError):
    """A rule that can't be; the text goes on from the rule's name."""


def check_installed() -> None:
    """Raises: BadRule"""
    if find_spec("re2") is None:
        raise BadRule("needs the package google-re2: install `andthen[redaction]`")


def check_rule(name: str, pattern: str) -> None:
    """Raises: BadRule"""
    if not _NAME.fullmatch(name):
        raise BadRule("is no name of a rule: 1 to 32 of a to z, 0 to 9, blanks, `_` and `-`")
    check_installed()
    import re2

    try:
        matches_nothing = _compiled(pattern).search("") is not None
    except re2.error as error:
        reason = error.args[0]
        told = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise BadRule(f"is no regular expression of RE2 ({told})") from None
    if matches_nothing:
        raise BadRule("matches an empty text, and so everywhere: ask for a character at least")


class Redactor:
    """Texts, cut and without what the rules match.

    Args:
        rules: name → pattern, in the order in which they are applied. Each has passed `check_rule`.
        most_characters: of a text that are kept.
    """

    def __init__(self, rules: Mapping[str, str], most_characters: int) -> None:
        self._rules = [(f"[{name}]", _compiled(pattern)) for name, pattern in rules.items()]
        self._most_characters = most_characters

    @property
    def reads_characters(self) -> int:
        """What it looks at of a text at most; what is beyond may be left out."""
        return self._most_characters + _AHEAD

    def redact(self, text: str) -> str:
        """What is kept of a text: its beginning, which the names of rules may make longer than the bound."""
        text = text[: self.reads_characters]
        end = min(len(text), self._most_characters)
        for mark, pattern in self._rules:
            pieces: list[str] = []
            done = 0
            for match in pattern.finditer(text):
                if match.start() >= end:
                    break
                pieces += (text[done : match.start()], mark)
                done = match.end()
            head = "".join(pieces)
            end = len(head) + max(0, end - done)
            text = head + text[done:]
        return text[:end]


def _compiled(pattern: str) -> Any:
    import re2

    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)

"""Model files on the Hugging Face hub: `hf:owner/repo:file.gguf`. Knows the hub's client library, imported only when
used, and its cache folder; nothing of models.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Self

from msgspec import Struct

_PART = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(rf"(?:hf:)?(?P<repo>{_PART}/{_PART}):(?P<file>(?:{_PART}/)*{_PART}\.gguf)")


class HubError(Exception):
    """The hub does not give the file; the message tells why and what to do."""


class HubFile(Struct, frozen=True):
    """One file of one repository."""

    repo: str
    file: str

    def __str__(self) -> str:
        return f"hf:{self.repo}:{self.file}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """`owner/repo:file.gguf`, with or without `hf:` before it. Raises ValueError."""
        match = _NAME.fullmatch(text)
        if match is None or ".." in text:
            raise ValueError(f"{text!r} is not of the form hf:owner/repo:file.gguf")
        return cls(match["repo"], match["file"])

    def cached(self) -> Path | None:
        """Where the file lies on this machine; None where it was not pulled. Asks nobody."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repo, self.file)
        return Path(found) if isinstance(found, str) else None

    def pull(self) -> Path:
        """Downloads the file, or what is new of it, into the hub's cache. Blocks, and shows progress on a terminal.
        Where the hub can't be reached, an earlier download is as good.

        Raises:
            HubError
        """
        from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url

        try:
            get_hf_file_metadata(hf_hub_url(self.repo, self.file))  # tells at once what a download tries for long
            return Path(hf_hub_download(self.repo, self.file))
        except errors.GatedRepoError as error:
            raise HubError(
                f"{self}: {self.repo} is given only to those whom its owners let in: ask for access on its page, then"
                " run `hf auth login` or set HF_TOKEN"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise HubError(
                f"{self}: the hub has no repository {self.repo}, or it is private: check the name, or set HF_TOKEN"
            ) from error
        except errors.RemoteEntryNotFoundError as error:
            raise HubError(f"{self}: {self.repo} has no file {self.file}: its page lists the files") from error
        except Exception as error:  # of the hub's library, and of whichever HTTP library it has chosen
            if earlier := self.cached():
                return earlier
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> HubError:
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            return HubError(f"{self}: it was not pulled before, and HF_HUB_OFFLINE forbids to ask: unset it to pull")
        first = str(error).strip().partition("\n")[0]
        return HubError(f"{self}: the hub can't be reached; once pulled, a model needs no network ({first})")

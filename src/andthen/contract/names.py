"""Model names: `vendor/model`. Knows no vendor and opens nothing: a name is only ever looked up."""

from __future__ import annotations

from typing import NamedTuple

from andthen.contract.errors import ModelNotFound


class ModelName(NamedTuple):
    """`str()` gives the whole name back."""

    vendor: str
    model: str
    """May hold more slashes."""

    def __str__(self) -> str:
        return f"{self.vendor}/{self.model}"


def parse_name(name: str) -> ModelName:
    """Splits at the first slash.

    Raises:
        ModelNotFound: the name has no vendor or no model.
    """
    vendor, _, model = name.partition("/")
    if vendor and model:
        return ModelName(vendor, model)
    raise ModelNotFound(
        "A model is named `vendor/model`, such as `local/tale`. `GET /v1/models` lists the names this key may use.",
        param="model",
    )

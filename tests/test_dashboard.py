"""The dashboard that ships asks for metrics that there are, by labels that they have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from andthen.observability.metric_store import Metric
from andthen.observability.metrics import METRICS

DASHBOARD: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "deploy" / "grafana" / "andthen.json").read_text()
)
SAMPLES: dict[str, Metric] = {
    f"{row.name}{suffix}": row
    for row in METRICS
    for suffix in (("_bucket", "_count", "_sum") if row.kind == "histogram" else ("",))
}
METRIC = re.compile(r"\b(andthen_\w+)(?:\{([^}]*)\})?")


def queries() -> Iterator[object]:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield pytest.param(variable["query"], id=f"${variable['name']}")


@pytest.mark.parametrize("query", list(queries()))
def test_every_query_asks_for_what_there_is(query: str) -> None:
    asked = METRIC.findall(query)
    assert asked
    for name, selected in asked:
        row = SAMPLES[name]
        labels = {*re.findall(r"(\w+)=~?\"", selected)}
        for group in re.findall(r"by \(([^)]*)\)", query) + re.findall(r"label_values\(\w+, (\w+)\)", query):
            labels |= {*re.split(r", *", group)} - {"le"}
        assert labels <= {*row.labels}, name
        if not query.startswith("label_values("):
            assert ("rate(" in query or "increase(" in query) == (row.kind != "gauge"), name
    assert query.count("(") == query.count(")")


def test_panels_lie_side_by_side() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])

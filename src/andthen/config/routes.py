"""Names that stand for several deployments: taken apart until they name models only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter

from andthen.vendors.settings import Share


class Circle(Exception):
    """A name stands for itself in the end; its argument is that name."""


def flattened(routes: Mapping[str, Sequence[Share]]) -> dict[str, tuple[Share, ...]]:
    """The routes without routes in them: a share of a share is their product, and the order of the outer goes before
    that of the inner.

    Raises:
        Circle
    """
    return {name: _models(name, routes, ()) for name in routes}


def _models(name: str, routes: Mapping[str, Sequence[Share]], above: tuple[str, ...]) -> tuple[Share, ...]:
    if name in above:
        raise Circle(name)
    found: list[tuple[tuple[int, int], str, float]] = []
    for share in routes[name]:
        if share.model not in routes:
            found.append(((share.order, 0), share.model, share.weight))
            continue
        inner = _models(share.model, routes, (*above, name))
        for order, group in groupby(inner, key=lambda one: one.order):
            same = list(group)
            whole = sum(one.weight for one in same)
            found += [((share.order, order), one.model, share.weight * one.weight / whole) for one in same]
    found.sort(key=itemgetter(0))
    places = {order: place for place, order in enumerate(dict.fromkeys(order for order, _, _ in found))}
    return tuple(Share(model=model, weight=weight, order=places[order]) for order, model, weight in found)

"""What a model's name stands for: deployments of the embedded engine, at vendors, or several of either."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping

from andthen.contract.errors import ModelNotFound
from andthen.contract.limits import Limits
from andthen.contract.names import parse_name
from andthen.plan.abilities import Abilities
from andthen.remote import RemoteSource
from andthen.routing import Health, ordered
from andthen.sources import Deployment
from andthen.transport import Transport
from andthen.vendors.settings import Upstream

_KEPT = 4096
"""Deployments of unlisted models that are kept ready; any name under a vendor's prefix makes one."""


class Catalog:
    """All models, and how those behind it fare.

    Args:
        local: gives the embedded engine's, by whole name. May raise `EngineRestarted`.
        upstream: everything else.
    """

    def __init__(
        self,
        local: Callable[[], Mapping[str, Deployment]],
        upstream: Upstream,
        transport: Transport,
        limits: Limits,
    ) -> None:
        self._local = local
        self.upstream = upstream
        self._transport = transport
        self._limits = limits
        self._remote: dict[str, Deployment] = {}
        self._health: dict[str, Health] = {}

    def find(self, name: str) -> Deployment:
        """The deployment of one model, or the first of a name that stands for several.

        Raises:
            ModelNotFound; EngineRestarted, for a local model while no engine runs.
        """
        whole = str(parse_name(name))
        if shares := self.upstream.routes.get(whole):
            whole = min(shares, key=lambda share: share.order).model
        found = self._remote_deployment(whole) or self._local().get(whole)
        if found is None:
            raise ModelNotFound(
                "There is no such model: `GET /v1/models` lists the names that this key may use.", param="model"
            )
        return found

    def candidates(self, name: str) -> list[Deployment]:
        """The deployments that a name stands for, in the order in which to ask them this time.

        Raises:
            ModelNotFound, EngineRestarted
        """
        shares = self.upstream.routes.get(str(parse_name(name)))
        if shares is None:
            return [self.find(name)]
        return [self.find(share.model) for share in ordered(shares, random.random)]

    def health(self, deployment: Deployment) -> Health:
        return self._health.setdefault(deployment.model, Health())

    def listed(self) -> Iterator[tuple[str, Deployment]]:
        """The names to show, each with its deployment; of a name that stands for several, the first.

        Raises:
            EngineRestarted: no engine has told its models yet.
        """
        yield from self._local().items()
        for name in (*self.upstream.routes, *self.upstream.listed()):
            yield name, self.find(name)

    def abilities(self) -> Iterator[Abilities]:
        """The rows of all models that are shown."""
        for _, deployment in self.listed():
            yield deployment.abilities

    def label(self, deployment: Deployment) -> str:
        """Its name for metrics: of an unlisted model the vendor's alone, since callers choose those names."""
        name = deployment.model
        if name in self.upstream.models or self.upstream.find(name) is None or name in set(self.upstream.listed()):
            return name
        return f"{parse_name(name).vendor}/*"

    def _remote_deployment(self, name: str) -> Deployment | None:
        if (known := self._remote.get(name)) is not None:
            return known
        found = self.upstream.find(name)
        if found is None:
            return None
        remote, model = found
        resolved = remote.resolved(model)
        source = RemoteSource(
            remote, model, resolved.wire(), transport=self._transport, settings=self.upstream.settings
        )
        if len(self._remote) >= _KEPT:
            self._remote.clear()
        made = self._remote[name] = Deployment(name, resolved.abilities(name, self._limits), source, cools=True)
        return made

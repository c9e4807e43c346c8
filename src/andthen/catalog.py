"""What a model's name stands for: deployments of the embedded engine, at vendors, or several of either."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping

from andthen.contract.errors import EngineRestarted, ModelNotFound
from andthen.contract.limits import Limits
from andthen.contract.names import parse_name
from andthen.plan.abilities import Abilities
from andthen.remote import RemoteSource
from andthen.routing import Health, ordered
from andthen.sources import Deployment
from andthen.transport import Transport
from andthen.vendors.settings import Remote, Upstream

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
        self._secrets = upstream.secrets
        shared = (share.model for shares in upstream.routes.values() for share in shares)
        names = (*upstream.listed(), *(name for name in shared if upstream.find(name) is not None))
        self._configured = dict.fromkeys(name for name in names if name not in upstream.routes)
        """The names upstream that are the operator's or a row's own, and no caller's."""
        self._remote: dict[str, Deployment] = {}
        self._unlisted: dict[str, Deployment] = {}
        self._health: dict[str, Health] = {}

    def keep_health(self, earlier: Catalog) -> None:
        """Goes on with what an earlier catalog knew of the deployments that are the same in this one."""
        for name, health in earlier._health.items():
            found = self.upstream.find(name)
            if found is not None and found == earlier.upstream.find(name) and health != Health():
                self._remote_deployment(name)  # which bounds how many are kept of those that callers name
                self._health[name] = health

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
        found: list[Deployment] = []
        for share in ordered(shares, random.random):
            try:
                found.append(self.find(share.model))
            except EngineRestarted as error:
                starting = error
        if not found:
            raise starting
        return found

    def health(self, deployment: Deployment) -> Health:
        return self._health.setdefault(deployment.model, Health())

    def listed(self) -> Iterator[tuple[str, Deployment]]:
        """The names to show, each with its deployment; of a name that stands for several, the first.

        Raises:
            EngineRestarted: no engine has told its models yet.
        """
        yield from self._local().items()
        for name in dict.fromkeys((*self.upstream.routes, *self.upstream.listed())):
            yield name, self.find(name)

    def abilities(self) -> Iterator[Abilities]:
        """The rows of all configured models; the engine's once it has told them."""
        with contextlib.suppress(EngineRestarted):
            yield from [deployment.abilities for deployment in self._local().values()]
        for name in self._configured:
            yield self.find(name).abilities

    def label(self, deployment: Deployment) -> str:
        """Its name for metrics: of an unlisted model the vendor's alone, since callers choose those names."""
        name = deployment.model
        if name in self._configured or self.upstream.find(name) is None:
            return name
        return f"{parse_name(name).vendor}/*"

    def asked_label(self, name: str) -> str:
        """The same of a name that a caller gave, which may stand for several. Raises as `find` does."""
        whole = str(parse_name(name))
        return whole if whole in self.upstream.routes else self.label(self.find(name))

    def _remote_deployment(self, name: str) -> Deployment | None:
        if (known := self._remote.get(name) or self._unlisted.get(name)) is not None:
            return known
        if (found := self.upstream.find(name)) is None:
            return None
        made = self._made(name, *found)
        if name in self._configured:
            self._remote[name] = made
        else:
            if len(self._unlisted) >= _KEPT:
                oldest = next(iter(self._unlisted))
                del self._unlisted[oldest]
                self._health.pop(oldest, None)
            self._unlisted[name] = made
        return made

    def _made(self, name: str, remote: Remote, model: str) -> Deployment:
        resolved = remote.resolved(model)
        source = RemoteSource(
            remote, model, resolved.wire(),
            transport=self._transport, settings=self.upstream.settings, secrets=self._secrets,
        )  # fmt: skip
        abilities = resolved.abilities(name, self._limits)
        return Deployment(
            name, abilities, source, cools=True, identity=remote.identity(model), provider=remote.provider,
            address=remote.address,
        )  # fmt: skip

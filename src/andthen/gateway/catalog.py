"""Model names and the deployments they stand for: models of the embedded engine, of vendors, or several of either."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping

from andthen.contract.errors import EngineRestarted, ModelNotFound
from andthen.contract.limits import Limits
from andthen.contract.names import parse_name
from andthen.gateway.backend import Deployment
from andthen.gateway.circuit_breaker import CircuitBreaker, in_order
from andthen.gateway.remote import RemoteBackend
from andthen.http.client import HttpClient
from andthen.plan.abilities import Abilities
from andthen.plan.plan import PlanCache
from andthen.vendors.settings import Remote, Upstream

_MAX_UNLISTED = 4096
"""How many deployments of unlisted models are cached: callers choose these names, below a vendor's prefix."""


class Catalog:
    """All models, and the circuit breakers of their deployments.

    Args:
        local: returns the embedded engine's deployments, by full name. May raise `EngineRestarted`.
        upstream: vendors, other servers and routes, as configured.
    """

    def __init__(
        self,
        local: Callable[[], Mapping[str, Deployment]],
        upstream: Upstream,
        client: HttpClient,
        limits: Limits,
    ) -> None:
        self._local = local
        self.upstream = upstream
        self._client = client
        self._limits = limits
        self._secrets = upstream.secrets
        shared = (share.model for shares in upstream.routes.values() for share in shares)
        names = (*upstream.listed(), *(name for name in shared if upstream.find(name) is not None))
        self._configured = dict.fromkeys(name for name in names if name not in upstream.routes)
        """The upstream names that come from the configuration or a vendor's row, not from a caller."""
        self._remote: dict[str, Deployment] = {}
        self._unlisted: dict[str, Deployment] = {}
        self._breakers: dict[str, CircuitBreaker] = {}

    def take_breakers(self, earlier: Catalog) -> None:
        """Takes over an earlier catalog's circuit breakers, for deployments that are the same in this one."""
        for name, breaker in earlier._breakers.items():
            found = self.upstream.find(name)
            if found is not None and found == earlier.upstream.find(name) and breaker != CircuitBreaker():
                self._remote_deployment(name)  # bounds how many unlisted ones there are
                self._breakers[name] = breaker

    def find(self, name: str) -> Deployment:
        """The deployment of a model; of a route, the one that is tried first.

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
        """The deployments that a name stands for, in the order in which to try them this time.

        Raises:
            ModelNotFound, EngineRestarted
        """
        shares = self.upstream.routes.get(str(parse_name(name)))
        if shares is None:
            return [self.find(name)]
        found: list[Deployment] = []
        for share in in_order(shares, random.random):
            try:
                found.append(self.find(share.model))
            except EngineRestarted as error:
                starting = error
        if not found:
            raise starting
        return found

    def breaker(self, deployment: Deployment) -> CircuitBreaker:
        found = self._breakers.get(deployment.model)
        if found is None:
            found = self._breakers[deployment.model] = CircuitBreaker()
        return found

    def listed(self) -> Iterator[tuple[str, Deployment]]:
        """The names that the model list shows, each with its deployment; of a route, the one that is tried first.

        Raises:
            EngineRestarted: no engine has described its models yet.
        """
        yield from self._local().items()
        for name in dict.fromkeys((*self.upstream.routes, *self.upstream.listed())):
            yield name, self.find(name)

    def abilities(self) -> Iterator[Abilities]:
        """The capability rows of all configured models; the engine's only if it is ready."""
        with contextlib.suppress(EngineRestarted):
            yield from [deployment.abilities for deployment in self._local().values()]
        for name in self._configured:
            yield self.find(name).abilities

    def asked_label(self, name: str) -> str:
        """The same for a name that a caller sent, which may be a route's. Raises as `find` does."""
        whole = str(parse_name(name))
        return whole if whole in self.upstream.routes else self.find(name).label

    def _remote_deployment(self, name: str) -> Deployment | None:
        if (known := self._remote.get(name) or self._unlisted.get(name)) is not None:
            return known
        if (found := self.upstream.find(name)) is None:
            return None
        made = self._made(name, *found)
        if name in self._configured:
            self._remote[name] = made
        else:
            if len(self._unlisted) >= _MAX_UNLISTED:
                oldest = next(iter(self._unlisted))
                del self._unlisted[oldest]
                self._breakers.pop(oldest, None)
            self._unlisted[name] = made
        return made

    def _made(self, name: str, remote: Remote, model: str) -> Deployment:
        resolved = remote.resolved(model)
        backend = RemoteBackend(
            remote, model, resolved.wire(),
            client=self._client, settings=self.upstream.settings, secrets=self._secrets,
        )  # fmt: skip
        abilities = resolved.abilities(name, self._limits)
        return Deployment(
            name,
            abilities,
            backend,
            PlanCache(abilities, self._limits),
            label=name if name in self._configured else f"{parse_name(name).vendor}/*",
            has_breaker=True,
            identity=remote.identity(model),
            provider=remote.provider,
            address=remote.address,
        )

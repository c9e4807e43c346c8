"""The backend that is the embedded engine, in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping

from andthen.contract.errors import EngineRestarted
from andthen.contract.limits import Limits
from andthen.engine.client import EngineClient, Job
from andthen.engine.messages import ModelInfo
from andthen.gateway.backend import BackendRequest, Deployment
from andthen.plan.abilities import Abilities, local
from andthen.plan.plan import PlanCache


class LocalBackend:
    """The models of the embedded engine."""

    def __init__(self, engine: EngineClient, limits: Limits) -> None:
        self._engine = engine
        self._limits = limits
        self._models: Mapping[str, ModelInfo] = {}
        self._deployments: dict[str, Deployment] = {}

    def attempt(self, request: BackendRequest) -> Job:
        return self._engine.job(request.owner, request.model, request.request)

    def deployments(self) -> Mapping[str, Deployment]:
        """The engine's models, by full name.

        Raises:
            EngineRestarted: no engine has described its models yet.
        """
        models = self._engine.models
        if models is not self._models:
            self._models = models
            self._deployments = {name: self._deployment(model) for name, model in models.items()}
        if not models and not self._engine.ready:
            raise EngineRestarted("The engine is starting: send the request again.")
        return self._deployments

    def _deployment(self, model: ModelInfo) -> Deployment:
        row = abilities(model, self._limits)
        plans = PlanCache(row, self._limits)
        return Deployment(model.name, row, self, plans, label=model.name, identity=model.fingerprint)


def abilities(model: ModelInfo, limits: Limits) -> Abilities:
    """The capability row of a model of the embedded engine."""
    return local(
        model=model.name,
        context=model.context,
        vocab_size=model.vocab_size,
        fill_in_the_middle=model.fill_in_the_middle,
        deterministic=model.deterministic,
        limits=limits,
    )

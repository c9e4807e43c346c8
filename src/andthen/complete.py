"""The straight line of one request: a name → its deployment → a plan → the attempt → events. Knows no HTTP.

Stream or not is the same line; who asks folds the events or passes them on.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

from andthen.contract.errors import ModelNotFound
from andthen.contract.events import Event, Usage
from andthen.contract.names import parse_name
from andthen.contract.request import CompletionRequest
from andthen.plan.plan import Plan, plan
from andthen.sources import Deployment


class Work:
    """A request that a model takes, planned and not yet begun."""

    __slots__ = ("_owner", "_request", "began_s", "deployment", "plan", "usage")

    def __init__(self, owner: str, request: CompletionRequest, deployment: Deployment, planned: Plan) -> None:
        self._owner = owner
        self._request = request
        self.deployment = deployment
        self.plan = planned
        self.began_s: float | None = None
        """When the first event's turn had come, by `time.monotonic`."""
        self.usage: Usage | None = None
        """What was processed, once the events have ended, whatever ended them."""

    async def events(self) -> AsyncGenerator[list[Event]]:
        """Does the work. To be closed (`contextlib.aclosing`): that ends it, and waits until it has ended.

        Raises:
            AndthenError
        """
        attempt = self.deployment.source.open(self._owner, self.deployment.model, self._request)
        try:
            async with attempt:
                async for events in attempt:
                    self.began_s = attempt.began_s
                    yield events
        finally:
            self.usage = attempt.usage


def prepare(owner: str, request: CompletionRequest, deployments: Mapping[str, Deployment]) -> Work:
    """Finds the model and plans the request for it.

    Args:
        owner: the id of the key that asks.
        deployments: by whole name, those that this key may use.

    Raises:
        ModelNotFound, UnsupportedParameter
    """
    deployment = find(request.model, deployments)
    others = [other.abilities for other in deployments.values()]
    return Work(owner, request, deployment, plan(request, deployment.abilities, others))


def find(model: str, deployments: Mapping[str, Deployment]) -> Deployment:
    """The deployment of a whole name. Raises `ModelNotFound`."""
    deployment = deployments.get(str(parse_name(model)))
    if deployment is None:
        raise ModelNotFound(
            "There is no such model: `GET /v1/models` lists the names that this key may use.", param="model"
        )
    return deployment

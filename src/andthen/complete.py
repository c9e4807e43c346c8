"""The straight line of one request: a name → its deployments → a plan for each → attempts → events. Knows no HTTP.

Stream or not is the same line; who asks folds the events or passes them on. Another deployment steps in only before
the first event, so a reply has one model.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable

from andthen.catalog import Catalog
from andthen.contract.errors import (
    AndthenError,
    EngineRestarted,
    ModelNotFound,
    NoCapacity,
    NoDescriptors,
    RateLimited,
    UnsupportedParameter,
    UpstreamError,
    UpstreamRefused,
)
from andthen.contract.events import Event, Exchange, Usage, total
from andthen.contract.request import CompletionRequest
from andthen.plan.plan import Plan, plan
from andthen.routing import Health
from andthen.sources import Allowance, Ask, Attempt, Deployment, Placed

_SPEAKS_AGAINST = (NoCapacity, RateLimited, UpstreamError)
"""What lets a deployment cool down."""
_ANOTHER_MAY_DO = (EngineRestarted, ModelNotFound, *_SPEAKS_AGAINST)
"""What a fallback may cure. The rest is the request's own fault."""


class Work:
    """A request that some deployment takes, planned and not yet begun."""

    __slots__ = (
        "_allowance", "_catalog", "_is_bounded", "_owner", "_placed_s", "_request", "began_s", "came_s", "candidates",
        "deployment", "exchanges", "fingerprint", "placed", "plan", "usage", "waited_s",
    )  # fmt: skip

    def __init__(
        self, owner: str, request: CompletionRequest, catalog: Catalog, candidates: list[tuple[Deployment, Plan]]
    ) -> None:
        settings = catalog.upstream.settings
        self._owner = owner
        self._request = request
        self._catalog = catalog
        self._allowance = Allowance(settings.retries, time.monotonic() + settings.deadline_s)
        self.candidates = candidates
        """Who may answer, each with its plan, in the order in which they are asked."""
        self.placed: Placed | None = None
        """Set where the books hold what it may cost: see `Ask.placed`."""
        self._placed_s: float | None = None
        self._is_bounded = False
        self.deployment, self.plan = candidates[0]
        """Who answers, and how; settled with the first events."""
        self.exchanges: list[tuple[str, Exchange]] = []
        """What was exchanged, each with the whole name of its deployment, of the attempts that have ended."""
        self.fingerprint: str | None = None
        """What `system_fingerprint` tells, once events have come."""
        self.began_s: float | None = None
        """When the first event's turn had come, by `time.monotonic`."""
        self.came_s = 0.0
        """When the last events came, by `time.monotonic`."""
        self.waited_s: float | None = None
        """How long the attempts that have ended took, pauses between calls and their ends included, without what was
        done with their events meanwhile."""
        self.usage: Usage | None = None
        """What was processed in all, once the events have ended, whatever ended them."""

    def bound(self, candidates: list[tuple[Deployment, Plan]]) -> None:
        """A budget bounds the request: only these may answer, and after an attempt that cost something no other is
        made, since what was reserved is for one."""
        self.candidates, self._is_bounded = candidates, True
        self.deployment, self.plan = candidates[0]

    @property
    def may_begin(self) -> bool:
        """There is nothing to wait for, or not any more, before something is asked of anybody."""
        return self.placed is None or self._placed_s is not None

    async def _place(self) -> None:
        """Raises what `placed` raises."""
        if self.placed is not None:
            await self.placed()
            if self._placed_s is None:
                self._placed_s = time.monotonic()

    @property
    def retries(self) -> int:
        """What was done over, fallbacks included."""
        return self._catalog.upstream.settings.retries - self._allowance.retries

    async def events(self) -> AsyncGenerator[list[Event]]:
        """Does the work. To be closed (`contextlib.aclosing`): that ends it, and waits until it has ended.

        Raises:
            AndthenError
        """
        failure: AndthenError | None = None
        for number, (deployment, planned) in enumerate(self.candidates, start=1):
            now_s = time.monotonic()
            # One that is asked for nothing tells nothing of how it fares.
            health = Health() if planned.calls_nobody else self._catalog.health(deployment)
            if failure is not None and (health.open_in_s(now_s) or not self._allowance.take()):
                continue
            health.asked(now_s)
            self.deployment, self.plan = deployment, planned
            last = number == len(self.candidates)
            placed = None if self.placed is None else self._place
            ask = Ask(self._owner, deployment.model, self._request, planned, self._allowance, not last, placed)
            attempt: Attempt | None = None
            began = False
            passed_on_s = 0.0
            try:
                if planned.calls_nobody or not deployment.source.awaits_hold:
                    await self._place()
                attempt = deployment.source.open(ask)
                # In this very generator: one inside another would end some time after this one is closed.
                async with attempt:
                    async for events in attempt:
                        if not began:
                            began = True
                            health.answered(now_s)
                        self.began_s, self.fingerprint = attempt.began_s, attempt.fingerprint
                        self.came_s = time.monotonic()
                        try:
                            yield [self._with_earlier(one) if isinstance(one, Usage) else one for one in events]
                        finally:
                            passed_on_s += time.monotonic() - self.came_s
                health.succeeded()
                return
            except AndthenError as error:
                self._failed(health, deployment, error)
                failure = error
                if began or not isinstance(error, _ANOTHER_MAY_DO):
                    raise
            finally:
                health.left(now_s)
                if self.may_begin:
                    began_s = max(now_s, self._placed_s or now_s)  # what was before is the ledger's
                    self.waited_s = (self.waited_s or 0.0) + time.monotonic() - began_s - passed_on_s
                if self.may_begin and attempt is not None and attempt.usage is not None:
                    self.usage = self._with_earlier(attempt.usage)
                    self.exchanges += [(deployment.model, exchange) for exchange in attempt.exchanges]
                if failure is not None:
                    failure.billed = self.usage is not None and self.usage.completion_tokens > 0
            if self._is_bounded and self.usage is not None and self.usage.prompt_tokens + self.usage.completion_tokens:
                break
        if failure is not None:
            raise failure

    def _failed(self, health: Health, deployment: Deployment, error: AndthenError) -> None:
        """Lets a deployment cool down that the error speaks against."""
        if (
            deployment.cools
            and isinstance(error, _SPEAKS_AGAINST)
            and not isinstance(error, NoDescriptors | UpstreamRefused)
        ):
            own_s = error.retry_after_s if error.retry_after_s != error.usual_retry_after_s else None
            health.failed(time.monotonic(), own_s, self._catalog.upstream.settings)

    def _with_earlier(self, usage: Usage) -> Usage:
        """Together with that of the attempts before, which the request has cost too."""
        return usage if self.usage is None else total([self.usage, usage])


def _any(_model: str) -> bool:
    return True


def prepare(owner: str, request: CompletionRequest, catalog: Catalog, *, allows: Callable[[str], bool] = _any) -> Work:
    """Finds the deployments and plans the request for each; those that refuse it are passed over.

    Args:
        owner: the id of the key that asks.
        allows: whether that key may use a model, by its whole name: no other is named as a remedy.

    Raises:
        ModelNotFound, EngineRestarted
        UnsupportedParameter: all refuse; the first's reason.
        NoCapacity: all that take it cool down.
    """
    taking: list[tuple[Deployment, Plan]] = []
    refusals: list[UnsupportedParameter] = []
    for deployment in catalog.candidates(request.model):
        try:
            others = (row for row in catalog.abilities() if allows(row.model))
            taking.append((deployment, plan(request, deployment.abilities, others)))
        except UnsupportedParameter as refusal:
            refusals.append(refusal)
    if not taking:
        raise refusals[0]
    return Work(owner, request, catalog, _able(taking, catalog))


def _able(taking: list[tuple[Deployment, Plan]], catalog: Catalog) -> list[tuple[Deployment, Plan]]:
    now_s = time.monotonic()
    waits_s = [catalog.health(deployment).open_in_s(now_s) for deployment, _ in taking]
    if all(waits_s):
        raise NoCapacity(
            "Everything behind this model has failed lately and is left in peace for a while: wait before the next "
            "try, or use another model.",
            retry_after_s=max(1, round(min(waits_s))),
        )
    return [one for one, wait_s in zip(taking, waits_s, strict=True) if not wait_s]

"""A request's way through deployments: found by name, planned for each, attempted until one replies. Knows no HTTP.

A fallback is only tried before the first event, so a reply comes from one model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

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
from andthen.gateway.backend import Attempt, BackendRequest, Deployment, Receiver, RetryBudget
from andthen.gateway.catalog import Catalog
from andthen.gateway.circuit_breaker import CircuitBreaker
from andthen.plan.plan import Plan

_DEPLOYMENT_FAILED = (NoCapacity, RateLimited, UpstreamError)
"""What counts as a failure in a circuit breaker."""
_FALLBACK_HELPS = (EngineRestarted, ModelNotFound, *_DEPLOYMENT_FAILED)
"""After which another deployment is tried. Other errors are the request's own fault."""


def _any(_model: str) -> bool:
    return True


class Execution:
    """A request and its attempts.

    Attributes:
        planned: the deployments that may answer, each with its plan, in the order in which they are tried.
        deployment, plan: which one answers or was tried last; None before `route`.
        exchanges: the calls of the attempts that have ended, each with its deployment's full name.
        fingerprint: the reply's `system_fingerprint`, known once events have come.
        began_s: when a model began to work on it, by `time.monotonic`.
        events_at_s: when the last events came, by `time.monotonic`.
        backend_s: how long backends were waited for in the attempts that have ended; None if none was made.
        usage: what was processed in all, complete once `execute` has returned or raised.
        retries: how many were made, fallbacks included.
    """

    __slots__ = (
        "_attempt",
        "_breaker",
        "_catalog",
        "_not_waiting_s",
        "_owner",
        "_paused_at_s",
        "_receiver",
        "_replied",
        "_retry_budget",
        "_sent_at_s",
        "_within_budget",
        "backend_s",
        "began_s",
        "deployment",
        "events_at_s",
        "exchanges",
        "fingerprint",
        "plan",
        "planned",
        "request",
        "usage",
    )  # fmt: skip

    def __init__(self) -> None:
        self.request: CompletionRequest | None = None
        self.planned: Sequence[tuple[Deployment, Plan]] = ()
        self.deployment: Deployment | None = None
        self.plan: Plan | None = None
        self.exchanges: list[tuple[str, Exchange]] = []
        self.fingerprint: str | None = None
        self.began_s: float | None = None
        self.events_at_s = 0.0
        self.backend_s: float | None = None
        self.usage: Usage | None = None
        self._attempt: Attempt | None = None
        self._paused_at_s: float | None = None
        self._retry_budget: RetryBudget | None = None
        self._within_budget = False

    @property
    def asked(self) -> CompletionRequest:
        """The request, once it is parsed."""
        if self.request is None:
            raise RuntimeError("the request is not parsed yet")
        return self.request

    @property
    def answering(self) -> Deployment:
        """The deployment, once the request is routed."""
        if self.deployment is None:
            raise RuntimeError("the request is not routed yet")
        return self.deployment

    @property
    def has_cost(self) -> bool:
        """Tokens were processed, as far as is known."""
        return self.usage is not None and self.usage.prompt_tokens + self.usage.completion_tokens > 0

    @property
    def retries(self) -> int:
        if self._retry_budget is None:
            return 0
        return self._catalog.upstream.settings.retries - self._retry_budget.retries

    def route(
        self, owner: str, request: CompletionRequest, catalog: Catalog, allows: Callable[[str], bool] = _any
    ) -> None:
        """Finds the deployments and plans the request for each. Those that refuse it or whose circuit breaker is open
        are left out.

        Args:
            owner: id of the API key.
            allows: whether the key may use a model, by its full name; an error suggests no other.

        Raises:
            ModelNotFound, EngineRestarted
            UnsupportedParameter: all deployments refuse the request; the first one's reason.
            NoCapacity: the circuit breakers of all that take it are open.
        """
        settings = catalog.upstream.settings
        self._owner, self._catalog, self.request = owner, catalog, request
        self._retry_budget = RetryBudget(settings.retries, time.monotonic() + settings.deadline_s)
        taking: list[tuple[Deployment, Plan]] = []
        refusals: list[UnsupportedParameter] = []
        for deployment in catalog.candidates(request.model):
            try:
                others = (row for row in catalog.abilities() if allows(row.model))
                taking.append((deployment, deployment.plans.plan(request, others)))
            except UnsupportedParameter as refusal:
                refusals.append(refusal)
        if not taking:
            raise refusals[0]
        self.restrict(_available(taking, catalog))

    def restrict(self, planned: Sequence[tuple[Deployment, Plan]]) -> None:
        """Only these may answer."""
        self.planned = planned
        self.deployment, self.plan = planned[0]

    def spend_within_budget(self) -> None:
        """A budget's reservation is for one attempt: after one that cost something no other is made."""
        self._within_budget = True

    async def execute(self, receiver: Receiver) -> None:
        """Makes attempts until one has completed the reply. The events go to `receiver` as they come.

        Raises:
            AndthenError: the last attempt's; and what `receiver` raises.
        """
        self._receiver = receiver
        failure: AndthenError | None = None
        for number, (deployment, plan) in enumerate(self.planned, start=1):
            now_s = time.monotonic()
            # A deployment that is not called shows nothing about its health.
            breaker = CircuitBreaker() if plan.calls_nobody else self._catalog.breaker(deployment)
            if failure is not None and (breaker.wait_s(now_s) or not self._budget.take()):
                continue
            self.deployment, self.plan = deployment, plan
            breaker.on_request(now_s)
            try:
                await self._try(deployment, plan, breaker, has_fallback=number < len(self.planned))
                breaker.on_success()
                return
            except AndthenError as error:
                self._count_failure(breaker, deployment, error)
                failure = error
                if self._replied or not isinstance(error, _FALLBACK_HELPS):
                    raise
            finally:
                breaker.on_end(now_s)
                if failure is not None:
                    failure.billed = self.usage is not None and self.usage.completion_tokens > 0
            if self._within_budget and self.has_cost:
                break
        if failure is not None:
            raise failure

    @property
    def _budget(self) -> RetryBudget:
        if self._retry_budget is None:
            raise RuntimeError("the request is not routed yet")
        return self._retry_budget

    async def _try(self, deployment: Deployment, plan: Plan, breaker: CircuitBreaker, *, has_fallback: bool) -> None:
        """One attempt."""
        self._breaker, self._replied = breaker, False
        self._sent_at_s, self._not_waiting_s = time.monotonic(), 0.0
        attempt = self._attempt = deployment.backend.attempt(
            BackendRequest(self._owner, deployment.model, self.asked, plan, self._budget, has_fallback)
        )
        try:
            await attempt.run(self._receive)
        finally:
            self.resume()
            self._attempt = None
            waited_s = time.monotonic() - self._sent_at_s - self._not_waiting_s
            self.backend_s = (self.backend_s or 0.0) + waited_s
            if attempt.usage is not None:
                self.usage = self._with_earlier(attempt.usage)
                self.exchanges += [(deployment.model, exchange) for exchange in attempt.exchanges]

    def _receive(self, events: list[Event]) -> None:
        attempt = self._attempt
        if attempt is None:
            return
        self.events_at_s = now_s = time.monotonic()
        if not self._replied:
            self._replied = True
            self._breaker.on_reply(self._sent_at_s)
        if self.began_s is None:
            self.began_s = attempt.began_s
        self.fingerprint = attempt.fingerprint
        if self.usage is not None:
            events = [self._with_earlier(one) if isinstance(one, Usage) else one for one in events]
        self._receiver(events)
        self._not_waiting_s += time.monotonic() - now_s

    def pause(self) -> None:
        """The client is slow: no more events are wanted until `resume`."""
        if self._paused_at_s is None and self._attempt is not None:
            self._paused_at_s = time.monotonic()
            self._attempt.pause()

    def resume(self) -> None:
        if self._paused_at_s is not None:
            self._not_waiting_s += time.monotonic() - self._paused_at_s
            self._paused_at_s = None
            if self._attempt is not None:
                self._attempt.resume()

    def _count_failure(self, breaker: CircuitBreaker, deployment: Deployment, error: AndthenError) -> None:
        if (
            deployment.has_breaker
            and isinstance(error, _DEPLOYMENT_FAILED)
            and not isinstance(error, NoDescriptors | UpstreamRefused)
        ):
            own_s = error.retry_after_s if error.retry_after_s != error.usual_retry_after_s else None
            breaker.on_failure(time.monotonic(), own_s, self._catalog.upstream.settings)

    def _with_earlier(self, usage: Usage) -> Usage:
        """Together with the earlier attempts', which the request has cost too."""
        return usage if self.usage is None else total([self.usage, usage])


def _available(taking: list[tuple[Deployment, Plan]], catalog: Catalog) -> list[tuple[Deployment, Plan]]:
    """Those whose circuit breaker is closed or half-open. Raises NoCapacity."""
    now_s = time.monotonic()
    waits_s = [catalog.breaker(deployment).wait_s(now_s) for deployment, _ in taking]
    if all(waits_s):
        retry_after_s = max(1, round(min(waits_s)))
        raise NoCapacity(
            f"All deployments of this model are failing. Retry in {retry_after_s} s, or use another model.",
            retry_after_s=retry_after_s,
        )
    return [one for one, wait_s in zip(taking, waits_s, strict=True) if not wait_s]

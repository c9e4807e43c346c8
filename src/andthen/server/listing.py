"""The models routes: what a key may use, each with what becomes of every field on it."""

from __future__ import annotations

import time

import msgspec
from msgspec import UNSET, UnsetType

from andthen.auth.permissions import allows_model, check_model
from andthen.contract.listing import Capability, ModelCard, ModelList
from andthen.contract.names import parse_name
from andthen.gateway.backend import Deployment
from andthen.gateway.context import JSON, RequestContext
from andthen.gateway.services import Services
from andthen.plan.abilities import Ability

_encode = msgspec.json.Encoder().encode


async def list_models(ctx: RequestContext) -> None:
    cards = [
        _card(ctx.services, name, deployment)
        for name, deployment in ctx.services.catalog.listed()
        if allows_model(ctx.key, name)
    ]
    await ctx.reply(200, JSON, _encode(ModelList(data=cards)))


async def show_model(ctx: RequestContext) -> None:
    """The one that the path ends with."""
    _, _, name = ctx.path.partition("/models/")
    deployment = ctx.services.catalog.find(name)
    check_model(ctx.key, name)
    card = _card(ctx.services, str(parse_name(name)), deployment)
    await ctx.reply(200, JSON, _encode(card))


def _card(services: Services, name: str, deployment: Deployment) -> ModelCard:
    abilities = deployment.abilities
    price = services.prices.price(deployment.model, time.time_ns() // 1_000_000)
    return ModelCard(
        id=name,
        created=services.started_at,
        owned_by=parse_name(name).vendor,
        context_length=abilities.context,
        deterministic=abilities.deterministic,
        vocab_size=abilities.vocab_size,
        fill_in_the_middle=abilities.fill_in_the_middle,
        price=None if price is None else price.card(),
        prompt_forms={form: _capability(ability) for form, ability in abilities.prompt_forms.items()},
        prompt_logprobs=_capability(abilities.prompt_logprobs),
        capabilities={name: _capability(ability) for name, ability in abilities.parameters.items()},
    )


def _capability(ability: Ability) -> Capability:
    def told(bound: float | None) -> float | UnsetType:
        return UNSET if bound is None else bound

    return Capability(
        how=ability.support,
        why=ability.reason or None,
        word=ability.how or UNSET,
        minimum=told(ability.minimum),
        maximum=told(ability.maximum),
        native_minimum=told(ability.native_minimum),
        native_maximum=told(ability.native_maximum),
    )

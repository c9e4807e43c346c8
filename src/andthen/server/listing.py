"""The models routes: what a key may use, each with what becomes of every field on it."""

from __future__ import annotations

import msgspec

from andthen.complete import find
from andthen.contract.listing import Capability, ModelCard, ModelList
from andthen.contract.names import parse_name
from andthen.server.http import JSON, Exchange
from andthen.server.services import Services
from andthen.sources import Deployment

_encode = msgspec.json.Encoder().encode


async def list_models(services: Services, exchange: Exchange) -> None:
    cards = [_card(services, deployment) for deployment in services.local.deployments().values()]
    await exchange.reply(200, JSON, _encode(ModelList(data=cards)))


async def show_model(services: Services, exchange: Exchange) -> None:
    """The one that the path ends with."""
    _, _, name = exchange.path.partition("/models/")
    card = _card(services, find(name, services.local.deployments()))
    await exchange.reply(200, JSON, _encode(card))


def _card(services: Services, deployment: Deployment) -> ModelCard:
    abilities = deployment.abilities
    return ModelCard(
        id=deployment.model,
        created=services.started_at,
        owned_by=parse_name(deployment.model).vendor,
        context_length=abilities.context,
        deterministic=abilities.deterministic,
        capabilities={
            name: Capability(ability.support, ability.reason or None) for name, ability in abilities.parameters.items()
        },
    )

"""Which path leads where, with which methods, and who may go there."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Iterator, Mapping

import msgspec
from msgspec import Struct

from andthen import __version__
from andthen.contract.errors import MethodNotAllowed, NotFound
from andthen.contract.limits import Limits
from andthen.contract.spec import COMPLETIONS, MODELS, USAGE
from andthen.server import admin, completions, health, listing, tokenizer, usage
from andthen.server.admin import ADMIN_AUDIT, ADMIN_KEYS, ROTATE
from andthen.server.document import document
from andthen.server.http import Exchange
from andthen.server.pages import page, pages
from andthen.server.services import Services
from andthen.server.usage import ADMIN_USAGE

Handler = Callable[[Services, Exchange], Awaitable[None]]


class Access(enum.Enum):
    OPEN = "for everyone"
    KEY = "with a key"
    KEY_OFF_LOOPBACK = "with a key, unless `open_on_loopback` has the tokenizer"
    ADMIN = "with an admin key, also on a loopback address"
    METRICS = "with the metrics key where there is one, else with any, unless `open_on_loopback` has the metrics"


class Route(Struct, frozen=True):
    name: str
    """Stands in logs and metrics instead of the path."""
    method: str
    handler: Handler
    access: Access
    chatty: bool = False
    """Asked so often or in such numbers that the log tells of it only at the debug level."""

    others: Mapping[str, Handler] = {}
    """The handlers of the path's other methods."""

    @property
    def methods(self) -> tuple[str, ...]:
        first = ("GET", "HEAD") if self.method == "GET" else (self.method,)
        return (*first, *self.others)

    def handler_of(self, method: str) -> Handler:
        """Of one of its methods."""
        return self.others.get(method, self.handler)


class Routes:
    """All routes of a server."""

    def __init__(self, limits: Limits) -> None:
        self._by_path: dict[str, Route] = {}
        for path in COMPLETIONS:
            self._by_path[path] = Route("completions", "POST", completions.complete, Access.KEY)
        for root in (*COMPLETIONS, ""):
            self._by_path |= {
                f"{root}/tokenize": Route("tokenize", "POST", tokenizer.tokenize, Access.KEY_OFF_LOOPBACK),
                f"{root}/detokenize": Route("detokenize", "POST", tokenizer.detokenize, Access.KEY_OFF_LOOPBACK),
                f"{root}/tokenizer_info": Route(
                    "tokenizer_info", "GET", tokenizer.tokenizer_info, Access.KEY_OFF_LOOPBACK
                ),
            }
        for path in MODELS:
            self._by_path[path] = Route("models", "GET", listing.list_models, Access.KEY)
        self._by_path["/healthz"] = Route("healthz", "GET", health.healthz, Access.OPEN, chatty=True)
        self._by_path["/readyz"] = Route("readyz", "GET", health.readyz, Access.OPEN, chatty=True)
        self._by_path["/metrics"] = Route("metrics", "GET", health.metrics, Access.METRICS, chatty=True)
        described = page(msgspec.json.encode(document(limits, version=__version__)), b"application/json")
        self._by_path["/openapi.json"] = Route("openapi", "GET", described, Access.OPEN, chatty=True)
        self._by_path[ADMIN_KEYS] = Route(
            "admin_keys", "GET", admin.list_keys, Access.ADMIN, others={"POST": admin.create_key}
        )
        self._by_path[ADMIN_USAGE] = Route("admin_usage", "GET", usage.list_usage, Access.ADMIN)
        for path in USAGE:
            self._by_path[path] = Route("usage", "GET", usage.show_usage, Access.KEY)
        self._by_path[ADMIN_AUDIT] = Route("admin_audit", "GET", admin.list_changes, Access.ADMIN)
        self._key = Route(
            "admin_key", "GET", admin.show_key, Access.ADMIN,
            others={"PATCH": admin.change_key, "DELETE": admin.delete_key},
        )  # fmt: skip
        self._rotate = Route("admin_rotate", "POST", admin.rotate_key, Access.ADMIN)
        for path, handler in pages().items():
            self._by_path[path] = Route("page", "GET", handler, Access.OPEN, chatty=True)
        self._model = Route("model", "GET", listing.show_model, Access.KEY)
        self._below_models = tuple(f"{path}/" for path in MODELS)

    def __iter__(self) -> Iterator[tuple[str, Route]]:
        """All of them, each with a path that leads there."""
        yield from self._by_path.items()
        for path in self._below_models:
            yield f"{path}local/any", self._model
        yield f"{ADMIN_KEYS}/any", self._key
        yield f"{ADMIN_KEYS}/any{ROTATE}", self._rotate

    def find(self, path: str) -> Route:
        """Raises `NotFound`."""
        if route := self._by_path.get(path):
            return route
        if path.startswith(self._below_models):
            return self._model
        name = path.removeprefix(f"{ADMIN_KEYS}/")
        if name != path and name.removesuffix(ROTATE).count("/") == 0 and name.removesuffix(ROTATE):
            return self._rotate if name.endswith(ROTATE) else self._key
        raise NotFound("There is no such path: `GET /openapi.json` lists those that there are.")


def check_method(route: Route, method: str) -> None:
    """Raises `MethodNotAllowed`."""
    if method not in route.methods:
        raise MethodNotAllowed(
            f"This path takes {' and '.join(route.methods)} only: send such a request.", allow=route.methods
        )

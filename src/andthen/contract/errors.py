"""What can go wrong, as one tree. Whose fault it is stands in the type.

AndthenError
├── CallerError                     the request: 4xx, not to be retried as it stands
│   ├── BadRequest                  400  invalid_request_error / invalid_value (the default)
│   │   ├── InvalidJson             400  … / invalid_json
│   │   ├── UnsupportedParameter    400  … / unsupported_parameter
│   │   └── ContextLengthExceeded   400  … / context_length_exceeded
│   ├── InvalidApiKey               401  authentication_error / invalid_api_key
│   ├── PermissionDenied            403  permission_error / permission_denied
│   │   └── ModelNotAllowed         403  … / model_not_allowed
│   ├── NotFound                    404  invalid_request_error / not_found
│   │   └── ModelNotFound           404  … / model_not_found
│   ├── MethodNotAllowed            405  … / method_not_allowed
│   ├── RequestTimeout              408  … / request_timeout, to be retried
│   ├── Conflict                    409  … / conflict
│   │   └── IdempotencyConflict     409  conflict / idempotency_conflict
│   ├── PayloadTooLarge             413  … / payload_too_large
│   ├── UnsupportedMediaType        415  … / unsupported_media_type
│   ├── RateLimited                 429  rate_limit_error / rate_limit_exceeded, to be retried
│   ├── BudgetExceeded              429  budget_error / budget_exceeded, to be retried while requests under way hold it
│   ├── HeadersTooLarge             431  … / headers_too_large
│   └── HttpVersionNotSupported     505  … / http_version_not_supported
├── UpstreamError                   a vendor's, or the way to it
│   ├── UpstreamRefused             502  upstream_error / upstream_refused, not to be retried
│   ├── UpstreamUnauthenticated     502  … / upstream_unauthenticated, not to be retried
│   ├── UpstreamGarbled             502  … / upstream_garbled
│   ├── UpstreamFailed              502  … / upstream_failed
│   ├── UpstreamUnreachable         502  … / upstream_unreachable
│   └── UpstreamTimeout             504  timeout_error / upstream_timeout
└── ServerError                     ours: 5xx, to be retried
    ├── InternalError               500  server_error / internal_error
    ├── NoCapacity                  503  overloaded_error / no_capacity
    │   └── NoDescriptors           503  … / no_capacity
    ├── EngineRestarted             503  overloaded_error / engine_restarted
    ├── LimitsUnavailable           503  overloaded_error / limits_unavailable
    ├── LedgerUnavailable           503  overloaded_error / ledger_unavailable
    ├── DatabaseUnavailable         503  overloaded_error / database_unavailable
    └── ShuttingDown                503  overloaded_error / shutting_down
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class AndthenError(Exception):
    """An error that the caller is told. `message` names the remedy and holds no text of the caller's prompt.

    Args:
        message: what is wrong and what to do about it.
        param: the request's field that is at fault, if one is.
        retry_after_s: seconds after which another try may succeed, if not the usual ones; becomes `retry-after`.
    """

    status: ClassVar[int]
    type: ClassVar[str]
    code: ClassVar[str]
    retryable: ClassVar[bool]
    usual_retry_after_s: ClassVar[int | None] = None

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = self.usual_retry_after_s if retry_after_s is None else retry_after_s
        self.billed = False
        """Tokens were generated before it, so that another try pays for them again."""

    @property
    def should_retry(self) -> bool:
        """What `x-should-retry` tells."""
        return self.retryable and not self.billed


class CallerError(AndthenError):
    type = "invalid_request_error"
    retryable = False


class BadRequest(CallerError):
    """A field is missing, of a wrong type, out of range, or at odds with another."""

    status = 400
    code = "invalid_value"


class InvalidJson(BadRequest):
    """The body is not a JSON object, not UTF-8, or nested too deep."""

    code = "invalid_json"


class UnsupportedParameter(BadRequest):
    """The model can't honour a field that the request sets."""

    code = "unsupported_parameter"


class ContextLengthExceeded(BadRequest):
    """The prompt, or the prompt with `max_tokens`, does not fit the model's context."""

    code = "context_length_exceeded"


class InvalidApiKey(CallerError):
    """The key is missing, unknown, revoked, disabled or expired."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class PermissionDenied(CallerError):
    """The key may not be used here: not from this address, or not on this route."""

    status = 403
    type = "permission_error"
    code = "permission_denied"


class ModelNotAllowed(PermissionDenied):
    """The key may not use this model."""

    code = "model_not_allowed"


class NotFound(CallerError):
    """There is no such route."""

    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """There is no model of this name."""

    code = "model_not_found"


class MethodNotAllowed(CallerError):
    """The route takes other methods; `allow` lists them."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allow = allow


class RequestTimeout(CallerError):
    """The request did not arrive in time. The one error of the caller's side that another try may cure."""

    status = 408
    code = "request_timeout"
    retryable = True


class Conflict(CallerError):
    """What is there already does not allow the change."""

    status = 409
    code = "conflict"


class IdempotencyConflict(Conflict):
    """The `Idempotency-Key` is that of another request."""

    type = "conflict"
    code = "idempotency_conflict"


class PayloadTooLarge(CallerError):
    """The body is larger than the bound."""

    status = 413
    code = "payload_too_large"


class UnsupportedMediaType(CallerError):
    """The body is declared as something else than JSON."""

    status = 415
    code = "unsupported_media_type"


class HeadersTooLarge(CallerError):
    """The headers are larger than the bound."""

    status = 431
    code = "headers_too_large"


class HttpVersionNotSupported(CallerError):
    """The request is in another version than HTTP/1.1 or HTTP/1.0."""

    status = 505
    code = "http_version_not_supported"


class RateLimited(CallerError):
    """Too many requests or tokens, for the key or the vendor behind; `retry-after` tells when there is room again."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    retryable = True
    usual_retry_after_s = 1

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message, param=param, retry_after_s=retry_after_s)
        self.headers = headers
        """`x-ratelimit-*` of a key's own bounds."""


class BudgetExceeded(CallerError):
    """The key's budget has no room for what the request may cost."""

    status = 429
    type = "budget_error"
    code = "budget_exceeded"
    retryable = True
    usual_retry_after_s = 1

    def __init__(self, message: str, *, for_good: bool = False) -> None:
        """Args:
        for_good: there would be no room even if all that requests under way hold were given back.
        """
        super().__init__(message)
        self.for_good = for_good
        if for_good:
            self.retry_after_s = None

    @property
    def should_retry(self) -> bool:
        return not self.for_good


class UpstreamError(AndthenError):
    """The message names the vendor and never quotes a key or a prompt."""

    status = 502
    type = "upstream_error"
    retryable = True


class UpstreamRefused(UpstreamError):
    """The vendor refused the call, for a reason that another try does not cure."""

    code = "upstream_refused"
    retryable = False


class UpstreamUnauthenticated(UpstreamError):
    """The vendor does not take the key that the server has for it: the operator's to mend, not the caller's."""

    code = "upstream_unauthenticated"
    retryable = False


class UpstreamGarbled(UpstreamError):
    """The vendor's reply breaks its format, or ends before it is complete."""

    code = "upstream_garbled"


class ReplyTooLarge(UpstreamGarbled):
    """The vendor's reply is far larger than what was asked for."""


class UpstreamFailed(UpstreamError):
    """The vendor says that it failed."""

    code = "upstream_failed"


class UpstreamUnreachable(UpstreamError):
    """No connection to the vendor: name, address, TLS or proxy."""

    code = "upstream_unreachable"


class UpstreamTimeout(UpstreamError):
    """The vendor took too long; the message says for what."""

    status = 504
    type = "timeout_error"
    code = "upstream_timeout"


class ServerError(AndthenError):
    type = "overloaded_error"
    status = 503
    retryable = True
    usual_retry_after_s: ClassVar[int | None] = 1


class InternalError(ServerError):
    """A fault of the server's own."""

    status = 500
    type = "server_error"
    usual_retry_after_s = None
    code = "internal_error"


class NoCapacity(ServerError):
    """The queue is full, or the server is out of file descriptors."""

    code = "no_capacity"


class NoDescriptors(NoCapacity):
    """This process has no free file descriptor."""


class EngineRestarted(ServerError):
    """The engine died with this request's work and is coming back."""

    code = "engine_restarted"


class LedgerUnavailable(ServerError):
    """The request can't be written down, so it is not begun."""

    code = "ledger_unavailable"


class LimitsUnavailable(ServerError):
    """The key has limits, and what counts them can't be reached."""

    code = "limits_unavailable"


class DatabaseUnavailable(ServerError):
    """The keys can't be read or changed, for their database does not answer."""

    code = "database_unavailable"


class ShuttingDown(ServerError):
    """The server is going down and takes no more work."""

    code = "shutting_down"


def tree() -> tuple[type[AndthenError], ...]:
    """Every error that has a code, as drawn."""
    return tuple(_BY_CODE.values())


def by_code(code: str) -> type[AndthenError]:
    """The class of an error that came from another process. Unknown codes are ours to blame: `InternalError`."""
    return _BY_CODE.get(code, InternalError)


def _walk(kind: type[AndthenError]) -> dict[str, type[AndthenError]]:
    found = {kind.code: kind} if hasattr(kind, "code") else {}
    for child in kind.__subclasses__():
        found |= {code: cls for code, cls in _walk(child).items() if code not in found}
    return found


_BY_CODE = _walk(AndthenError)

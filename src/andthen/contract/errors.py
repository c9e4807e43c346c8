"""What can go wrong, as one tree. Whose fault it is stands in the type.

    AndthenError
    ├── CallerError                     the request: 4xx, not to be retried as it stands
    │   ├── BadRequest                  400  invalid_request_error / invalid_value (the default)
    │   │   ├── InvalidJson             400  … / invalid_json
    │   │   ├── UnsupportedParameter    400  … / unsupported_parameter
    │   │   └── ContextLengthExceeded   400  … / context_length_exceeded
    │   ├── InvalidApiKey               401  authentication_error / invalid_api_key
    │   ├── ModelNotAllowed             403  permission_error / model_not_allowed
    │   ├── NotFound                    404  invalid_request_error / not_found
    │   │   └── ModelNotFound           404  … / model_not_found
    │   ├── MethodNotAllowed            405  … / method_not_allowed
    │   ├── PayloadTooLarge             413  … / payload_too_large
    │   ├── UnsupportedMediaType        415  … / unsupported_media_type
    │   └── HeadersTooLarge             431  … / headers_too_large
    └── ServerError                     ours: 5xx, to be retried
        ├── InternalError               500  server_error / internal_error
        ├── NoCapacity                  503  overloaded_error / no_capacity
        ├── EngineRestarted             503  overloaded_error / engine_restarted
        └── ShuttingDown                503  overloaded_error / shutting_down
"""

from __future__ import annotations

from typing import ClassVar


class AndthenError(Exception):
    """An error that the caller is told. `message` names the remedy and holds no text of the caller's prompt.

    Args:
        message: what is wrong and what to do about it.
        param: the request's field that is at fault, if one is.
        retry_after_s: seconds after which another try may succeed; becomes `retry-after`.
    """

    status: ClassVar[int]
    type: ClassVar[str]
    code: ClassVar[str]
    retryable: ClassVar[bool]

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class CallerError(AndthenError):
    type = "invalid_request_error"
    retryable = False


class BadRequest(CallerError):
    status = 400
    code = "invalid_value"


class InvalidJson(BadRequest):
    code = "invalid_json"


class UnsupportedParameter(BadRequest):
    code = "unsupported_parameter"


class ContextLengthExceeded(BadRequest):
    code = "context_length_exceeded"


class InvalidApiKey(CallerError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class ModelNotAllowed(CallerError):
    status = 403
    type = "permission_error"
    code = "model_not_allowed"


class NotFound(CallerError):
    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(CallerError):
    """`allow` lists the methods that the route takes."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allow = allow


class PayloadTooLarge(CallerError):
    status = 413
    code = "payload_too_large"


class UnsupportedMediaType(CallerError):
    status = 415
    code = "unsupported_media_type"


class HeadersTooLarge(CallerError):
    status = 431
    code = "headers_too_large"


class ServerError(AndthenError):
    type = "overloaded_error"
    status = 503
    retryable = True


class InternalError(ServerError):
    status = 500
    type = "server_error"
    code = "internal_error"


class NoCapacity(ServerError):
    code = "no_capacity"


class EngineRestarted(ServerError):
    code = "engine_restarted"


class ShuttingDown(ServerError):
    code = "shutting_down"


def by_code(code: str) -> type[AndthenError]:
    """The class of an error that came from another process. Unknown codes are ours to blame: `InternalError`."""
    return _BY_CODE.get(code, InternalError)


def _walk(kind: type[AndthenError]) -> dict[str, type[AndthenError]]:
    found = {kind.code: kind} if hasattr(kind, "code") else {}
    for child in kind.__subclasses__():
        found |= {code: cls for code, cls in _walk(child).items() if code not in found}
    return found


_BY_CODE = _walk(AndthenError)

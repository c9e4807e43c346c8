"""A JSON body → checked values by name, as a table of fields says. Knows no field by name.

The first look at a body takes its values apart without reading them, so that nothing is built of what nobody asked
for, however large or deep it is; each field's own decoder then reads its value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType, ValidationError

from andthen.contract.errors import BadRequest, InvalidJson
from andthen.contract.fields import Field

_OBJECT = msgspec.json.Decoder(dict[str, Raw])


def split(body: bytes, max_depth: int) -> dict[str, Raw]:
    """The members of the object that `body` is, unread; of a repeated name the last.

    Raises:
        InvalidJson: it is not UTF-8, not JSON, not an object, or nests deeper than `max_depth`.
    """
    check_utf8(body)
    try:
        members = _OBJECT.decode(body)
    except RecursionError:
        raise _too_deep(max_depth) from None
    except ValidationError:
        raise InvalidJson('The body is not a JSON object: send {"model": …, "prompt": …}.') from None
    except msgspec.DecodeError as error:
        raise InvalidJson(f"The body is not valid JSON: {error}.") from None
    check_depth(body, max_depth)
    return members


def check_utf8(body: bytes) -> None:
    """Raises InvalidJson."""
    try:
        if not body.isascii():
            body.decode()
    except UnicodeDecodeError:
        raise InvalidJson("The body is not UTF-8: encode it so.") from None


def check_depth(body: bytes, max_depth: int) -> None:
    """Of valid JSON. Raises InvalidJson."""
    if _depth_exceeds(body, max_depth):
        raise _too_deep(max_depth)


def _too_deep(bound: int) -> InvalidJson:
    return InvalidJson(f"The body nests arrays and objects deeper than {bound}: send a flatter one.")


_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_REST = bytes(set(range(256)) - set(b'[]{}"'))


def _depth_exceeds(text: bytes, bound: int) -> bool:
    """Whether valid JSON nests deeper. In whole passes over the text, so that no body makes it slow: what is in
    strings goes first, then the innermost brackets, a level at a time."""
    if text.count(b"[") + text.count(b"{") <= bound:
        return False
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    text = text.translate(_ONE_KIND, _REST)
    outside_strings = text.replace(b'""', b"").split(b'"')[::2]
    brackets = b"".join(outside_strings)
    for left in range(bound, 0, -1):
        if b"[" * (left + 1) in brackets:
            return True
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


class Table:
    """The decoders of a table's rows."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self.names = frozenset(field.name for field in fields)
        self._readers = [(field.name, _decoder(field), field.shape.refine, field) for field in fields]
        self._rows = [(field.name, field.shape.refine) for field in fields]
        self._decode = msgspec.json.Decoder(_body_struct(fields)).decode

    def decode(self, body: bytes) -> dict[str, Any] | None:
        """The values of a well-formed body without unknown fields, in one typed pass: the same as `split` and `read`
        give. None where the body needs these two: it is ill-formed, has unknown fields, or writes integers as floats.

        Raises:
            BadRequest: a value has the right type and is wrong all the same.
        """
        try:
            values = msgspec.structs.astuple(self._decode(body))
        except (ValidationError, msgspec.DecodeError, RecursionError):
            return None
        given: dict[str, Any] = {}
        for (name, refine), value in zip(self._rows, values, strict=True):
            if value is not None and value is not UNSET:
                if refine is not None and (value := refine(value)) is None:
                    continue
                given[name] = value
        return given

    def read(self, members: dict[str, Raw]) -> dict[str, Any]:
        """The values of those fields that are present and not null (nor as good as absent), in the table's order.

        Raises:
            BadRequest: for the first field of the table that is missing or wrong.
        """
        values: dict[str, Any] = {}
        for name, decode, refine, field in self._readers:
            raw = members.get(name)
            if raw is None:
                if field.required:
                    raise BadRequest(f"`{name}` is missing: it must be {field.shape.says}.", param=name)
                continue
            try:
                value = decode(raw)
            except ValidationError:
                value = _read_integral(raw, field)
            if value is not None and refine is not None:
                value = refine(value)
            if value is not None:
                values[name] = value
        return values


def _body_struct(fields: Sequence[Field]) -> type[Struct]:
    """A type that decodes all fields at once, absent ones to `UNSET`."""
    members: list[Any] = []
    for field in fields:
        kind = field.shape.python | None if field.nullable else field.shape.python
        members.append((field.name, kind) if field.required else (field.name, kind | UnsetType, UNSET))
    return msgspec.defstruct("Body", members, forbid_unknown_fields=True, kw_only=True, gc=False)


def _decoder(field: Field) -> Callable[[Raw], Any]:
    kind = field.shape.python
    return msgspec.json.Decoder(kind | None if field.nullable else kind).decode


def _read_integral(raw: Raw, field: Field) -> Any:
    """A second look at a value that its type refused: an integer may be written as a float."""
    shape = field.shape
    if shape.integral is not None:
        try:
            return msgspec.convert(_integers(msgspec.json.decode(raw, type=shape.integral)), shape.python)
        except ValidationError:
            pass
    raise BadRequest(f"`{field.name}` must be {shape.says}.", param=field.name)


def _integers(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_integers, value))
    return int(value) if isinstance(value, float) and value.is_integer() else value

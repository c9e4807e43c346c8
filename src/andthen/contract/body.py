"""A JSON body → checked values by name, as a table of fields says. Knows no field by name.

What a body costs is bounded before it is parsed: one pass counts its values and its nesting, in pieces, so that a
thread that makes it lets others run in between. Then the body is taken apart without reading its values, so that
nothing is built of what nobody asked for; each field's own decoder reads its value.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType, ValidationError

from andthen.contract.errors import BadRequest, InvalidJson, PayloadTooLarge
from andthen.contract.fields import Field
from andthen.contract.limits import MAX_ITEMS

_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_MAX_MEMBERS = 1000
"""Of the body's own object. Each costs some 200 bytes, known or not; real clients send a few dozen."""


def split(body: bytes, max_depth: int, max_items: int = MAX_ITEMS) -> dict[str, Raw]:
    """The members of the object that `body` is, unread; of a repeated name the last.

    Raises:
        InvalidJson: it is not UTF-8, not JSON, not an object, nests deeper than `max_depth`, or has too many members.
        PayloadTooLarge: it has more than `max_items` values.
    """
    check_utf8(body)
    check_size(body, max_depth, max_items)
    try:
        return _OBJECT.decode(body)
    except RecursionError:
        raise _too_deep(max_depth) from None
    except ValidationError:
        raise InvalidJson('The body is not a JSON object: send {"model": …, "prompt": …}.') from None
    except msgspec.DecodeError as error:
        raise InvalidJson(f"The body is not valid JSON: {error}.") from None


def check_utf8(body: bytes) -> None:
    """Raises InvalidJson."""
    try:
        if not body.isascii():
            body.decode()
    except UnicodeDecodeError:
        raise InvalidJson("The body is not UTF-8: encode it so.") from None


def _too_deep(bound: int) -> InvalidJson:
    return InvalidJson(f"The body nests arrays and objects deeper than {bound}: send a flatter one.")


_PIECE_BYTES = 2**16
_TEXT = bytes(set(range(256)) - set(b'[]{},"'))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1, ord(","): 0}
_COMMAS = bytes(byte == ord(",") for byte in range(256))


def check_size(body: bytes, max_depth: int, max_items: int) -> None:
    """Bounds the values and the nesting of a body that may be no JSON at all: up to the first byte that no parser takes
    it counts what a parser would. Every value but one follows a comma or an opening bracket outside of strings.

    Raises: InvalidJson, PayloadTooLarge
    """
    if body.count(b"[") + body.count(b"{") <= max_depth and body.count(b",") < _MAX_MEMBERS:
        return
    depth = items = members = 0
    for structure in pieces(body):
        commas = structure.count(b",")
        items += commas
        if commas == len(structure):
            members += commas if depth == 1 else 0
        else:
            # In whole passes: a loop over each bracket would take seconds where there is nothing else.
            depths = list(itertools.accumulate(map(_STEP.__getitem__, structure), initial=depth))
            depth = depths.pop()
            items += structure.count(b"[") + structure.count(b"{")
            if max(depths) > max_depth or depth > max_depth:
                raise _too_deep(max_depth)
            in_object = int.from_bytes(bytes(map((1).__eq__, depths)))
            members += (in_object & int.from_bytes(structure.translate(_COMMAS))).bit_count()
        if items > max_items:
            raise PayloadTooLarge(
                f"The body holds more than {max_items} values: send less in one request, or raise `limits.max_items`."
            )
        if members >= _MAX_MEMBERS:
            raise InvalidJson(f"The body's object has more than {_MAX_MEMBERS} members: leave out what is not needed.")


def holds_more(body: bytes, most: int) -> bool:
    """Whether JSON, or what may be none, has more than so many values; strings are not looked into."""
    items = body.count(b",") + body.count(b"[") + body.count(b"{")
    if items <= most:
        return False
    items = 0
    for structure in pieces(body):
        items += len(structure) - structure.count(b"]") - structure.count(b"}")
        if items > most:
            return True
    return False


def pieces(body: bytes) -> Iterator[bytes]:
    """The brackets and commas outside of strings, a piece at a time."""
    in_string = False
    start = 0
    while start < len(body):
        piece = body[start : start + _PIECE_BYTES]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # no escape is cut in two
            piece = body[start : start + _PIECE_BYTES + 1]
        start += len(piece)
        if b"\\" in piece:
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = piece.translate(None, _TEXT).split(b'"')
        yield b"".join(parts[in_string::2])
        in_string ^= len(parts) % 2 == 0


class Table:
    """The decoders of a table's rows."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self.names = frozenset(field.name for field in fields)
        self._readers = [(field.name, _decoder(field), field.shape.refine, field) for field in fields]
        self._rows = [(field.name, field.shape.refine) for field in fields]
        self._decode = msgspec.json.Decoder(_body_struct(fields)).decode
        self._few_values = min((field.shape.most_values or sys.maxsize for field in fields), default=sys.maxsize)

    def decode(self, body: bytes) -> dict[str, Any] | None:
        """The values of a well-formed body without unknown fields, in one typed pass: the same as `split` and `read`
        give. None where the body needs these two: it is ill-formed, has unknown fields, writes integers as floats, or
        has so many values that a field may hold more than its most.

        Raises:
            BadRequest: a value has the right type and is wrong all the same.
        """
        if len(body) > self._few_values and body.count(b",") >= self._few_values:
            return None
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
            if field.shape.most_values is not None:
                _check_count(raw, field, field.shape.most_values)
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


def _check_count(raw: Raw, field: Field, most: int) -> None:
    """By its commas, before anything is built of it."""
    if len(memoryview(raw)) > most and bytes(raw).count(b",") >= most:
        raise BadRequest(f"`{field.name}` holds more than {most} values: send less.", param=field.name)


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

import pytest

from andthen.contract.errors import BadRequest
from andthen.contract.request import Limits
from andthen.contract.tokenizer import DetokenizeRequest, TokenizeRequest, parse_detokenize, parse_tokenize

LIMITS = Limits()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"prompt":"x"}', TokenizeRequest("x")),
        (b'{"prompt":"","model":null,"add_special_tokens":null}', TokenizeRequest("")),
        (b'{"model":"a/b","prompt":"x","add_special_tokens":false,"parse_special":false,"more":1}',
         TokenizeRequest("x", "a/b", False, False)),
    ],
)  # fmt: skip
def test_tokenize(body: bytes, expected: TokenizeRequest) -> None:
    assert parse_tokenize(body, LIMITS) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"tokens":[]}', DetokenizeRequest()),
        (b'{"tokens":[1,2.0],"model":"a/b"}', DetokenizeRequest((1, 2), "a/b")),
    ],
)
def test_detokenize(body: bytes, expected: DetokenizeRequest) -> None:
    assert parse_detokenize(body, LIMITS) == expected


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{}", "prompt"),
        (b'{"prompt":null}', "prompt"),
        (b'{"prompt":["x"]}', "prompt"),
        (b'{"prompt":"x","model":""}', "model"),
        (b'{"prompt":"x","add_special_tokens":1}', "add_special_tokens"),
    ],
)
def test_what_can_not_be_tokenized(body: bytes, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_tokenize(body, LIMITS)
    assert caught.value.param == param


@pytest.mark.parametrize("tokens", [b'"x"', b"null", b"[-1]", b"[2147483648]", b"[null]", b"[[1]]", b"[1.5]"])
def test_what_can_not_be_detokenized(tokens: bytes) -> None:
    with pytest.raises(BadRequest, match="`tokens` must be"):
        parse_detokenize(b'{"tokens":' + tokens + b"}", LIMITS)

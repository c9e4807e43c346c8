import pytest

from andthen.contract.errors import ModelNotFound
from andthen.contract.names import ModelName, parse_name


@pytest.mark.parametrize(
    ("name", "vendor", "model"),
    [("local/tale", "local", "tale"), ("hub/a/b:c", "hub", "a/b:c"), ("a//", "a", "/")],
)
def test_a_name_splits_at_its_first_slash(name: str, vendor: str, model: str) -> None:
    assert parse_name(name) == ModelName(vendor, model)
    assert str(parse_name(name)) == name


@pytest.mark.parametrize("name", ["", "tale", "/", "/tale", "local/"])
def test_a_name_without_vendor_or_model_is_not_found(name: str) -> None:
    with pytest.raises(ModelNotFound, match="vendor/model") as caught:
        parse_name(name)
    assert caught.value.param == "model"

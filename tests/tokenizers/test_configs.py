"""Dataclasses <-> JSON: typed, closed, and readable by people."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Literal

import mmgen_tokenizers as mt
import pytest
from mmgen_tokenizers.configs import changed, from_json, to_json
from mmgen_tokenizers.errors import UserError


@dataclass(frozen=True)
class Circle:
    radius: float
    colour: Literal["red", "blue"] = "red"


@dataclass(frozen=True)
class Square:
    side: int = 1


@dataclass(frozen=True)
class Scene:
    shape: Circle | Square
    other: Circle | None = None
    sizes: tuple[int, ...] = ()
    pair: tuple[str, float] | Literal["none"] = "none"
    name: str | None = None
    centre: Square = field(default_factory=Square)

    def __post_init__(self):
        if self.name == "":
            raise ValueError("name must not be empty")


def scene() -> Scene:
    return Scene(Circle(0.1, "blue"), Circle(2.0), (1, 2, 3), ("power", 2.5), "x", Square(7))


def test_round_trip_through_text():
    assert from_json(Scene, json.loads(json.dumps(to_json(scene())))) == scene()


def test_only_members_of_unions_of_dataclasses_are_tagged():
    tree = to_json(scene())
    assert tree["shape"] == {"kind": "Circle", "radius": 0.1, "colour": "blue"}
    assert tree["other"] == {"radius": 2.0, "colour": "red"}
    assert tree["centre"] == {"side": 7}


def test_a_missing_tag_is_the_first_member():
    assert from_json(Scene, {"shape": {"radius": 1}}) == Scene(Circle(1.0))


def test_whole_numbers_become_floats_and_not_the_other_way():
    assert type(from_json(Circle, {"radius": 1}).radius) is float
    with pytest.raises(UserError, match="side: expected a whole number, found 1.5"):
        from_json(Square, {"side": 1.5})
    with pytest.raises(UserError, match="expected a whole number, found True"):
        from_json(Square, {"side": True})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"shape": {"radios": 1}}, "shape: Circle has no field 'radios'. Did you mean 'radius'"),
        ({"shape": {"kind": "Circel"}}, "shape: unknown kind 'Circel', expected one of Circle, Square. Did you mean 'Circle'"),
        ({"shape": {"kind": "Circle"}}, "shape: Circle needs radius"),
        ({"shape": {"radius": 1, "colour": "bleu"}}, "shape.colour: expected one of 'red', 'blue', found 'bleu'. Did you mean"),
        ({"shape": 3}, "shape: expected Circle or Square, found 3"),
        ({"shape": {"radius": 1}, "sizes": [1, "2"]}, "sizes[1]: expected a whole number, found '2'"),
        ({"shape": {"radius": 1}, "pair": ["a"]}, "pair: expected a list of 2 values or one of 'none', found ['a']"),
        ({"shape": {"radius": 1}, "name": ""}, "name must not be empty"),
        ([], "expected the fields of Scene, found []"),
    ],
)
def test_errors_name_the_place_and_the_remedy(tree, message):
    with pytest.raises(UserError) as error:
        from_json(Scene, tree)
    assert message in str(error.value)


def test_a_value_that_json_cannot_hold_is_the_programmers_mistake():
    with pytest.raises(TypeError, match="cannot hold a set"):
        to_json(dataclasses.replace(scene(), name={1}))


def test_changed_fields():
    config = mt.VQGAN(mt.CNN(channels=4, latent=4, groups=4), mt.VQ(size=32, dim=4), image_size=32)
    network, quantizer = {"kind": "CNN", "channels": 4, "latent": 4, "groups": 4}, {"kind": "VQ", "size": 32, "dim": 4}
    assert changed(config) == {"kind": "VQGAN", "network": network, "quantizer": quantizer, "image_size": 32}
    assert changed(mt.CNN()) == {"kind": "CNN"}

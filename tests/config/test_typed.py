"""Values from files against the types that a dataclass declares; layers that are not written out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from rmadapter import InputError, RMAdapterConfig
from rmadapter.config import layer_numbers
from rmadapter.config.typed import DEEPEST, check_types, from_plain
from rmadapter.files import read_json


@dataclass
class Inner:
    name: str
    weights: tuple[float, float] = (0.0, 0.0)


@dataclass
class Outer:
    count: int
    scale: float = 1.0
    on: bool = False
    layers: list[int] | str = "all"
    inner: Inner | None = None
    named: dict[str, list[str]] = field(default_factory=dict)
    free: dict[str, Any] = field(default_factory=dict)


def test_what_json_has_becomes_what_the_class_declares():
    values = {
        "count": 1,
        "scale": 2,
        "layers": [1, 2],
        "inner": {"name": "a", "weights": [1, 2.5]},
        "free": {"a": [{}]},
    }
    assert from_plain(Outer, values, "file") == Outer(1, 2.0, False, [1, 2], Inner("a", (1.0, 2.5)), {}, {"a": [{}]})
    check_types(Outer(1, inner=Inner("a")), "file")


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"file is \[\]; valid: an object"),
        ({}, "file lacks field 'count'"),
        ({"count": 1, "cuont": 2}, "key in file is 'cuont'.*did you mean 'count'"),
        ({"count": True}, "file.count is True; valid: a whole number"),
        ({"count": 1.0}, r"file.count is 1\.0; valid: a whole number"),
        ({"count": 1, "scale": "2"}, "file.scale is '2'; valid: a number"),
        ({"count": 1, "scale": float("nan")}, "file.scale is nan; valid: a number"),
        ({"count": 1, "on": 0}, "file.on is 0; valid: true or false"),
        ({"count": 1, "layers": {"a": 1}}, "file.layers is .*; valid: a list, each of it a whole number or text"),
        ({"count": 1, "layers": [1, "2"]}, r"file.layers\[1\] is '2'; valid: a whole number"),
        ({"count": 1, "inner": [1]}, r"file.inner is \[1\]; valid: an object or null"),
        (
            {"count": 1, "inner": {"name": "a", "weights": [1]}},
            "file.inner.weights is .*; valid: a list of 2, each of it a",
        ),
        ({"count": 1, "named": {"a": "b"}}, "file.named.a is 'b'; valid: a list, each of it text"),
        ({"count": 1, "free": {"a": nested(DEEPEST)}}, "file.free.a is nested deeper than 16 levels"),
        ({"count": 1, "inner": nested(2000)}, "file.inner is .*; valid: an object or null"),
    ],
)
def test_what_is_wrong_is_said(values, message):
    with pytest.raises(InputError, match=message) as error:
        from_plain(Outer, values, "file")
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bottleneck": 8.5}, r"adapter.bottleneck is 8\.5; valid: a whole number"),
        ({"bottleneck": True}, "adapter.bottleneck is True"),
        ({"scale": "big"}, "adapter.scale is 'big'; valid: a number"),
        ({"reconstruct": "no"}, "adapter.reconstruct is 'no'; valid: true or false"),
        ({"activation": ["gelu"]}, "adapter.activation is .*; valid: text"),
    ],
)
def test_an_adapter_is_described_by_the_types_it_declares(values, message):
    for make in (lambda: RMAdapterConfig(**values), lambda: RMAdapterConfig.from_dict(values)):
        with pytest.raises(InputError, match=message):
            make()


@pytest.mark.parametrize("spec", ["1-99999999", "1-999999999,3", "99999999-999999999", "last:999999999"])
def test_a_range_of_layers_is_not_written_out(spec):
    config = RMAdapterConfig(layers=spec)
    with pytest.raises(InputError, match=r"valid: (1 to 12|last:1 to last:12)") as error:
        layer_numbers(config.layers, 12)
    assert len(str(error.value)) < 200
    assert layer_numbers("2-4,1", 4) == [1, 2, 3, 4]


@pytest.mark.parametrize("spec", ["1-" + "9" * 5000, "9" * 5000, "last:" + "9" * 5000, "١-٣"])
def test_numbers_that_are_no_layers(spec):
    with pytest.raises(InputError, match=r"adapter\.layers is"):
        RMAdapterConfig(layers=spec)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "too many lists or objects in one another"),
        ("9" * 5000, "cannot be read"),
        ("[1, 2, 3, 4, 5, 6]", "is larger than 0 MB"),
    ],
)
def test_json_that_cannot_be(tmp_path, text, message):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_json(tmp_path / "file.json", "file", limit=17 if len(text) < 100 else 1 << 20)

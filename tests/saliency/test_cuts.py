"""What a stage is, on graphs whose nodes are plain words."""

from dataclasses import dataclass

import pytest

from vbp.saliency.cuts import Strand, reached, stages_of


@dataclass(frozen=True)
class Map:
    sources: tuple[str, ...] = ()
    kind: str = "other"
    step: str | None = None

    @property
    def joins(self):
        return len(self.sources) > 1


def convolution(source, step):
    return Map((source,), "convolution", step)


def activation(source):
    return Map((source,), "activation")


CHAIN = {"x": Map(), "c": convolution("x", "3x3"), "r": activation("c"), "p": Map(("r",), step="pool")}


def test_a_stage_is_an_activation_behind_a_convolution():
    assert list(stages_of(CHAIN)) == [("r", [[Strand((0,), ("3x3",))], []])]
    assert list(stages_of({"x": Map(), "r": activation("x")})) == []


@pytest.mark.parametrize(("after", "top"), [("other", "sum"), ("convolution", "sum"), ("activation", "last")])
def test_a_join_is_a_stage_unless_an_activation_follows(after, top):
    maps = {
        "x": Map(),
        "c": convolution("x", "3x3"),
        "r": activation("c"),
        "d": convolution("r", "1x1"),
        "sum": Map(("d", "x")),
        "last": Map(("sum",), after),
    }
    ((found, segments),) = stages_of(maps)
    assert found == top
    assert segments[0] == [Strand((0,), ("3x3", "1x1")), Strand((1, 0))]


def test_a_stage_has_all_segments_below_it():
    maps = {**CHAIN, "d": convolution("p", "1x1"), "s": activation("d")}
    assert list(stages_of(maps))[1] == ("s", [[Strand((0,), ("pool",))], [Strand((0,), ("1x1",))], []])


def test_where_heads_part_the_trunk_ends():
    maps = {**CHAIN, "d": convolution("p", "1x1"), "s": activation("d"), "t": convolution("p", "1x1")}
    assert [top for top, _ in stages_of(maps)] == ["r"]


def test_reached_follows_every_path_once():
    assert reached("s", {"s": "ab", "a": "c", "b": "c", "c": "s", "d": "s"}.__getitem__) == set("sabc")

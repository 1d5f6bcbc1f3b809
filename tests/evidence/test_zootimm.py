"""The page of timm's networks: which are looked at, in which turn, and what is counted."""

import pytest
import torch
from torch import nn

timm = pytest.importorskip("timm")
zootimm = pytest.importorskip("vbp.evidence.zootimm")


def row(architecture, parameters, **found):
    return {"family": "nets", "architecture": architecture, "parameters": parameters, **found}


def test_the_smallest_network_of_each_architecture_stands_for_it():
    rows = {"a": row("x", 5), "b": row("x", 3), "c": row("y", 4), "d": row("z", zootimm.LARGEST + 1), "e": row("x", 3)}
    assert zootimm.representatives(rows) == ["b", "c"]


def test_steps_are_taken_in_turn_and_once(monkeypatch):
    rows = {"large": row("x", 9), "refused": row("y", 2)}
    monkeypatch.setattr(zootimm, "survey", lambda name: row("x", 3))
    monkeypatch.setattr(zootimm, "look", lambda name: {"stages": int(name != "refused"), "reason": "", "attends": True})
    monkeypatch.setattr(zootimm, "check", lambda name: {"problem": ""})
    taken = []
    for name, found in zootimm.steps(["large", "refused", "small"], rows):
        rows.setdefault(name, {}).update(found)
        taken.append((name, *found))
    assert [(name, first) for name, first, *_ in taken] == [
        ("small", "family"), ("refused", "stages"), ("small", "stages"), ("small", "problem"), ("large", "stages"),
    ]  # fmt: skip
    assert list(zootimm.steps(["large", "refused", "small"], rows)) == []


def test_attention_and_mixers_do_not_count_as_convolutional():
    refusal = "Net has an operation that moves pixels: a.view. The stages below can be explained: name it."
    rows = {
        "right": row("a", 1, stages=5, reason="", problem=""),
        "wrong": row("b", 2, stages=2, reason="", problem="flat"),
        "moves": row("c", 3, stages=0, reason=refusal, attends=False),
        "attends": row("d", 4, stages=0, reason=refusal, attends=True),
        "mixer": row("e", 5, stages=0, reason="Net has no activation behind a 2-d convolution, so", attends=False),
        "unseen": row("f", 6),
        "wider": row("a", 7, stages=5, reason=""),
    }
    page = " ".join(zootimm.page(rows).split())
    assert "5 of 6 architectures were looked at: 2 are explained, 67% of the 3 convolutional ones." in page
    assert "6 of the 7 names were looked at: 3 are explained, 75% of the 4 convolutional ones." in page
    assert "Of 2 architectures, two images of 96x128 pixels were explained, too." in page
    assert "1 of these have no fault." in page
    assert "| wrong | flat |" in page
    assert "| moves | Net has an operation that moves pixels: a.view |" in page
    assert (
        "| nets | 2 of 5 | attention or recurrence; no convolution with an activation; operation that moves pixels |"
        in page
    )


class Net(nn.Module):
    """A convolution and what `forward` of a test does with its map, which tracing need not follow."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.first, self.rest = nn.Conv2d(3, 4, 3, stride=8), forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        x = self.first(x)
        return self.rest(self, x) if x.sum() is not None else x


def linear_attention(net, x):
    one = x.flatten(2).relu()
    return one @ (one.transpose(1, 2) @ one)


def by_einsum(net, x):
    return torch.einsum("bcp,bdp->bcd", x.flatten(2), x.flatten(2))


def softmax_that_fails_later(net, x):
    return x.flatten(2).softmax(-1).view(-1, 7)[:, 9]


@pytest.mark.parametrize("forward", [linear_attention, by_einsum, softmax_that_fails_later])
def test_attention_is_told_by_what_runs(forward):
    assert zootimm.attends(Net(forward))


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.last(x.mean((2, 3))),
        lambda net, x: x.permute(0, 2, 3, 1) @ net.last.weight.t(),
        lambda net, x: torch.einsum("bchw,dc->bdhw", x, net.last.weight),
    ],
)
def test_weights_are_no_attention(forward):
    assert not zootimm.attends(Net(forward, last=nn.Linear(4, 2)))


def test_recurrence_counts_as_attention():
    assert zootimm.attends(Net(lambda net, x: net.last(x.flatten(2).mT)[0], last=nn.LSTM(4, 4)))


def test_timms_networks_are_told_apart():
    assert zootimm.attends(timm.create_model("test_vit"))
    assert not zootimm.attends(timm.create_model("test_resnet"))
    assert zootimm.look("test_resnet") == {
        "stages": len(zootimm.trace(timm.create_model("test_resnet")).stages),
        "reason": "",
    }

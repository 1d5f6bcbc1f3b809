"""What a sweep file asks for, and what it is refused for."""

import itertools
import json

import pytest

from vbp.errors import UsageError
from vbp.pipeline import RunConfig
from vbp.pipeline.sweep.sweepfile import ELSEWHERE, OF_ALL, parse_sweep, read_sweep

Plain = str | int | float | bool | None
FULL = """
output: results
inputs: {old: photos, new: s3://bucket/2026}
variants:
  vgg: {model: vgg16, weights: vgg.safetensors}
  resnet: {model: resnet50, weights: resnet.safetensors, size: 256}
grid:
  outputs: [[mask], "mask,overlay"]
  preset: [paper, reference]
exclude:
  - {variant: resnet, preset: reference}
common: {size: 224, max_failures: 2, workers: null}
budget: {max_hours: 2, price_per_hour: 3, max_cost: 1.5}
"""


def names(text):
    return [run.name for run in parse_sweep(text).runs]


def test_all_combinations_but_the_excluded():
    asked = parse_sweep(FULL)
    found = {
        (run.config.input, run.config.model, run.config.weights, run.config.size, run.config.preset, run.config.outputs)
        for run in asked.runs
    }
    networks = [("vgg16", "vgg.safetensors", 224, "paper"), ("vgg16", "vgg.safetensors", 224, "reference")]
    networks += [("resnet50", "resnet.safetensors", 256, "paper")]
    places, kinds = ("photos", "s3://bucket/2026"), (("mask",), ("mask", "overlay"))
    assert found == {(place, *one, kind) for place, one, kind in itertools.product(places, networks, kinds)}
    assert len(asked.runs) == 12
    assert {run.config.max_failures for run in asked.runs} == {"2"}


def test_outputs_and_names():
    assert names(FULL)[:3] == [
        "input-old--variant-vgg--preset-paper--outputs-mask",
        "input-old--variant-vgg--preset-paper--outputs-mask-overlay",
        "input-old--variant-vgg--preset-reference--outputs-mask",
    ]
    first = parse_sweep(FULL).runs[0]
    assert first.config.output == f"results/runs/{first.name}"
    assert first.varied == {"input": "old", "variant": "vgg", "preset": "paper", "outputs": "mask"}
    assert names("{output: out, inputs: photos}") == ["run"]


def test_names_do_not_change_when_the_file_is_rearranged_or_grows():
    before = names("{output: o, inputs: p, grid: {size: [64, 32], preset: [paper]}}")
    assert before == ["preset-paper--size-64", "preset-paper--size-32"]
    after = names("{grid: {preset: [reference, paper], size: [32, 64, 96]}, inputs: p, output: o}")
    assert set(before) < set(after)


@pytest.mark.parametrize(
    ("axis", "labels"),
    [
        (
            "weights: [random, s3://b/a/model.v2.safetensors, 'C:/my model (1).pth']",
            ["random", "model.v2", "my-model-1"],
        ),
        ("weights: {first: a.pth, second: b/a.pth}", ["first", "second"]),
        ("batch_size: [1, null]", ["1", "auto"]),
        ("smooth: [0, 8]", ["0", "8"]),
        ("multiply_input: [true, false]", ["true", "false"]),
        ("noise: [0.1, 1]", ["0.1", "1"]),
        ("mean: [[0.5, 0.25, 0], '0.1,0.2,0.3', null]", ["0.5-0.25-0.0", "0.1-0.2-0.3", "auto"]),
        ("interpolation: [bicubic, null]", ["bicubic", "auto"]),
        ("stages: [all, 'features.1,features.3']", ["all", "features.1-features.3"]),
    ],
)
def test_names_of_values(axis, labels):
    field = axis.partition(":")[0]
    made = names(f"output: o\ninputs: p\ngrid:\n  {axis}\n" + ("common: {smooth: 2}\n" if field == "noise" else ""))
    assert made == [f"{field}-{label}" for label in labels]


def test_names_of_inputs():
    assert names("{output: o, inputs: [a/photos/, s3://b/list.parquet]}") == ["input-photos", "input-list.parquet"]


def test_numbers_keep_their_type_in_the_index():
    runs = parse_sweep("{output: o, inputs: p, grid: {size: [64], multiply_input: [true], seed: {a: 1}}}").runs
    assert [run.varied for run in runs] == [{"size": 64, "multiply_input": True, "seed": "a"}]


@pytest.mark.parametrize(
    ("budget", "hours"),
    [
        ("{}", None),
        ("{max_hours: 2}", 2),
        ("{price_per_hour: 4}", None),
        ("{max_cost: 6, price_per_hour: 4}", 1.5),
        ("{max_cost: 6, price_per_hour: 4, max_hours: 1}", 1),
    ],
)
def test_the_tighter_limit_counts(budget, hours):
    assert parse_sweep(f"{{output: o, inputs: p, budget: {budget}}}").budget.hours == hours


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "is not YAML"),
        ("photos", "the file (='photos') must be a mapping"),
        ("inputs: p", "output (=None) must name a place"),
        ("output: o", "inputs (=None) must name at least one place"),
        ("{output: o, inputs: p, gird: {}}", "gird is no key of a sweep file: did you mean grid?"),
        ("{output: o, inputs: p, grid: {presett: [paper]}}", "presett is no setting of vbp explain: did you mean"),
        ("{output: o, inputs: p, grid: {preset: [papper]}}", "grid.preset[0]: --preset (=papper) must be one of paper"),
        ("{output: o, inputs: p, grid: {preset: paper}}", "one value for all runs is common.preset"),
        ("{output: o, inputs: p, grid: {preset: []}}", "grid.preset (=[]) must be a list"),
        ("{output: o, inputs: p, grid: {size: [big]}}", "grid.size[0] (='big') must be a whole number or null (auto)."),
        ("{output: o, inputs: p, grid: {size: [true]}}", "grid.size[0] (=True) must be a whole number or null (auto)."),
        ("{output: o, inputs: p, common: {noise: much}}", "common.noise (='much') must be a number."),
        ("{output: o, inputs: p, common: {batch_size: 8.5}}", "must be a whole number or null (auto)"),
        ("{output: o, inputs: p, common: {weights: no}}", "common.weights (=False) must be text; put it in quotes"),
        ("{output: o, inputs: p, common: {outputs: 3}}", "common.outputs (=3) must be a list like [mask, overlay]"),
        ("{output: o, inputs: p, common: {mean: [a, b]}}", "common.mean (=['a', 'b']) must be a list of numbers"),
        ("{output: o, inputs: p, common: {mean: [124, 116, 104]}}", "common.mean: --mean (=124,116,104) must lie in"),
        ("{output: o, inputs: p, common: {channels: 3}}", "common.channels (=3) must be text or null"),
        ("{output: o, inputs: p, common: {channels: hsv}}", "--channels (=hsv) must be one of rgb"),
        ("{output: o, inputs: p, common: {input: q}}", "inputs are named under inputs"),
        ("{output: o, inputs: p, common: {resume_mode: fail}}", "a sweep always resumes"),
        ("{output: o, inputs: p, grid: {workers: [1, 2]}}", "grid.workers (=[1, 2]) is of all runs"),
        ("{output: o, inputs: p, variants: {a: {device: cpu}}}", "device (='cpu') is of all runs; put it in common"),
        ("{output: o, inputs: p, variants: {}}", "variants (={}) must name at least one variant"),
        ("{output: o, inputs: [a/p, b/P]}", "inputs[1] (='b/P') has the name P as another one does; give names"),
        ("{output: o, inputs: {a b: p}}", "inputs.a b (='a b') is no name"),
        ("{output: o, inputs: {a--b: p}}", "is no name"),
        ("{output: p/o, inputs: p}", "lies inside INPUT"),
        ("{output: o, inputs: p, grid: {size: {a: 8, b: 8}}}", "the runs size-a and size-b have the same settings"),
        ("{output: o, inputs: p, grid: {size: [8]}, common: {size: 9}}", "size stands in grid and in common"),
        ("{output: o, inputs: p, grid: {size: [8]}, variants: {a: {size: 9}}}", "size stands in grid and in variants"),
        ("{output: o, inputs: p, grid: {size: [8]}, exclude: {size: 8}}", "exclude (={'size': 8}) must be a list"),
        ("{output: o, inputs: p, grid: {size: [8]}, exclude: [{siz: 8}]}", "did you mean size?"),
        ("{output: o, inputs: p, grid: {size: [8]}, exclude: [{size: 9}]}", "exclude[0].size (=9) must be one of 8."),
        ("{output: o, inputs: p, grid: {size: [8]}, exclude: [{size: 8}]}", "leaves no run"),
        ("{output: o, inputs: p, grid: {size: [8]}, exclude: [{}]}", "exclude[0] (={}) names nothing"),
        ("{output: o, inputs: p, budget: {max_cost: 4}}", "needs budget.price_per_hour"),
        ("{output: o, inputs: p, budget: {max_hours: -4}}", "budget.max_hours (=-4) must be a number above 0"),
        ("{output: o, inputs: p, budget: {hours: 4}}", "budget.hours is no limit: did you mean"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_key_value_and_rule(text, said):
    with pytest.raises(UsageError) as refused:
        parse_sweep(text, "my.yaml")
    assert said in str(refused.value)
    assert str(refused.value).startswith("my.yaml")


def test_every_field_is_a_setting_or_has_a_reason():
    texts = {"outputs": "[mask]", "weights": "demo", "storage_options": "{}", "model_args": "{}"}
    for name, field in RunConfig.__dataclass_fields__.items():
        text = texts[name] if name in texts else json.dumps(field.default if isinstance(field.default, Plain) else "x")
        asked = f"{{output: o, inputs: p, common: {{{name}: {text}}}}}"
        if name in ELSEWHERE:
            with pytest.raises(UsageError, match="is no setting of a run"):
                parse_sweep(asked)
        else:
            assert len(parse_sweep(asked).runs) == 1
    assert set(OF_ALL) <= set(RunConfig.__dataclass_fields__)


def test_a_file_that_is_not_there():
    with pytest.raises(UsageError, match=r"SWEEP \(=/nowhere.yaml\) cannot be read"):
        read_sweep("/nowhere.yaml")

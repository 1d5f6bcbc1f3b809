"""The table of metrics and the list that users choose from say the same."""

import re
from pathlib import Path

import pytest

from vbp.choices import METRIC_NAMES
from vbp.evaluation.localisation import LOCALISATION
from vbp.evaluation.metrics import METRICS
from vbp.evaluation.perturbation import PERTURBATION
from vbp.evaluation.randomisation import RANDOMISATION
from vbp.evaluation.sparseness import SPARSENESS
from vbp.evaluation.stability import STABILITY

ROOT = Path(__file__).parents[2]
COMPUTED = {
    "localisation": LOCALISATION,
    "perturbation": PERTURBATION,
    "randomisation": RANDOMISATION,
    "stability": STABILITY,
    "shift": ["shift"],
    "sparseness": SPARSENESS,
}


def test_the_table_has_the_names_that_users_choose_from():
    assert tuple(METRICS) == METRIC_NAMES


def test_every_metric_is_computed_by_its_family():
    assert {name: metric.family for name, metric in METRICS.items()} == {
        name: family for family, names in COMPUTED.items() for name in names
    }


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_a_line_of_the_table_is_whole(metric):
    assert metric.lowest < metric.highest
    assert "20" in metric.paper  # a year
    assert metric.meaning[0].islower() or metric.meaning[0].isdigit()


def test_the_guide_has_every_metric():
    page = (ROOT / "docs/how-to/evaluate.md").read_text()
    table = page.partition("## Metrics")[2].partition("`chance`")[0]
    assert set(re.findall(r"`([a-z][a-z-]+)`", table)) == set(METRIC_NAMES)

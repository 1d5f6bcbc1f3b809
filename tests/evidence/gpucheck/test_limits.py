"""What limits a figure."""

import pytest

from vbp.evidence.gpucheck.codecs import TOGETHER
from vbp.evidence.gpucheck.job import MAIN_JOB
from vbp.evidence.gpucheck.limits import told
from vbp.evidence.gpucheck.rates import WHOLE


def figure(name, median, target=None, unit="images/s", detail=""):
    return {"name": name, "median": median, "target": target, "unit": unit, "detail": detail}


@pytest.mark.parametrize(
    ("engine", "codecs", "limit"),
    [
        ((9_000, 8_000), 4_000, f"75% of {TOGETHER}, 16 processes alone (4,000 images/s)"),
        ((2_000, 6_000), 7_000, f"50% of {WHOLE}, batches of 128 alone (6,000 images/s)"),
    ],
)
def test_the_slowest_step_is_named_by_its_best_figure(engine, codecs, limit):
    figures = [
        figure(f"{WHOLE}, batches of 64", engine[0]),
        figure(f"{WHOLE}, batches of 128", engine[1]),
        figure(f"{TOGETHER}, 16 processes", codecs),
        figure(f"{TOGETHER}, one core", 1, unit="ms/image"),
        figure(f"{MAIN_JOB}, 1 worker", 3_000, target=3_500, detail="seen"),
        figure(f"{MAIN_JOB}, 2 workers", 3_000),
    ]
    found = list(told(figures))
    assert [each["detail"] for each in found] == ["", "", "", "", f"seen; {limit}", ""]
    assert figures[4]["detail"] == "seen"


def test_a_figure_whose_steps_were_not_measured_stays():
    alone = [figure(f"{MAIN_JOB}, 1 worker", 3_000, target=3_500)]
    assert list(told(alone)) == alone

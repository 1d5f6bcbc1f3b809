"""One seed of random options; `python -m tests.chaos.edges.options` runs more."""

import pytest

from tests.chaos.edges.options import Case, cases, run


@pytest.mark.long
def test_one_seed_of_options():
    done = [run(case) for case in cases(4)]
    assert [(case.arguments, case.wrong) for case in done if case.wrong] == []
    assert {case.exit_code for case in done} >= {0, 2}


def test_a_size_that_no_machine_holds():
    case = run(Case(["--size=999999999999999999999", "--weights=demo", "--", "photos", "out"], {}))
    assert (case.exit_code, case.wrong) == (2, "")
    assert "at most 10000" in case.said


def test_no_refusal_says_a_secret():
    assert run(Case(["--weights=demo", "--", "", "https://me:word@h/x"], {})).wrong == ""

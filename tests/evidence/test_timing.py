"""Medians, spreads and ratios of what was timed."""

from vbp.evidence.timing import Case, clocked, measure, ratio


def test_every_round_is_kept_and_the_warm_up_is_not():
    seconds = {"a": iter([9.0, 1.0, 2.0, 4.0]), "b": iter([9.0, 2.0, 2.0, 2.0])}
    order = []

    def case(name):
        def work():
            order.append(name)
            return 8, next(seconds[name])

        return Case("part", name, work)

    rates = measure([case("a"), case("b")], 3, lambda line: None)
    assert order == ["a", "b"] * 4
    assert rates["a"].rates == [8.0, 4.0, 2.0]
    assert rates["a"].median == 4.0
    assert rates["a"].as_json()["least"] == 2.0
    over = ratio("a over b", rates["a"], rates["b"], target=1.0)
    assert over.values == [2.0, 1.0, 0.5]
    assert over.as_json() | {"rounds": 0} == {
        "name": "a over b", "ratio": 1.0, "least": 0.5, "greatest": 2.0, "target": 1.0, "reached": True, "rounds": 0,
    }  # fmt: skip


def test_the_clock_runs_around_the_work():
    images, seconds = clocked(lambda: None, 5)()
    assert images == 5
    assert 0 < seconds < 1

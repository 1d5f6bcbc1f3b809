"""One seed of each chaos; `make chaos` runs all, and prints the tables of docs/chaos.md."""

import pytest

from tests.chaos.suite import chaos, hostility, recovery


def test_one_seed_of_chaos(s3_server, capsys):
    outcome = chaos(1, s3_server, images=24)
    with capsys.disabled():
        print(f"\n{outcome}")  # noqa: T201
    assert outcome.clean
    assert sum(outcome.kills.values()) >= 1
    assert sum(outcome.faults.values()) > 0


@pytest.mark.slow
def test_one_seed_in_the_shape_for_gpus(s3_server):
    """Few images are left, and shards share decoding tasks."""
    outcome = chaos(6, s3_server, "spread", images=24)
    print(outcome)  # noqa: T201
    assert outcome.clean
    assert sum(outcome.kills.values()) >= 1


@pytest.mark.long
def test_a_killed_run_computes_no_more_again_than_it_had_in_hand(tmp_path):
    outcome = recovery(50, tmp_path, images=24)
    assert (outcome.rows, outcome.committed >= 16) == (24, True)
    assert outcome.again <= outcome.in_hand


@pytest.mark.long
def test_hostile_images_among_good_ones(tmp_path):
    outcome = hostility(tmp_path, good=40)
    assert outcome.ok == 40
    assert [(name, stage, kind) for name, stage, kind, _, right in outcome.kinds if not right] == []
    assert len(outcome.kinds) == 20

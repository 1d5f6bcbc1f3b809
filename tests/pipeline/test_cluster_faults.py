"""Missing and lost resources of a Ray cluster, as messages that say what to do."""

import pytest
import ray.exceptions
from ray.data.exceptions import ExecutionTimeoutError

from vbp.errors import InterruptedRunError
from vbp.pipeline import RunConfig, run
from vbp.pipeline.on_ray import dataset as plan


class Failing:
    """A dataset whose execution ends in an error."""

    def __init__(self, error):
        self._error = error

    def iter_rows(self):
        raise self._error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ray.exceptions.GetTimeoutError("Timed out while starting actors."),
            ["did not all start within 600 s: 1 worker claims 2 CPUs and 0 GPUs", "fewer --workers"],
        ),
        (ExecutionTimeoutError("no progress"), ["Nothing was finished for 1800 s: 1 worker claims 2 CPUs"]),
        (ray.exceptions.RaySystemError("the node is gone\nand more"), ["Ray could not go on: ", "the node is gone"]),
    ],
)
def test_a_cluster_that_fails_interrupts_with_a_sentence(
    photos, network_file, tmp_path, ray_session, monkeypatch, error, words
):
    monkeypatch.setattr(plan, "plan", lambda *_, **__: Failing(error))
    fields = {"weights": network_file, "size": 32, "runner": "ray", "workers": 1}
    with pytest.raises(InterruptedRunError) as caught:
        run(RunConfig(input=str(photos), output=str(tmp_path / "out"), **fields))
    message = str(caught.value)
    for word in [*words, "run the same command again"]:
        assert word.lower() in message.lower()
    if "claim" in message:
        assert "the cluster has 4 CPUs and 0 GPUs, of which" in message
    assert "\n" not in message
    assert not (tmp_path / "out" / "_SUCCESS").exists()

"""The dashboard uses only metrics that vbp and this Ray export, and every panel uses some."""

import importlib.resources
import json
import re
from pathlib import Path

import pytest
import yaml

from vbp.pipeline.on_ray import metrics

FOLDER = Path(__file__).parents[2] / "cluster" / "monitoring"
PANELS = importlib.resources.files("ray.dashboard.modules.metrics.dashboards")
KNOWN = {
    name
    for part in ("default_dashboard_panels.py", "data_dashboard_panels.py")
    for name in re.findall(r"\b(?:ray|autoscaler)_[a-z_]+", (PANELS / part).read_text())
}
"""The metrics that Ray's own dashboards ask for."""
OURS = re.findall(r'(?:Counter|Gauge)\("(\w+)"', Path(metrics.__file__).read_text())


def dashboard():
    return json.loads((FOLDER / "grafana.json").read_text())


def faults(board):
    places = set()
    for panel in board["panels"]:
        where = panel["gridPos"]
        cells = {(where["x"] + dx, where["y"]) for dx in range(where["w"])}
        if cells & places or where["x"] + where["w"] > 24:
            yield f"{panel['title']} lies on another panel"
        places |= cells
        if not panel["targets"]:
            yield f"{panel['title']} asks for nothing"
        for target in panel["targets"]:
            expression = target["expr"]
            asked = re.findall(r"\b[a-z]+_[a-z_]+(?=\{)", expression)
            if not asked or not set(asked) <= KNOWN | {f"ray_{name}" for name in OURS}:
                yield f"{panel['title']}: neither Ray nor vbp has {asked}"
            if any(expression.count(left) != expression.count(right) for left, right in ("()", "{}", "[]")):
                yield f"{panel['title']}: {expression} is not closed"
            if not set(re.findall(r"\$(\w+)", expression)) <= {entry["name"] for entry in board["templating"]["list"]}:
                yield f"{panel['title']}: a variable that is not there"
    numbers = [panel["id"] for panel in board["panels"]]
    if len(set(numbers)) < len(numbers):
        yield "two panels with one id"


def test_the_dashboard_is_sound():
    assert [*faults(dashboard())] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ray_data_num_tasks_running", "ray_data_num_task_running"),
        ("ray_vbp_images_left", "ray_vbp_images_done"),
        ("$session", "$sesion"),
        ("[1m]))", "[1m])"),
        ('"x": 8', '"x": 7'),
        ('"id": 2,', '"id": 1,'),
    ],
)
def test_a_broken_dashboard_is_noticed(old, new):
    text = (FOLDER / "grafana.json").read_text()
    assert old in text
    assert [*faults(json.loads(text.replace(old, new, 1)))]


def test_every_metric_of_ours_has_a_panel():
    text = (FOLDER / "grafana.json").read_text()
    assert OURS
    assert [name for name in OURS if f"ray_{name}{{" not in text] == []


def test_prometheus_looks_where_ray_lists_its_nodes():
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    (job,) = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["scrape_configs"]
    assert job["file_sd_configs"] == [{"files": [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]}]


def test_the_pod_monitor_finds_the_port_of_the_manifests():
    monitor = yaml.safe_load((FOLDER / "podmonitor.yaml").read_text())
    job = yaml.safe_load((FOLDER.parent / "kuberay" / "rayjob.yaml").read_text())
    ports = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] in {port["name"] for port in ports}

"""The dependency order of the house, checked: every room imports downward only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {
    "torch",
    "torchvision",
    "ray",
    "pyarrow",
    "PIL",
    "fsspec",
    "numpy",
    "matplotlib",
    "safetensors",
    "onnx",
    "rich",
    "click",
}
LEAVES = {
    "vbp.errors",
    "vbp.choices",
    "vbp.words",
    "vbp.storage.addresses",
    "vbp.storage.leftout",
    "vbp.storage.outline",
}
STORAGE = LEAVES | {f"vbp.storage{room}" for room in ("", ".collections", ".manifest", ".results", ".ledger")}
NETWORKS = {f"vbp.networks{room}" for room in ("", ".classfile", ".preprocessing", ".sources", ".models")}
PIPELINE = {"vbp.pipeline", "vbp.pipeline.on_ray", "vbp.pipeline.sweep"}
WORK = {"vbp", "vbp.columns", "vbp.evaluation", "vbp.explainer", "vbp.images", "vbp.saliency"} | STORAGE | NETWORKS
ROOMS = {  # room: (what of ours it may import, which heavy third parties)
    "vbp.errors": (set(), set()),
    "vbp.choices": (set(), set()),
    "vbp.plain": (set(), set()),
    "vbp.words": (set(), set()),
    "vbp.columns": (set(), {"pyarrow"}),
    "vbp.light_torchvision": (set(), {"torch", "torchvision"}),
    "vbp.networks.preprocessing": ({"vbp.errors", "vbp.choices"}, set()),
    "vbp.networks.classfile": ({"vbp.errors"}, set()),
    "vbp.networks": (
        {"vbp.errors", "vbp.choices", "vbp.light_torchvision", "vbp.networks.preprocessing"},
        {"torch", "torchvision", "numpy", "safetensors"},
    ),
    "vbp.networks.sources": (
        {"vbp.errors", "vbp.choices", "vbp.light_torchvision", "vbp.networks", "vbp.networks.preprocessing"},
        {"torch", "torchvision", "onnx"},
    ),
    "vbp.networks.models": (
        {"vbp.errors", "vbp.choices", "vbp.networks", "vbp.networks.preprocessing", "vbp.networks.sources"},
        {"torch"},
    ),
    "vbp.saliency": (
        {"vbp.errors", "vbp.choices", "vbp.light_torchvision", "vbp.saliency.cuts", "vbp.saliency.pixels"},
        {"torch", "torchvision", "numpy"},
    ),
    "vbp.saliency.pixels": (set(), set()),
    "vbp.saliency.cuts": ({"vbp.errors", "vbp.saliency.pixels"}, set()),
    "vbp.attach": ({"vbp.choices", "vbp.errors", "vbp.saliency.cuts", "vbp.saliency.pixels"}, {"numpy", "onnx"}),
    "vbp.staging": (set(), {"torch", "numpy"}),
    "vbp.explainer": ({"vbp.errors", "vbp.choices", "vbp.saliency", "vbp.staging"} | NETWORKS, {"torch", "numpy"}),
    "vbp.evaluation": (
        {"vbp.errors", "vbp.choices", "vbp.words", "vbp.saliency", "vbp.images"},
        {"torch", "numpy", "PIL"},
    ),
    "vbp.images": (
        {"vbp.errors", "vbp.choices", "vbp.networks.preprocessing"},
        {"PIL", "torch", "torchvision", "numpy", "matplotlib"},
    ),
    "vbp.storage.addresses": ({"vbp.errors"}, set()),
    "vbp.storage.leftout": (set(), set()),
    "vbp.storage.outline": ({"vbp.choices"}, set()),
    "vbp.storage.stores": (LEAVES, {"fsspec", "pyarrow"}),
    "vbp.storage": (LEAVES | {"vbp.storage.stores"}, {"fsspec", "pyarrow"}),
    "vbp.storage.collections": (LEAVES | {"vbp.storage"}, {"pyarrow"}),
    "vbp.storage.manifest": (LEAVES | {"vbp.columns", "vbp.storage", "vbp.storage.collections"}, {"pyarrow"}),
    "vbp.storage.results": (LEAVES | {"vbp.columns", "vbp.storage"}, {"pyarrow"}),
    "vbp.storage.ledger": (
        LEAVES | {"vbp.columns", "vbp.storage", "vbp.storage.stores", "vbp.storage.manifest", "vbp.storage.results"},
        {"pyarrow"},
    ),
    "vbp.pipeline": (WORK | {"vbp.storage.stores", "vbp.pipeline.on_ray"}, {"numpy", "pyarrow", "torch"}),
    "vbp.pipeline.on_ray": (WORK | {"vbp.storage.stores", "vbp.pipeline"}, {"numpy", "pyarrow", "ray"}),
    "vbp.pipeline.sweep": (WORK | {"vbp.pipeline", "vbp.pipeline.on_ray"}, {"numpy", "pyarrow"}),
    "vbp.review": (
        {"vbp", "vbp.columns", "vbp.evaluation", "vbp.plain", "vbp.images", "vbp.networks.preprocessing"} | STORAGE,
        {"numpy", "pyarrow", "PIL"},
    ),
    "vbp.demo": (
        {"vbp.light_torchvision", "vbp.evaluation"} | WORK | PIPELINE,
        HEAVY - {"ray", "click", "rich"},
    ),
    "vbp.evidence": (
        {"vbp.attach", "vbp.demo", "vbp.light_torchvision", "vbp.review", "vbp.staging", "vbp.storage.stores"}
        | WORK
        | PIPELINE,
        {"torch", "torchvision", "numpy", "PIL", "safetensors"},
    ),
    "vbp.terminal": ({"vbp.plain", "vbp.words"} | PIPELINE, {"rich"}),
    "vbp.tables": ({"vbp.plain", "vbp.words", "vbp.review", "vbp.terminal"} | PIPELINE, {"rich"}),
    "vbp.version": ({"vbp"}, set()),
    "vbp.flags": ({"vbp.errors", "vbp.choices"} | NETWORKS | PIPELINE, {"click"}),
    "vbp.cli": (
        {
            "vbp.flags",
            "vbp.version",
            "vbp.choices",
            "vbp.errors",
            "vbp.plain",
            "vbp.words",
            "vbp.networks",
            "vbp.review",
            "vbp.terminal",
            "vbp.tables",
            "vbp.demo",
            "vbp.evidence",
            "vbp.attach",
        }
        | PIPELINE,
        {"click"},
    ),
    "jobs": ({"vbp.cli", "vbp.demo"}, {"torch"}),
}
EXCEPTIONS = {("vbp.networks.weights", "vbp.storage"), ("vbp.saliency", "vbp.explainer")}


def modules() -> list[str]:
    files = [path for package in ("vbp", "jobs") for path in (ROOT / package).rglob("*.py")]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files)
    return sorted(name.removesuffix(".__init__") for name in names)


def room_of(module: str) -> str:
    fitting = [room for room in ROOMS if module == room or module.startswith(room + ".")]
    return max(fitting, key=len, default="vbp" if module == "vbp" else "")


def imported(module: str) -> set[str]:
    """Dotted names that `module` imports, at any depth of its source."""
    stem = ROOT / module.replace(".", "/")
    source = stem.with_suffix(".py") if stem.with_suffix(".py").exists() else stem / "__init__.py"
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: write absolute imports"
            names.add(str(node.module))
            if node.module == "vbp":
                names |= {f"vbp.{alias.name}" for alias in node.names}
    return names


def test_every_module_has_its_room():
    assert [module for module in modules() if not room_of(module)] == []


@pytest.mark.parametrize("module", [module for module in modules() if module != "vbp"])
def test_imports_point_down(module):
    room = room_of(module)
    ours, third_party = ROOMS[room]
    names = imported(module)
    rooms = {room_of(name) for name in names if name.split(".")[0] in ("vbp", "jobs")} - {room}
    allowed = ours | {target for source, target in EXCEPTIONS if source == module}
    assert rooms <= allowed, f"{module} may not import {sorted(rooms - allowed)}"
    heavy = {name.split(".")[0] for name in names} & HEAVY
    assert heavy <= third_party, f"{module} may not import {sorted(heavy - third_party)}"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("vbp", HEAVY),
        ("vbp.cli", HEAVY - {"click"}),
        ("vbp.pipeline", HEAVY),
        ("vbp.choices", HEAVY),
        ("vbp.saliency.method", HEAVY),
        ("vbp.saliency.pixels", HEAVY),
        ("vbp.saliency.cuts", HEAVY),
        ("vbp.attach.files", HEAVY - {"onnx", "numpy"}),
        ("vbp.networks.preprocessing", HEAVY),
        ("vbp.evaluation.metrics", HEAVY),
        ("vbp.evaluation.methods", HEAVY),
        ("vbp.storage", {"torch", "ray", "PIL", "fsspec", "asyncio"}),
        ("vbp.pipeline.job", {"torch", "ray", "PIL", "fsspec", "asyncio"}),
        ("vbp.pipeline.sweep.sweepfile", HEAVY),
        ("vbp.pipeline.sweep.sweep", {"torch", "ray", "PIL", "fsspec", "asyncio"}),
        ("vbp.review.compare", {"torch", "ray", "fsspec"}),
        ("vbp.review.status", {"torch", "ray", "PIL", "fsspec", "asyncio"}),
        ("vbp.review.failures", {"torch", "ray", "PIL", "fsspec", "asyncio"}),
        ("vbp.review.validate", {"torch", "ray", "fsspec"}),
        ("vbp.pipeline.dryrun", {"torch", "ray", "PIL", "fsspec", "asyncio"}),
        ("vbp.review.report", {"torch", "ray", "fsspec"}),
    ],
)
def test_import_is_light(module, absent):
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert loaded & absent == set()

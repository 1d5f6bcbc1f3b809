"""README, the pages of the site, changelog and lock say what is true."""

import ast
import re
import tomllib
from pathlib import Path

from click.testing import CliRunner

import vbp
from vbp import cli, errors
from vbp.cli import main
from vbp.errors import ImageError

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


ROOMS = ("vbp", "jobs", "cluster", "docs", "benchmarks", "tests")
STRANGER = re.compile(r"install\b[^`\n]*\s['\"]vbp\b|pip install vbp\b|\bvbp\\?\[[a-z{]")
"""What would install it: ``pip install vbp``, ``'vbp[s3]'``."""
HISTORY = {"CHANGELOG.md", "DECISIONS.md"}
SHELL_SAYS = "vbp: command not found"
PIP = {
    "--no-deps",
    "--only-binary",
    "--python-version",
    "--platform",
    "--dest",
    "--quiet",
    "--no-index",
    "--no-compile",
}
OPTIONS_OF_OTHERS = {"--head", "--working-dir", "--directory", "--strip-unneeded", "--measured", "--target"} | PIP
"""Of Ray, of ``python -m http.server``, strip, ``python -m vbp.evidence.expected`` and pip."""


def pages():
    """Everything that people read, by its path."""
    rooms = [
        *ROOT.glob("*.md"),
        *(path for room in ("docs", "cluster", "benchmarks") for path in (ROOT / room).rglob("*.md")),
    ]
    paths = [*rooms, ROOT / "llms.txt"]
    return {path: path.read_text() for path in paths}


def strings():
    """Every text in the program's code, with what is filled in left out."""
    for path in (ROOT / "vbp").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "\0".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_one_image_is_followed_through_twenty_files_at_most():
    """CONTRIBUTING leads through them: all exist, and define what it names."""
    (way,) = re.findall(r"## The way of one image\n(.*?)\n## ", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    named = re.findall(r"`(vbp/[\w/]+\.py)` \(([^)]+)\)", way)
    assert 15 <= len({path for path, _ in named}) <= 20
    for path, names in named:
        tree = ast.parse((ROOT / path).read_text())
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert set(re.findall(r"\w+", names)) <= defined, path


def test_readme_is_short():
    assert len(README.encode()) <= 8_000
    (picture,) = re.findall(r"!\[.+\]\((.+)\)", README)
    assert (ROOT / picture).stat().st_size < 150_000


def test_pages_name_no_option_that_does_not_exist():
    known = {name for command in main.commands.values() for parameter in command.params for name in parameter.opts}
    known |= {f"--no-{name[2:]}" for name in known} | {"--help", "--version"} | OPTIONS_OF_OTHERS
    found = {
        str(path): unknown
        for path, text in pages().items()
        if path.parent.name not in ("cluster", "decisions", "benchmarks")
        and path.name not in HISTORY
        and (unknown := set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) - known)
    }
    assert found == {}


def test_no_link_of_a_page_is_dead():
    dead = []
    for path, text in pages().items():
        for target in re.findall(r"\]\(([^)#\s]+)", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)):
            if "://" not in target and not (path.parent / target).exists():
                dead.append(f"{path.relative_to(ROOT)}: {target}")
    assert dead == []


def test_every_decision_has_a_date_and_a_status_and_stands_in_the_list():
    listed = (ROOT / "DECISIONS.md").read_text()
    for path in (ROOT / "docs" / "decisions").glob("*.md"):
        titles = re.findall(r"^## (.+)$", path.read_text(), re.MULTILINE)
        stated = re.findall(
            r"^## (.+)\n\n\*\d{4}-\d\d-\d\d, (?:in force|superseded by \[.+\]\(.*#.+\))\*\n\n\S",
            path.read_text(),
            re.MULTILINE,
        )
        assert titles == stated, path.name
        assert [title for title in titles if f"- [{title}](docs/decisions/{path.name}#" not in listed] == []


def test_the_page_of_the_exit_codes_has_each():
    page = (ROOT / "docs" / "reference" / "exit-codes.md").read_text()
    codes = [0, cli.EXIT_CRASHED, cli.EXIT_USAGE, cli.EXIT_WRONG, cli.EXIT_INTERRUPTED]
    assert [int(code) for code in re.findall(r"^\| (\d) \|", page, re.MULTILINE)] == codes


def test_troubleshooting_quotes_what_the_program_says():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = [heading for heading in re.findall(r"^### `(.+)`$", page, re.MULTILINE) if heading != SHELL_SAYS]
    said = "\n".join(strings())
    unsaid = {heading: piece for heading in quoted for piece in heading.split("...") if piece.strip() not in said}
    assert len(quoted) > 20
    assert unsaid == {}


def test_troubleshooting_knows_every_kind_of_bad_image():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, ImageError)}
    assert kinds - {"ImageError"} <= set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))


def test_every_command_has_help():
    for name, command in main.commands.items():
        result = CliRunner().invoke(main, [name, "--help"])
        assert result.exit_code == 0
        assert command.help, name


def test_versions_agree():
    newest = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == vbp.__version__ == PYPROJECT["project"]["version"]
    assert f"\nversion: {vbp.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_lock_holds_every_dependency_with_hashes_and_no_address():
    lock = (ROOT / "requirements.lock").read_text()
    pinned = set(re.findall(r"^([a-z0-9-]+)==\S+", lock, re.MULTILINE))
    project = PYPROJECT["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.match(r"[A-Za-z0-9-]+", text)[0].lower() for text in wanted} - {"visualbackprop"}
    assert names <= pinned
    assert lock.count("--hash=sha256:") >= len(pinned)
    assert "://" not in re.sub(r"#.*", "", lock)


def test_what_is_to_be_installed_is_ours():
    """The name vbp belongs to another project on the package index."""
    files = [*ROOT.glob("*.*"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.*"))]
    ours = (path for path in files if path.is_file() and path.suffix != ".pyc" and path != Path(__file__))
    texts = {path: path.read_text(errors="replace") for path in ours}
    found = {path: STRANGER.search(text) for path, text in texts.items()}
    assert {str(path): match[0] for path, match in found.items() if match} == {}


def test_constraints_are_what_the_lock_pins():
    lock = (ROOT / "requirements.lock").read_text()
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.search(rf"^{re.escape(line)} ", lock, re.MULTILINE), line

"""Own code is found and read without running it, and imported from what was read."""

import json
import sys

import numpy as np
import pytest

from vbp.errors import ModelError
from vbp.networks.owncode import OwnCode


@pytest.fixture(autouse=True)
def modules_as_before(finders_as_before):
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(folder, **files):
    for path, text in files.items():
        place = folder / path.replace("__in__", "/").replace("_py", ".py")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return folder


def package(folder, name):
    """A package with a module in a subpackage, which imports in all ways."""
    files = {
        "__init__.py": "raise_me = 1",
        "nets/__init__.py": "",
        "nets/mine.py": f"from . import layers\nfrom ..top import TOP\nimport {name}.other as other\nimport json\n"
        "def build():\n    from .late import LATE\n    return layers.LAYERS, TOP, other.OTHER, LATE\n",
        "nets/layers.py": "LAYERS = 1",
        "nets/late.py": "LATE = 4",
        "nets/unused.py": "raise SystemExit",
        "top.py": "TOP = 2",
        "other/__init__.py": "OTHER = 3",
    }
    for path, text in files.items():
        place = folder / name / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def test_a_file_and_what_it_imports_from_its_folder(tmp_path):
    write(
        tmp_path, mine_py="import json, sibling\ndef build(): return sibling.ONE", sibling_py="ONE = 1", more_py="1/0"
    )
    code = OwnCode.of(f"{tmp_path}/mine.py:build")
    assert set(code.files) == {"mine.py", "sibling.py"}
    assert code.load()() == 1


def test_a_package_is_found_from_the_working_folder_and_its_imports_are_followed(tmp_path, monkeypatch):
    package(tmp_path, "pkg_followed")
    monkeypatch.chdir(tmp_path)
    code = OwnCode.of("pkg_followed.nets.mine:build")
    names = {"__init__", "nets/__init__", "nets/mine", "nets/layers", "nets/late", "top", "other/__init__"}
    assert set(code.files) == {f"pkg_followed/{name}.py" for name in names}
    assert "pkg_followed" not in sys.modules  # nothing was run
    assert code.load()() == (1, 2, 3, 4)


def test_a_file_in_a_package_is_a_module_of_it(tmp_path):
    package(tmp_path, "pkg_by_file")
    code = OwnCode.of(f"{tmp_path}/pkg_by_file/nets/mine.py:build")
    assert (code.entry, code.module) == ("pkg_by_file/nets/mine.py", "pkg_by_file.nets.mine")
    assert code.load()() == (1, 2, 3, 4)


def test_it_runs_where_the_files_are_not(tmp_path):
    package(tmp_path / "here", "pkg_sent")
    code = OwnCode.of(f"{tmp_path}/here/pkg_sent/nets/mine.py:build")
    (tmp_path / "here").rename(tmp_path / "gone")
    assert code.load()() == (1, 2, 3, 4)


def test_what_was_written_elsewhere_is_the_same_code(tmp_path, monkeypatch):
    package(tmp_path / "here", "pkg_written")
    code = OwnCode.of(f"{tmp_path}/here/pkg_written/nets/mine.py:build")
    code.write(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    there = OwnCode.of(code.model_there)
    assert (there.files, there.sha256, there.module) == (code.files, code.sha256, code.module)
    assert code.model_there == "pkg_written/nets/mine.py:build"


def test_the_hash_is_of_the_files_that_are_used(tmp_path):
    write(tmp_path, mine_py="import sibling\ndef build(): pass", sibling_py="ONE = 1", more_py="")
    model = f"{tmp_path}/mine.py:build"
    first = OwnCode.of(model).sha256
    (tmp_path / "more.py").write_text("TWO = 2")
    assert OwnCode.of(model).sha256 == first
    (tmp_path / "sibling.py").write_text("ONE = 2")
    assert OwnCode.of(model).sha256 != first


def test_changed_files_and_files_of_other_folders_are_imported_anew(tmp_path):
    for name, value in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        write(
            tmp_path / name,
            mine_py="import sibling_of_it as s\ndef build(): return s.N",
            sibling_of_it_py=f"N = {value}",
        )
    assert OwnCode.of(f"{tmp_path}/one/mine.py:build").load()() == 1
    assert OwnCode.of(f"{tmp_path}/two/mine.py:build").load()() == 2
    (tmp_path / "two" / "sibling_of_it.py").write_text("N = 3")
    assert OwnCode.of(f"{tmp_path}/two/mine.py:build").load()() == 3


def test_a_file_with_the_name_of_a_library_does_not_replace_it(tmp_path):
    write(tmp_path, json_py="def build(): return 'mine'", numpy_py="import json, torch\ndef build(): return json.loads")
    assert OwnCode.of(f"{tmp_path}/json.py:build").load()() == "mine"
    assert OwnCode.of(f"{tmp_path}/numpy.py:build").load()() is json.loads
    assert np.ones(1).all()


def test_a_neighbour_with_the_name_of_a_loaded_library_is_refused(tmp_path):
    write(tmp_path, mine_py="import numpy\ndef build(): return numpy", numpy_py="")
    with pytest.raises(ImportError, match=r"numpy\.py has the name of a module that is loaded: rename it"):
        OwnCode.of(f"{tmp_path}/mine.py:build").load()


def test_a_module_that_the_program_has_imported_itself_is_that_one(tmp_path, monkeypatch):
    write(tmp_path, imported_before_py="def build(): return build")
    monkeypatch.syspath_prepend(tmp_path)
    import imported_before

    assert OwnCode.of("imported_before:build").load() is imported_before.build


def test_an_installed_package_is_hashed_but_stays_where_it_is(tmp_path, monkeypatch):
    package(tmp_path, "pkg_installed")
    (tmp_path / "pkg_installed-1.dist-info").mkdir()
    (tmp_path / "neighbour.py").write_text("")
    (tmp_path / "pkg_installed" / "top.py").write_text("import neighbour\nTOP = 2")
    monkeypatch.syspath_prepend(tmp_path)
    code = OwnCode.of("pkg_installed.nets.mine:build")
    assert code.is_installed
    assert "neighbour.py" not in code.files
    assert code.load()() == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.py", r"mine\.py needs the name of a function too \(PACKAGE.*\): it has Net, build\.$"),
        ("mine.py:biuld", r"mine\.py has no 'biuld': did you mean build\?$"),
        ("mine.py:x", r"mine\.py has no 'x': it has Net, build\.$"),
        ("mime.py:build", r"there is no file .*mime\.py \(did you mean mine\.py\?\); give PACKAGE"),
        ("folder.py:build", r"there is no file"),
        ("nowhere/mine.py:build", r"there is no file"),
    ],
)
def test_a_file_or_function_that_does_not_exist(tmp_path, name, message):
    (tmp_path / "folder.py").mkdir()
    write(tmp_path, mine_py="if True:\n    def build(x): y = 1\nclass Net: pass\ndef _hidden(): pass")
    with pytest.raises(ModelError, match=message) as caught:
        OwnCode.of(f"{tmp_path}/{name}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["no_such_package:build", "json.nothing:build", ":build", ":", "a b:c", "..:x", "x.:y"]
)
def test_a_module_that_does_not_exist(name):
    with pytest.raises(ModelError, match="there is no module"):
        OwnCode.of(name)


def test_code_at_a_url_and_compiled_modules_are_refused():
    for name in ("https://host/mine.py:build", "s3://bucket/mine.py", "s3://bucket/Mine.PY:build"):
        with pytest.raises(ModelError, match=f"^model '{name}': code is run from this machine alone; copy the file"):
            OwnCode.of(name)
    with pytest.raises(ModelError, match="sys is no Python file"):
        OwnCode.of("sys:exit")


COMPUTED = "import importlib\ndef build(): return importlib.import_module({name!r}, __package__).N\n"


def in_package(folder):
    """A module of a package that imports its neighbour by a computed name."""
    (folder / "pkg_computed").mkdir()
    (folder / "pkg_computed" / "__init__.py").write_text("")
    (folder / "pkg_computed" / "late.py").write_text("N = 1")
    (folder / "pkg_computed" / "mine.py").write_text(COMPUTED.format(name=".late"))
    return f"{folder}/pkg_computed/mine.py:build"


def beside(folder):
    (folder / "beside_mine.py").write_text("N = 1")
    (folder / "mine.py").write_text(COMPUTED.format(name="beside_mine"))
    return f"{folder}/mine.py:build"


def in_folder_without_init(folder):
    (folder / "plain").mkdir()
    (folder / "plain" / "deep.py").write_text("N = 1")
    (folder / "mine.py").write_text(COMPUTED.format(name="plain.deep"))
    return f"{folder}/mine.py:build"


def in_path_that_it_adds(folder):
    (folder / "lib").mkdir()
    (folder / "lib" / "added_mine.py").write_text("N = 1")
    (folder / "code").mkdir()
    text = f"import sys\nsys.path.append({str(folder / 'lib')!r})\nfrom added_mine import N\ndef build(): return N\n"
    (folder / "code" / "mine.py").write_text(text)
    return f"{folder}/code/mine.py:build"


def in_working_folder(folder):
    (folder / "around_mine.py").write_text("N = 1")
    (folder / "code").mkdir()
    (folder / "code" / "mine.py").write_text("import around_mine\ndef build(): return around_mine.N")
    return f"{folder}/code/mine.py:build"


TOLD = r"write `import {}` into (pkg_computed/)?mine\.py"


@pytest.mark.parametrize(
    ("make", "way_out"),
    [
        (in_package, TOLD.format(r"pkg_computed\.late")),
        (beside, TOLD.format("beside_mine")),
        (in_folder_without_init, TOLD.format(r"plain\.deep")),
        (in_path_that_it_adds, r"put it beside mine\.py, or install it"),
        (in_working_folder, r"put it beside mine\.py, or install it"),
    ],
)
def test_what_was_not_read_is_not_run(make, way_out, tmp_path, monkeypatch):
    """Else it would be in no hash, and change without a word."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    path, code = list(sys.path), OwnCode.of(make(tmp_path))
    with pytest.raises(ImportError, match=rf"\.py is no part of the code: {way_out}\.$"), code.alone():
        code.load()()
    assert sys.path == path


def test_installed_packages_are_imported_while_own_code_is_at_work(tmp_path, monkeypatch):
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "package_of_others.py").write_text("N = 2")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    (tmp_path / "mine.py").write_text(COMPUTED.format(name="package_of_others"))
    code = OwnCode.of(f"{tmp_path}/mine.py:build")
    with code.alone():
        assert code.load()() == 2


def test_the_users_own_program_may_import_what_the_code_does_not(tmp_path, monkeypatch):
    model = in_package(tmp_path)
    (tmp_path / "pkg_computed" / "mine.py").write_text("def build(): return 5")
    monkeypatch.syspath_prepend(tmp_path)
    code = OwnCode.of(model)
    with code.alone():
        assert code.load()() == 5
    import pkg_computed.late

    assert pkg_computed.late.N == 1


@pytest.mark.parametrize("name", ["Net.PY", "pkg_of_capitals/Net.Py"])
def test_the_end_of_a_files_name_may_be_in_capitals(name, tmp_path):
    place = tmp_path / name
    place.parent.mkdir(exist_ok=True)
    (place.parent / "__init__.py").write_text("")
    place.write_text("def build(): return 7")
    code = OwnCode.of(f"{place}:build")
    with code.alone():
        assert code.load()() == 7


def test_names_that_the_text_does_not_show_are_left_to_the_import(tmp_path):
    write(tmp_path, star_py="from made import *", made_py="globals()['build'] = lambda: 5", broken_py="def build(:")
    assert OwnCode.of(f"{tmp_path}/star.py:build").load()() == 5
    with pytest.raises(SyntaxError):
        OwnCode.of(f"{tmp_path}/broken.py:build").load()

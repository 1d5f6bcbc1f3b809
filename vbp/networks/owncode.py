"""Code of the user's own: found and read without running it, sent to other machines, and imported from what was read.

The file that ``--model`` names and all files that it imports from its own folder, or from beside its package, make one
value: plain data, with one hash. Every process imports from this value, not from the disk, so all run the same code.
What else lies there is refused while the code is at work: it would be in no hash. An installed package is only hashed:
it is imported as usual, and must be installed on the workers too.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from importlib import import_module
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from typing_extensions import override

from vbp.errors import ModelError
from vbp.networks.nearby import meant

FORM = "PACKAGE.MODULE:FUNCTION or PATH/FILE.py:FUNCTION"
SUFFIX = ".py"


def is_python(place: str) -> bool:
    """Whether a file's name is that of Python code."""
    return place.lower().endswith(SUFFIX)


@dataclass(frozen=True)
class OwnCode:
    """The files of a network of one's own."""

    model: str
    """The name by which the user asked for it."""
    function: str
    """Name of the function, class or network in the file."""
    entry: str
    """Path of the file, below `root`."""
    root: str
    """The folder from which imports count; it need not exist on other machines."""
    files: Mapping[str, bytes] = field(repr=False)
    """The content of the file, and of all that it imports from `root`, by path below it."""
    is_installed: bool = False
    """Whether it is an installed package, which every machine has to have."""

    @classmethod
    def of(cls, model: str) -> OwnCode:
        """The code that `model` names, read from this machine; nothing is run.

        Raises:
            ModelError: there is no such file or module, or it has nothing of that name.
        """
        place, _, function = (model, "", "") if is_python(model) else model.rpartition(":")
        found = _file(model, place) if is_python(place) else _module(model, place)
        root = _root(found)
        installed = not is_python(place) and any(root.glob("*.dist-info"))
        entry = found.relative_to(root).as_posix()
        own = None if not installed else entry.partition("/")[0]
        code = cls(model, function, entry, str(root), _with_imports(root, entry, own), installed)
        code._check_function()
        return code

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of names and contents of all files."""
        digest = hashlib.sha256()
        for path in sorted(self.files):
            digest.update(f"{path}\0{len(self.files[path])}\0".encode() + self.files[path])
        return digest.hexdigest()

    @property
    def module(self) -> str:
        """Name of the entry's module; a file outside of packages gets one that nothing else has."""
        if "/" in self.entry or not self._is_of_file:
            return _dotted(self.entry)
        return f"{PurePosixPath(self.entry).stem}_{self.sha256[:8]}"

    @property
    def model_there(self) -> str:
        """The name of the same code in a folder to which it was written."""
        return f"{self.entry}:{self.function}" if self._is_of_file else self.model

    def write(self, folder: Path) -> None:
        """Write all files below a folder."""
        for path, source in self.files.items():
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(source)

    @property
    def _is_of_file(self) -> bool:
        return is_python(self.model.rpartition(":")[0])

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While it lasts, modules that lie where this code is, but were not read, are not imported.

        So are those of the working folder, and of folders that the code adds to ``sys.path``, which is set back.
        """
        before = list(sys.path)
        guard = _Guard(self, before)
        if not self.is_installed:
            sys.meta_path.insert(0, guard)
        try:
            yield
        finally:
            sys.path[:] = before
            if guard in sys.meta_path:
                sys.meta_path.remove(guard)

    def load(self) -> Any:
        """Import the code, which runs it, and give what `function` names.

        Raises:
            AttributeError: it names nothing there after all.
            Exception: whatever the code raises.
        """
        if not self.is_installed:
            _Finder(self).install()
        found: Any = import_module(self.module)
        for name in self.function.split("."):
            found = getattr(found, name)
        return found

    def _check_function(self) -> None:
        """Refuse a name that the file's text cannot have; a file that is no Python is told when it is imported."""
        made, named = _defined(_parsed(self.files[self.entry]).body)
        known = made | named
        if self.function and (not known or "__getattr__" in known or self.function.partition(".")[0] in known):
            return
        functions = sorted(name for name in made if not name.startswith("_"))
        close = get_close_matches(self.function, functions, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(functions[:8]) or 'none'}."
        missing = f"has no {self.function!r}" if self.function else f"needs the name of a function too ({FORM})"
        raise ModelError(f"model {self.model!r}: {self.entry} {missing}: {hint}")


def _file(model: str, place: str) -> Path:
    if "://" in place:
        raise ModelError(f"model {model!r}: code is run from this machine alone; copy the file here.")
    path = Path(os.path.abspath(os.path.expanduser(place)))
    if path.is_file():
        return path
    raise ModelError(f"model {model!r}: there is no file {place}{meant(place, (SUFFIX,))}; give {FORM}.")


def _module(model: str, name: str) -> Path:
    """The file of a module, found without importing its packages."""
    spec: ModuleSpec | None = None
    searched: list[str] | None = [os.getcwd(), *sys.path]
    if name and all(part.isidentifier() for part in name.split(".")):
        at = ""
        for part in name.split("."):
            at = f"{at}.{part}" if at else part
            spec = PathFinder.find_spec(at, searched) if searched is not None else None
            if spec is None and at == part:
                spec = _elsewhere(part)
            if spec is None:
                break
            searched = None if spec.submodule_search_locations is None else list(spec.submodule_search_locations)
    if spec is None:
        raise ModelError(
            f"model {model!r}: there is no module {name!r} in this folder or among what is installed; give {FORM}."
        )
    if spec.origin is None or not is_python(spec.origin):
        raise ModelError(f"model {model!r}: {name} is no Python file, so there is no {FORM.partition(' ')[0]} in it.")
    return Path(os.path.abspath(spec.origin))


def _elsewhere(name: str) -> ModuleSpec | None:
    """A top-level module that is found in another way, such as one that is installed for editing."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


def _root(file: Path) -> Path:
    """The folder above all packages that a file is in."""
    folder = file.parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


def _with_imports(root: Path, entry: str, package: str | None) -> dict[str, bytes]:
    """The file `entry` and all that it imports below `root`; only those of one `package`, if that is given."""
    files: dict[str, bytes] = {}
    waiting = [entry]
    while waiting:
        path = waiting.pop()
        if path in files or (package is not None and path.partition("/")[0] != package):
            continue
        files[path] = (root / path).read_bytes()
        parents = list(PurePosixPath(path).parents)[:-1]
        waiting += [f"{folder}/__init__.py" for folder in parents if (root / folder / "__init__.py").is_file()]
        for name in _imported(path, files[path]):
            waiting += _files_of(root, name)
    return files


def _files_of(root: Path, name: str) -> Iterator[str]:
    """The file of a module below `root`, if there is one."""
    top = name.partition(".")[0]
    if not top or top in sys.stdlib_module_names or top == "vbp":
        return
    stem = name.replace(".", "/")
    for path in (f"{stem}/__init__.py", f"{stem}.py"):
        if (root / path).is_file():
            yield path
            return


def _imported(path: str, source: bytes) -> Iterator[str]:
    """Dotted names that a file imports, at any depth of its source; also those that may be names in a module."""
    folder = list(PurePosixPath(path).parent.parts)
    for node in ast.walk(_parsed(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _parsed(source: bytes) -> ast.Module:
    """The syntax tree; an empty one if the file is no Python, which its import will tell."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):
        return ast.Module([], [])


def _defined(body: Iterable[ast.AST]) -> tuple[set[str], set[str]]:
    """Functions and classes that statements define, and other names; ``__getattr__`` if there may be any name."""
    made, named = set[str](), set[str]()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            made.add(node.name)
            continue
        if isinstance(node, ast.alias):
            named.add("__getattr__" if node.name == "*" else (node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.Name):
            named.add("__getattr__" if node.id in ("globals", "exec", "setattr") else node.id)
        inner = _defined(ast.iter_child_nodes(node))
        made |= inner[0]
        named |= inner[1]
    return made, named


def _dotted(path: str) -> str:
    """The name of the module in a file: ``nets.mine`` for ``nets/mine.py``."""
    stem = path[: -len(SUFFIX)] if is_python(path) else path
    return stem.removesuffix("/__init__").replace("/", ".")


class _Guard(MetaPathFinder):
    """Refuses modules that could be changed without changing the hash of a code.

    Args:
        code: the code, whose own finder comes before.
        paths: ``sys.path`` before the code was run.
    """

    def __init__(self, code: OwnCode, paths: list[str]) -> None:
        self._code, self._paths = code, {os.path.realpath(path) for path in paths}
        here = os.path.realpath(os.getcwd())
        first, rest = os.path.realpath(paths[0] if paths else here), {os.path.realpath(path) for path in paths[1:]}
        self._root = os.path.realpath(code.root)
        self._here = here if first == here and here not in rest else None  # ``python -m`` has put it there

    @override
    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> None:
        """Raise an error for a module that was not read; others are for the finders behind.

        Raises:
            ImportError: names the file, and the way out.
        """
        if fullname.partition(".")[0] == "vbp" or (spec := PathFinder.find_spec(fullname, path)) is None:
            return
        if not spec.has_location or spec.origin is None:
            return
        above = fullname.count(".") + (spec.submodule_search_locations is not None)
        base, entry = os.path.realpath(Path(spec.origin).parents[above]), self._code.entry
        if base == self._root:
            hint = f"write `import {fullname}` into {entry}"
        elif base == self._here or base in {os.path.realpath(each) for each in sys.path} - self._paths:
            hint = f"put it beside {entry}, or install it"
        else:
            return
        raise ImportError(f"{spec.origin} is no part of the code: {hint}.")


class _Finder(MetaPathFinder, InspectLoader):
    """Finds the modules of one code in what was read."""

    def __init__(self, code: OwnCode) -> None:
        self._root = Path(code.root)
        self._sources = {_dotted(path): (path, source) for path, source in code.files.items()}
        if code.module not in self._sources:  # it has a name that nothing else has, and needs no other
            del self._sources[_dotted(code.entry)]
        self._sources[code.module] = (code.entry, code.files[code.entry])

    def install(self) -> None:
        """Let imports find these modules; of other code, modules of these names are forgotten.

        Raises:
            ImportError: a library of this name is loaded already.
        """
        for finder in list(sys.meta_path):
            if isinstance(finder, _Finder) and finder._sources.keys() & self._sources.keys():
                sys.meta_path.remove(finder)
        for name in [name for name in self._sources if name in sys.modules]:
            spec = getattr(sys.modules[name], "__spec__", None)
            if isinstance(spec and spec.loader, _Finder | None):
                del sys.modules[name]
            elif spec and spec.origin != self._file(name):  # else the user's own program has imported it from here
                raise ImportError(f"{self._sources[name][0]} has the name of a module that is loaded: rename it")
        sys.meta_path.insert(0, self)

    def _file(self, name: str) -> str:
        return str(self._root / self._sources[name][0])

    @override
    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """The specification of a module that was read, or of a folder that holds some."""
        if fullname in self._sources:
            spec = ModuleSpec(fullname, self, origin=self._file(fullname), is_package=self.is_package(fullname))
            spec.has_location = True
        elif any(name.startswith(f"{fullname}.") for name in self._sources):
            spec = ModuleSpec(fullname, None, is_package=True)
        else:
            return None
        if spec.submodule_search_locations is not None:  # what was not read may be there on this machine
            spec.submodule_search_locations.append(str(self._root / fullname.replace(".", "/")))
        return spec

    @override
    def is_package(self, fullname: str) -> bool:
        """Whether the module is a package's ``__init__.py``."""
        return PurePosixPath(self._sources[fullname][0]).name == "__init__.py"

    @override
    def get_source(self, fullname: str) -> str:
        """The text that was read."""
        return importlib.util.decode_source(self._sources[fullname][1])

    @override
    def get_code(self, fullname: str) -> Any:
        """The text, compiled."""
        return self.source_to_code(self._sources[fullname][1], self._file(fullname))

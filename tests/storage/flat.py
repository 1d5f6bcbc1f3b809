"""An in-memory store whose keys may be any text, like a bucket's."""

from collections.abc import Iterator

from vbp.storage.files import File


class FlatStore:
    def __init__(self, objects: dict[str, bytes]):
        self.objects = objects

    def walk(self, root: str) -> Iterator[File]:
        start = f"{root}/"
        for name in sorted(self.objects):
            if name.startswith(start):
                yield File(name.removeprefix(start), len(self.objects[name]), "1")

    def first(self, root):
        return next(self.walk(root), None)

    def size(self, path):
        return len(self.objects[path]) if path in self.objects else None

    def read(self, path, start=None, end=None, *, limit=None):
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path][start:end]

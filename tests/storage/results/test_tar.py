"""Archives against Python's and the system's own readers."""

import io
import random
import subprocess
import tarfile

import pytest

from vbp.storage.results.tar import TarBuilder

MEMBERS = {
    "cat/01.mask.png": b"m" * 700,
    "cat/01.json": b"{}",
    "empty": b"",
    "block": bytes(512),
    "grüße/日本/🐕.json": b"not ASCII",
    "d" * 90 + "/" + "e" * 90 + ".json": b"fits the prefix",
    "/".join(["n" * 240] * 3) + ".json": b"longer than ustar knows",
    "new%0Aline 'quoted'.json": b"odd",
}


def built(members):
    tar = TarBuilder()
    offsets = {name: tar.add(name, data) for name, data in members.items()}
    assert tar.members == len(members)
    return tar.finish(), offsets


def test_members_stand_where_the_offsets_say():
    data, offsets = built(MEMBERS)
    for name, content in MEMBERS.items():
        assert data[offsets[name] : offsets[name] + len(content)] == content
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == list(MEMBERS)
        for member in tar:
            assert tar.extractfile(member).read() == MEMBERS[member.name]
            assert offsets[member.name] == member.offset_data
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.mode == 0o644


def test_random_sizes():
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    members = {f"{number}.bin": rng.randbytes(rng.choice([0, 1, 511, 512, 513, 5000])) for number in range(60)}
    data, offsets = built(members)
    assert {name: data[at : at + len(members[name])] for name, at in offsets.items()} == members, seed


def test_equal_members_give_equal_bytes():
    assert built(MEMBERS) == built(MEMBERS)
    assert built(MEMBERS)[0] != built(dict(reversed(MEMBERS.items())))[0]


@pytest.mark.skipif(subprocess.run(["which", "tar"], capture_output=True).returncode != 0, reason="no tar here")
def test_the_system_s_tar_unpacks_it_without_a_word(tmp_path):
    data, _ = built(MEMBERS)
    done = subprocess.run(["tar", "-x", "-C", tmp_path], input=data, capture_output=True, check=True)
    assert done.stderr == b""
    found = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == MEMBERS

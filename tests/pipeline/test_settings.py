"""Names and values in a YAML file; what they may be is told in test_sweepfile."""

import pytest

from vbp.errors import UsageError
from vbp.pipeline.settings import SettingsReader, parse_yaml, read_text

KNOWN = ["mask_format", "size"]


def test_a_name_is_spelt_as_the_field_or_as_the_flag():
    reader = SettingsReader("f.yaml")
    assert reader.by_field("", {"mask-format": "npy", "size": 1}, KNOWN) == {"mask_format": "npy", "size": 1}
    assert reader.by_field("", {"mask_format": "npy"}, KNOWN) == {"mask_format": "npy"}
    with pytest.raises(UsageError, match=r"f.yaml: common.mask_format \(='npy'\) is given twice"):
        reader.by_field("common", {"mask-format": "npy", "mask_format": "npy"}, KNOWN)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mask-fromat": 1}, "f.yaml: mask-fromat is no setting of vbp explain: did you mean mask_format?"),
        ({"xyz": 1}, "f.yaml: xyz is no setting of vbp explain: give one of mask_format, size."),
        ({3: 1}, "f.yaml: 3 is no setting of vbp explain: give one of mask_format, size."),
        ([], "f.yaml: the file (=[]) must be a mapping of names to values."),
    ],
)
def test_other_names_are_refused(given, said):
    with pytest.raises(UsageError) as refused:
        SettingsReader("f.yaml").by_field("", given, KNOWN)
    assert str(refused.value) == said


def test_what_is_no_yaml_is_refused_in_one_line():
    with pytest.raises(UsageError) as refused:
        parse_yaml("a: [", "f.yaml")
    assert str(refused.value).startswith("f.yaml is not YAML: while parsing")
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "f.yaml").write_bytes(b"\xff")
    for place in (tmp_path / "f.yaml", tmp_path / "g.yaml"):
        with pytest.raises(UsageError, match=r"--config \(=.*\) cannot be read"):
            read_text(str(place), "--config")

from vbp.choices import METHOD_NAMES
from vbp.evaluation.methods import METHODS
from vbp.evaluation.saliencies import MAKERS


def test_the_table_is_complete_and_in_order():
    assert tuple(METHODS) == METHOD_NAMES
    assert set(MAKERS) == set(METHODS)
    titles = [entry.title for entry in METHODS.values()]
    assert len(set(titles)) == len(titles)
    assert all(entry.paper for entry in METHODS.values() if entry.library)


def test_packages_are_named_as_for_pip():
    assert METHODS["gradcam"].package == "grad-cam"
    assert METHODS["edge"].package is None

"""What all sections have in common."""

from vbp.evidence.gpucheck.scope import attempted


def fails():
    yield 1
    raise RuntimeError("CUDA error:\nno kernel")


def test_what_fails_is_a_note_behind_what_it_gave():
    assert list(attempted("resnet50", fails())) == [1, "resnet50 is not whole: RuntimeError: CUDA error: no kernel"]
    assert list(attempted("resnet50", iter([1, 2]))) == [1, 2]

"""A function for many arguments, in this process."""

import pytest

from vbp.storage.spreading import here


def test_results_come_one_after_the_other_as_they_are_asked_for():
    told, begun = [], []

    def halved(number):
        begun.append(number)
        return 12 // number

    results = here(halved, [3, 2, 0, 1], told.append)
    assert not begun
    assert [next(results), next(results)] == [4, 6] == told
    assert begun == [3, 2]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert begun == [3, 2, 0]

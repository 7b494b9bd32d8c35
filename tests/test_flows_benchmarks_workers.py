"""Work spread over processes: the same answers as in one, and errors that arrive."""

import operator

import pytest

from flows.benchmarks.workers import spread


@pytest.mark.parametrize("workers", [1, 2])
def test_each_item_is_answered_once(workers):
    assert dict(spread(operator.mod, 10, [3, 4, 7], workers)) == {3: 1, 4: 2, 7: 3}


def test_an_error_in_a_process_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        list(spread(operator.mod, 10, [3, 0, 4], 2))

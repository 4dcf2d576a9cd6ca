import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from architectures import CPU

from rm_assets.training.devices import _prefetch, prefetch


def test_with_a_cpu_nothing_is_made_before_it_is_wanted():
    made = []
    results = prefetch(lambda item: made.append(item) or threading.current_thread(), range(3), CPU)
    assert next(results) is threading.main_thread()
    assert made == [0]


def test_with_a_gpu_the_next_one_is_made_while_one_is_in_use():
    made, wanted = [], []

    def work(item):
        assert threading.current_thread() is not threading.main_thread()
        made.append(item)
        return item

    with ThreadPoolExecutor(1) as thread:
        for item in _prefetch(work, (wanted.append(item) or item for item in range(4)), thread):
            assert wanted == list(range(min(4, item + 2)))  # the next one, no more
            thread.submit(int).result()  # the thread has done all that it was given
            assert made == wanted
    assert made == [0, 1, 2, 3]


def test_what_fails_in_the_thread_fails_where_it_is_wanted():
    with ThreadPoolExecutor(1) as thread:
        results = _prefetch(lambda item: 1 / item, [2, 1, 0], thread)
        assert [next(results), next(results)] == [0.5, 1]
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_no_items_are_no_results():
    with ThreadPoolExecutor(1) as thread:
        assert list(_prefetch(str, [], thread)) == []

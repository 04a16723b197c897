"""Memory is lent again only when nobody looks at it any more, and no more is kept than was said."""

from __future__ import annotations

import gc
import threading

import numpy as np
import torch

from peers.memory import KeptMemory

BIG = 2**20


def test_memory_is_lent_again() -> None:
    memory = KeptMemory()
    first = memory.array(BIG)
    address = first.ctypes.data
    del first
    assert memory.free_bytes == BIG
    assert memory.array(BIG).ctypes.data == address


def test_whoever_still_looks_keeps_it() -> None:
    memory = KeptMemory()
    vector_D = memory.vector(BIG // 4)
    vector_D.fill_(7.0)
    part, view = vector_D[10:20], vector_D.numpy()[5:6].data
    del vector_D
    assert memory.free_bytes == 0
    other_D = memory.vector(BIG // 4)
    other_D.zero_()
    assert part.tolist() == [7.0] * 10
    assert np.frombuffer(view, np.float32).tolist() == [7.0]
    del part
    assert memory.free_bytes == 0
    del view
    assert memory.free_bytes == BIG


def test_sizes_do_not_mix_and_small_ones_are_not_kept() -> None:
    memory = KeptMemory()
    del_me = [memory.array(BIG), memory.array(1000), memory.array(0)]
    assert [array.size for array in del_me] == [BIG, 1000, 0]
    del_me.clear()
    assert memory.free_bytes == BIG
    assert memory.array(2 * BIG).size == 2 * BIG
    assert memory.vector(1).shape == (1,)


def test_no_more_is_kept_than_was_said() -> None:
    memory = KeptMemory(most_bytes=3 * BIG)
    arrays = [memory.array(BIG) for _ in range(8)]
    arrays.clear()
    del arrays
    lent = memory.array(BIG)
    assert memory.free_bytes == 2 * BIG
    del lent


def test_loans_may_end_in_the_garbage_collector_of_any_thread() -> None:
    memory, seen = KeptMemory(), []

    def work() -> None:
        for number in range(200):
            vector_D = memory.vector(2**15)
            vector_D.fill_(float(number))
            cycle: list[object] = [vector_D]
            cycle.append(cycle)
            seen.append(bool(torch.all(vector_D == number)))
            if number % 10 == 0:
                gc.collect()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert all(seen)
    assert len(seen) == 800

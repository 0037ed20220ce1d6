"""Datasets, samplers, collation and the DataLoader, with and without worker processes."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import torchlet as tl
from torchlet.utils.data import (
    BatchSampler,
    ChainDataset,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    StackDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    default_convert,
    get_worker_info,
    random_split,
)

Point = namedtuple("Point", "x y")
forks = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="local classes cannot be sent to spawned workers")


class Squares(Dataset[int]):
    def __init__(self, n: int = 10):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> int:
        if not 0 <= i < self.n:
            raise IndexError(i)
        return i * i


class Stream(IterableDataset[int]):
    """0 … n - 1, divided among the workers."""

    def __init__(self, n: int):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        return iter(range(self.n) if info is None else range(info.id, self.n, info.num_workers))


# ------------------------------------------------------------------------------------------------ datasets


def test_tensor_dataset_gives_tuples_of_entries() -> None:
    d = TensorDataset(tl.arange(6).reshape(3, 2), tl.arange(3))
    assert len(d) == 3 and d[1][0].tolist() == [2, 3] and int(d[1][1]) == 1
    with pytest.raises(AssertionError, match="Size mismatch between tensors"):
        TensorDataset(tl.ones(2), tl.ones(3))


def test_joined_datasets() -> None:
    both = Squares(3) + Squares(2)
    assert isinstance(both, ConcatDataset) and [both[i] for i in range(5)] == [0, 1, 4, 0, 1] and both[-1] == 1
    with pytest.raises(IndexError):
        both[5]
    assert list(ChainDataset([Stream(2), Stream(3)])) == [0, 1, 0, 1, 2] and list(Stream(1) + Stream(1)) == [0, 0]
    assert StackDataset(Squares(3), Squares(3))[2] == (4, 4) and StackDataset(a=Squares(3))[2] == {"a": 4}


def test_random_split_divides_without_overlap() -> None:
    parts = random_split(Squares(10), [0.55, 0.45], generator=tl.Generator().manual_seed(1))
    assert [len(p) for p in parts] == [6, 4]
    assert sorted(v for p in parts for v in p) == [i * i for i in range(10)]
    again = random_split(Squares(10), [6, 4], generator=tl.Generator().manual_seed(1))
    assert [p.indices for p in again] == [p.indices for p in parts]
    with pytest.raises(ValueError, match="Sum of input lengths does not equal"):
        random_split(Squares(10), [6, 5])


# ------------------------------------------------------------------------------------------------ samplers


def test_samplers_give_their_orders() -> None:
    assert list(SequentialSampler(range(3))) == [0, 1, 2]
    order = list(RandomSampler(range(100)))
    assert sorted(order) == list(range(100)) and order != list(range(100)) and order != list(RandomSampler(range(100)))
    assert len(list(RandomSampler(range(4), num_samples=10))) == 10
    assert set(RandomSampler(range(3), replacement=True, num_samples=200)) == {0, 1, 2}
    assert sorted(SubsetRandomSampler([5, 7, 9])) == [5, 7, 9]
    assert list(BatchSampler(range(5), 2, False)) == [[0, 1], [2, 3], [4]] and list(BatchSampler(range(5), 2, True)) == [[0, 1], [2, 3]]
    assert [len(BatchSampler(range(5), 2, drop)) for drop in (False, True)] == [3, 2]


def test_weighted_sampler_follows_its_weights() -> None:
    tl.manual_seed(0)
    draws = np.bincount(list(WeightedRandomSampler([1.0, 0.0, 3.0], 4000)), minlength=3)
    assert draws[1] == 0 and draws[2] / draws[0] == pytest.approx(3, rel=0.15)
    assert sorted(WeightedRandomSampler([1.0, 0.0, 3.0], 2, replacement=False)) == [0, 2]


def test_the_same_seed_gives_the_same_order() -> None:
    orders = []
    for _ in range(2):
        tl.manual_seed(3)
        orders.append([b.tolist() for b in DataLoader(Squares(20), batch_size=4, shuffle=True)])
    assert orders[0] == orders[1]
    generators = [[b.tolist() for b in DataLoader(Squares(20), 4, shuffle=True, generator=tl.Generator().manual_seed(5))] for _ in range(2)]
    assert generators[0] == generators[1] != orders[0]


# ------------------------------------------------------------------------------------------------ collation


def test_collation_stacks_leaves_and_keeps_structure() -> None:
    batch = default_collate([{"a": tl.ones(2), "b": (1, 2.5), "c": "x", "p": Point(np.float32(1), np.arange(2))} for _ in range(3)])
    assert batch["a"].shape == (3, 2) and batch["c"] == ["x", "x", "x"]
    assert isinstance(batch["b"], list) and batch["b"][0].dtype is tl.int64 and batch["b"][1].dtype is tl.float64
    assert isinstance(batch["p"], Point) and batch["p"].x.dtype is tl.float32 and batch["p"].y.shape == (3, 2)
    with pytest.raises(RuntimeError, match="each element in list of batch should be of equal size"):
        default_collate([[1], [1, 2]])
    with pytest.raises(TypeError, match="found <class 'object'>"):
        default_collate([object()])
    converted = default_convert({"a": [np.ones(2), "s"]})
    assert isinstance(converted["a"][0], tl.Tensor) and converted["a"][1] == "s"


# ------------------------------------------------------------------------------------------------ loader in this process


def test_batches_in_order_and_the_last_one_short() -> None:
    loader = DataLoader(Squares(5), batch_size=2)
    assert [b.tolist() for b in loader] == [[0, 1], [4, 9], [16]] and len(loader) == 3
    assert [b.tolist() for b in DataLoader(Squares(5), batch_size=2, drop_last=True)] == [[0, 1], [4, 9]]
    assert list(DataLoader(Squares(3), batch_size=None)) == [0, 1, 4]
    assert [b.tolist() for b in DataLoader(Squares(5), batch_sampler=[[0, 4], [2]])] == [[0, 16], [4]]
    assert list(DataLoader(Squares(3), 2, collate_fn=sum)) == [1, 4]


def test_tensor_dataset_batches_equal_stacked_samples() -> None:
    x, y = tl.arange(12).reshape(6, 2), tl.arange(6)
    split = Subset(TensorDataset(x, y), [5, 0, 3, 2])
    (a, b), (c, d) = DataLoader(split, batch_size=3)
    assert a.tolist() == [[10, 11], [0, 1], [6, 7]] and b.tolist() == [5, 0, 3] and c.tolist() == [[4, 5]] and d.tolist() == [2]
    a.zero_()
    assert x.tolist()[5] == [10, 11]


def test_streams() -> None:
    loader = DataLoader(Stream(5), batch_size=2)
    assert [b.tolist() for b in loader] == [[0, 1], [2, 3], [4]] and len(loader) == 3
    assert [b.tolist() for b in DataLoader(Stream(5), batch_size=2, drop_last=True)] == [[0, 1], [2, 3]]
    assert list(DataLoader(Stream(3), batch_size=None)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_workers": -1}, "num_workers option should be non-negative"),
        ({"prefetch_factor": 2}, "prefetch_factor option could only be specified in multiprocessing"),
        ({"persistent_workers": True}, "persistent_workers option needs num_workers > 0"),
        ({"sampler": [0], "shuffle": True}, "sampler option is mutually exclusive with shuffle"),
        ({"batch_sampler": [[0]], "batch_size": 2}, "batch_sampler option is mutually exclusive"),
        ({"batch_size": None, "drop_last": True}, "batch_size=None option disables auto-batching"),
        ({"batch_size": 0}, "batch_size should be a positive integer value, but got batch_size=0"),
        ({"num_workers": 1, "multiprocessing_context": "nothing"}, "multiprocessing_context option should specify a valid start method"),
    ],
)
def test_options_that_exclude_each_other(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DataLoader(Squares(), **options)


def test_streams_refuse_an_order() -> None:
    with pytest.raises(ValueError, match="expected unspecified shuffle option, but got shuffle=True"):
        DataLoader(Stream(3), shuffle=True)
    loader = DataLoader(Squares())
    with pytest.raises(ValueError, match="batch_size attribute should not be set after DataLoader is initialized"):
        loader.batch_size = 3


# ------------------------------------------------------------------------------------------------ worker processes


def ended(loader_iterator: Any) -> bool:
    return not loader_iterator.workers


def test_workers_give_the_same_batches_in_the_same_order() -> None:
    class Slow(Squares):
        def __getitem__(self, i: int) -> int:
            time.sleep(0.01 if i % 3 == 0 else 0)
            return super().__getitem__(i)

    expected = [b.tolist() for b in DataLoader(Squares(23), batch_size=3)]
    iterator = iter(DataLoader(Slow(23), batch_size=3, num_workers=2, prefetch_factor=3))
    assert [b.tolist() for b in iterator] == expected and ended(iterator)
    unordered = [b.tolist() for b in DataLoader(Slow(23), batch_size=3, num_workers=2, in_order=False)]
    assert sorted(unordered) == expected


@forks
def test_tensors_of_all_kinds_travel_between_processes() -> None:
    class Kinds(Dataset[Any]):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, i: int) -> Any:
            return {d.name: tl.ones(3, dtype=d) for d in tl.dtypes.ALL} | {
                "big": tl.arange(300_000), "view": tl.arange(12).reshape(3, 4).t(), "empty": tl.ones(0, 3), "scalar": tl.tensor(2.5),
                "array": np.arange(3), "text": "x",
            }

    (got,) = DataLoader(Kinds(), batch_size=None, num_workers=1)
    for d in tl.dtypes.ALL:
        assert got[d.name].dtype is d and got[d.name].float().tolist() == [1.0] * 3
    assert np.array_equal(got["big"].numpy(), np.arange(300_000)) and got["view"].tolist() == np.arange(12).reshape(3, 4).T.tolist()
    assert got["empty"].shape == (0, 3) and got["scalar"].shape == () and float(got["scalar"]) == 2.5 and got["text"] == "x"
    got["big"][0] = 5  # received memory is writable
    assert int(got["big"][0]) == 5


@forks
def test_very_long_index_lists_do_not_block_the_pipes() -> None:
    class Wide(Squares):
        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [np.zeros(4) for _ in indices]

    n = 60_000
    loader = DataLoader(Wide(4 * n), batch_size=n, num_workers=1, prefetch_factor=4)
    assert [tuple(b.shape) for b in loader] == [(n, 4)] * 4


@forks
def test_an_exception_in_a_worker_arrives_with_its_traceback() -> None:
    class Bad(Squares):
        def __getitem__(self, i: int) -> int:
            if i == 3:
                raise KeyError("number three")
            return i

    seen = []
    with pytest.raises(KeyError) as caught:
        for b in DataLoader(Bad(8), batch_size=2, num_workers=2):
            seen.append(b.tolist())
    assert seen == [[0, 1]]
    text = str(caught.value)
    assert (
        text.startswith("Caught KeyError in DataLoader worker process 1.\nOriginal Traceback")
        and "in __getitem__" in text
        and "number three" in text
    )


@forks
def test_an_exception_of_an_unusual_class_arrives_as_runtime_error() -> None:
    class Odd(Exception):
        def __init__(self, a: int, b: int):
            super().__init__(a, b)

    class Bad(Squares):
        def __getitem__(self, i: int) -> int:
            raise Odd(1, 2)

    with pytest.raises(RuntimeError, match="Caught Odd in DataLoader worker process 0"):
        next(iter(DataLoader(Bad(), num_workers=1)))


@forks
def test_a_worker_that_dies_is_reported() -> None:
    class Deadly(Squares):
        def __getitem__(self, i: int) -> int:
            os._exit(7)

    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid\(s\) .*exit code 7.*exited unexpectedly"):
        list(DataLoader(Deadly(), num_workers=2))


@forks
def test_what_cannot_be_sent_raises_here() -> None:
    class Unsendable(Squares):
        def __getitem__(self, i: int) -> Any:
            return (lambda: 0) if i == 0 else 5

    loader = DataLoader(Unsendable(2), batch_size=None, num_workers=1)
    iterator = iter(loader)
    with pytest.raises(Exception, match="in DataLoader worker process 0"):
        next(iterator)
    assert next(iterator) == 5


@forks
def test_slow_workers_time_out() -> None:
    class Sleepy(Squares):
        def __getitem__(self, i: int) -> int:
            time.sleep(1.0)
            return i

    with pytest.raises(RuntimeError, match=r"DataLoader timed out after 0\.1 seconds"):
        next(iter(DataLoader(Sleepy(1), num_workers=1, timeout=0.1)))


@forks
def test_workers_have_different_seeds_that_follow_from_the_main_one() -> None:
    class Draws(Dataset[Any]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, i: int) -> Any:
            info = get_worker_info()
            assert info is not None and info.num_workers == 2 and info.seed == tl.initial_seed()
            return info.id, random.random(), float(np.random.rand()), float(tl.rand(()))

    runs = []
    for _ in range(2):
        tl.manual_seed(11)
        runs.append(list(DataLoader(Draws(), batch_size=None, num_workers=2)))
    assert runs[0] == runs[1] and [r[0] for r in runs[0]] == [0, 1, 0, 1]
    assert len({x for r in runs[0] for x in r[1:]}) == 12
    assert get_worker_info() is None


@forks
def test_worker_init_fn_runs_in_each_worker() -> None:
    def init(worker: int) -> None:
        os.environ["TORCHLET_TEST_WORKER"] = str(worker)

    class Reads(Squares):
        def __getitem__(self, i: int) -> int:
            return int(os.environ["TORCHLET_TEST_WORKER"])

    assert list(DataLoader(Reads(4), batch_size=None, num_workers=2, worker_init_fn=init)) == [0, 1, 0, 1]
    assert "TORCHLET_TEST_WORKER" not in os.environ

    def fail(worker: int) -> None:
        raise OSError("no such place")

    with pytest.raises(OSError, match="no such place"):
        list(DataLoader(Squares(), num_workers=1, worker_init_fn=fail))


@forks
def test_persistent_workers_stay_for_the_next_epoch_even_after_a_break() -> None:
    class Pid(Squares):
        def __getitem__(self, i: int) -> tuple[int, int]:
            return i, os.getpid()

    loader = DataLoader(Pid(9), batch_size=None, num_workers=2, persistent_workers=True)
    first = list(loader)
    for i, _ in loader:
        if i == 1:
            break
    again = list(loader)
    assert (
        [i for i, _ in first] == [i for i, _ in again] == list(range(9))
        and {p for _, p in first} == {p for _, p in again}
        and len({p for _, p in again}) == 2
    )
    fresh = list(DataLoader(Pid(9), batch_size=None, num_workers=2))
    assert {p for _, p in fresh}.isdisjoint({p for _, p in again})


def test_streams_are_divided_by_worker_and_may_end_at_different_times() -> None:
    loader = DataLoader(Stream(7), batch_size=2, num_workers=3, persistent_workers=True)
    for _ in range(2):
        assert sorted(x for b in loader for x in b.tolist()) == list(range(7))


def test_workers_end_when_the_iterator_is_dropped() -> None:
    iterator = iter(DataLoader(Squares(100), num_workers=2))
    next(iterator)
    pids = [w.pid for w in iterator.workers]
    assert {p.pid for p in multiprocessing.active_children()} >= set(pids)
    del iterator
    assert not {p.pid for p in multiprocessing.active_children()} & set(pids)


def test_loading_leaves_no_trace_in_a_capture() -> None:
    calls = []

    class Run:
        writes_pending = True

        def flush(self, why: str) -> None:
            calls.append(why)

    tl.autograd.STATE.run = run = Run()
    try:
        iterator = iter(DataLoader(Squares(3), batch_size=2))
        got = [next(iterator), next(iterator)]
        assert tl.autograd.STATE.run is run
    finally:
        tl.autograd.STATE.run = None
    assert [b.tolist() for b in got] == [[0, 1], [4]] and set(calls) == {"DataLoader"}


def test_distributed_samplers_share_the_indices_evenly_and_reshuffle_by_epoch() -> None:
    parts = [DistributedSampler(range(10), 3, rank) for rank in range(3)]
    first = [list(p) for p in parts]
    assert {len(p) for p in first} == {4} and sorted({i for p in first for i in p}) == list(range(10))
    for p in parts:
        p.set_epoch(1)
    assert [list(p) for p in parts] != first
    assert list(DistributedSampler(range(10), 3, 1, shuffle=False, drop_last=True)) == [1, 4, 7]

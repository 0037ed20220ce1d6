"""DataLoader: batches of a dataset in a chosen order, made here or by worker processes.

Loading happens outside of any capture: a batch is an external tensor to a compiled function that iterates over a loader, or
every order of indices would be a path of its own.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import multiprocessing.connection
import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torchlet import ops
from torchlet.data import worker
from torchlet.data.collate import default_collate, default_convert
from torchlet.data.dataset import IterableDataset, Subset, TensorDataset
from torchlet.data.sampler import BatchSampler, RandomSampler, SequentialSampler, fresh_seed
from torchlet.op import STATE

__all__ = ["DataLoader"]


@contextmanager
def _outside_capture() -> Iterator[None]:
    run = STATE.run
    if run is not None and run.writes_pending:
        run.flush("DataLoader")  # a pending in-place operation may concern the dataset
    STATE.run = None
    try:
        yield
    finally:
        STATE.run = run


# ------------------------------------------------------------------------------------------------ fetching


class _MapFetcher:
    """Samples by index, joined."""

    def __init__(self, dataset: Any, collate: Callable[[Any], Any], batched: bool, drop_last: bool):
        self.dataset, self.collate, self.batched = dataset, collate, batched

    def __call__(self, indices: Any) -> Any:
        if not self.batched:
            return self.collate(self.dataset[indices])
        if self.collate is default_collate and set(map(type, indices)) == {int}:
            whole = _gather(self.dataset, indices)
            if whole is not None:
                return whole
        many = getattr(self.dataset, "__getitems__", None)
        return self.collate(many(indices) if many else [self.dataset[i] for i in indices])


def _gather(dataset: Any, indices: list[int]) -> list[Any] | None:
    """A batch of a TensorDataset by one indexing for each tensor: what stacking single samples would give, many times faster."""
    while type(dataset) is Subset:
        indices = [dataset.indices[i] for i in indices]
        dataset = dataset.dataset
    if type(dataset) is not TensorDataset:
        return None
    positions = ops.tensor(indices)
    return [t[positions] for t in dataset.tensors]


class _StreamFetcher:
    """The next samples of a stream, joined. Raises StreamEnded after the last."""

    def __init__(self, dataset: Any, collate: Callable[[Any], Any], batched: bool, drop_last: bool):
        self.stream, self.collate, self.batched, self.drop_last = iter(dataset), collate, batched, drop_last
        self.ended = False

    def __call__(self, indices: Any) -> Any:
        if self.ended:
            raise worker.StreamEnded
        samples = list(itertools.islice(self.stream, len(indices) if self.batched else 1))
        self.ended = len(samples) < (len(indices) if self.batched else 1)
        if not samples or (self.batched and self.drop_last and self.ended):
            raise worker.StreamEnded
        return self.collate(samples if self.batched else samples[0])


class _Endless:
    """The sampler of a stream: None for ever."""

    def __iter__(self) -> Iterator[None]:
        return itertools.repeat(None)


# ------------------------------------------------------------------------------------------------ iterators


class _HereIterator:
    """Makes batches in this process when they are asked for."""

    def __init__(self, loader: DataLoader):
        with _outside_capture():
            fresh_seed(loader.generator)  # so that one epoch draws the same numbers with and without workers
            self.fetch = loader._fetcher()
            self.indices = iter(loader._index_sampler)

    def __iter__(self) -> _HereIterator:
        return self

    def __next__(self) -> Any:
        with _outside_capture():
            indices = next(self.indices)
            try:
                return self.fetch(indices)
            except worker.StreamEnded:
                raise StopIteration from None


_alive: weakref.WeakSet[_WorkerIterator] = weakref.WeakSet()


class _WorkerIterator:
    """Hands index lists to worker processes, round robin, and gives their batches in order.

    Batches are numbered through all epochs, so that what an abandoned epoch left in the pipes is recognised and dropped.
    """

    def __init__(self, loader: DataLoader):
        # not the loader itself: a persistent iterator is owned by it, and a cycle would keep the workers alive
        self.index_sampler, self.prefetch = loader._index_sampler, loader.prefetch_factor or 2
        self.persistent, self.timeout, self.in_order = loader.persistent_workers, loader.timeout, loader.in_order
        self.process = os.getpid()
        self.workers: list[Any] = []
        self.pipes: list[Any] = []
        self.sent = 0  # number of the next batch to ask for
        self.due = 0  # number of the next batch to give
        context = _context(loader.multiprocessing_context)
        forked = context.get_start_method() == "fork"
        make_fetcher = functools.partial(loader._fetcher_kind, loader.dataset, loader.collate_fn, loader._auto_collation, loader.drop_last)
        with _outside_capture():
            seed = fresh_seed(loader.generator)
        _alive.add(self)
        for i in range(loader.num_workers):
            here, there = context.Pipe()
            self.pipes.append(here)
            inherited = [p for it in _alive for p in it.pipes] if forked else []
            process = context.Process(
                target=worker.work, daemon=True,
                args=(make_fetcher, loader.dataset, there, inherited, i, loader.num_workers, seed + i, loader.worker_init_fn),
            )
            with warnings.catch_warnings():  # Python 3.12 warns of every fork with threads; a worker touches none of them
                warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
                process.start()
            there.close()
            self.workers.append(process)
        self.begin(first=True)

    def begin(self, first: bool = False) -> _WorkerIterator:
        """Start an epoch."""
        if not first:
            for pipe in self.pipes:
                pipe.send((None, None))
        self.start = self.due = self.sent
        self.active = [True] * len(self.workers)
        self.ready: dict[int, Any] = {}
        self.owner: dict[int, int] = {}
        self.turn = itertools.cycle(range(len(self.workers)))
        with _outside_capture():
            self.indices: Iterator[Any] | None = iter(self.index_sampler)
            for _ in range(self.prefetch * len(self.workers)):
                self._ask()
        return self

    def __iter__(self) -> _WorkerIterator:
        return self

    def _ask(self) -> None:
        """Hand the next indices to the next worker whose stream goes on."""
        if self.indices is None:
            return
        i = next((w for w in itertools.islice(self.turn, len(self.workers)) if self.active[w]), None)
        if i is None:
            return
        try:
            indices = next(self.indices)
        except StopIteration:
            self.indices = None
            return
        self.owner[self.sent] = i
        try:
            self.pipes[i].send((self.sent, indices))
        except (BrokenPipeError, ConnectionResetError):
            self._died([i])
        self.sent += 1

    def __next__(self) -> Any:
        if not self.workers:
            raise StopIteration
        while True:
            number = self._next_number()
            if number is None:
                if not self.persistent:
                    self.shutdown()
                raise StopIteration
            if number in self.ready:
                value, ended = self.ready.pop(number)
                i = self.owner.pop(number)
                if ended:
                    self.active[i] = False
                with _outside_capture():
                    self._ask()
                if ended:
                    continue
                if isinstance(value, worker.CarriedError):
                    value.reraise()
                return value
            self._receive()

    def _next_number(self) -> int | None:
        """The number of the batch to give next; None at the end of the epoch."""
        if not self.in_order:
            return next(iter(self.ready), next(iter(self.owner), None))
        while self.due < self.sent:
            if self.due in self.owner:
                return self.due
            self.due += 1
        return None

    def _receive(self) -> None:
        """Wait for batches and take them off the pipes."""
        waiting = sorted({self.owner[n] for n in self.owner if n not in self.ready})
        pipes = {self.pipes[i]: i for i in waiting}
        found = multiprocessing.connection.wait(list(pipes), timeout=self.timeout or None)
        if not found:
            raise RuntimeError(f"DataLoader timed out after {self.timeout} seconds")
        dead = []
        for pipe in found:
            try:
                number, value, ended = worker.receive(pipe)  # type: ignore[arg-type]
            except (EOFError, ConnectionResetError):
                dead.append(pipes[pipe])  # type: ignore[index]
                continue
            if number >= self.start:
                self.ready[number] = value, ended
        if dead:
            self._died(dead)

    def _died(self, which: list[int]) -> None:
        for i in which:
            self.workers[i].join(5)
        words = ", ".join(f"{self.workers[i].pid} (exit code {self.workers[i].exitcode})" for i in which)
        self.shutdown()
        raise RuntimeError(f"DataLoader worker (pid(s) {words}) exited unexpectedly")

    def shutdown(self) -> None:
        """End the workers: they see the closed pipe. One that does not within 5 s is terminated."""
        workers, self.workers = self.workers, []
        for pipe in self.pipes:
            pipe.close()
        self.pipes = []
        for process in workers:
            process.join(5)
            if process.is_alive():
                process.terminate()
                process.join()
            process.close()

    def __del__(self) -> None:
        if getattr(self, "workers", None) and self.process == os.getpid():  # not in a worker, which inherits this object
            self.shutdown()


def _context(given: Any) -> Any:
    """The multiprocessing context asked for; by default fork where the system has it."""
    if given is not None and not isinstance(given, str):
        return given
    known = multiprocessing.get_all_start_methods()
    if given is None:
        return multiprocessing.get_context("fork" if "fork" in known else None)
    if given not in known:
        raise ValueError(
            f"multiprocessing_context option should specify a valid start method in {known!r}, but got multiprocessing_context={given!r}"
        )
    return multiprocessing.get_context(given)


# ------------------------------------------------------------------------------------------------ the loader


class DataLoader:
    """Batches of a dataset.

    With `num_workers` > 0, worker processes make them ahead of time; exceptions in a worker are raised here, with their
    traceback. `pin_memory` is accepted. Raises ValueError where options exclude each other.
    """

    _fixed = ("batch_size", "batch_sampler", "sampler", "drop_last", "dataset", "persistent_workers")
    _iterator: _WorkerIterator | None = None
    _ready = False

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Iterable[Any] | None = None,
        batch_sampler: Iterable[Any] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[Any], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: Any = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
    ) -> None:
        if num_workers < 0:
            raise ValueError("num_workers option should be non-negative; use num_workers=0 to disable multiprocessing.")
        if timeout < 0:
            raise ValueError("timeout option should be non-negative")
        if num_workers == 0 and prefetch_factor is not None:
            raise ValueError(
                "prefetch_factor option could only be specified in multiprocessing.let num_workers > 0 to enable multiprocessing, "
                "otherwise set "
                "prefetch_factor to None."
            )
        if prefetch_factor is not None and prefetch_factor < 0:
            raise ValueError("prefetch_factor option should be non-negative")
        if persistent_workers and num_workers == 0:
            raise ValueError("persistent_workers option needs num_workers > 0")
        if multiprocessing_context is not None:
            if num_workers == 0:
                raise ValueError(
                    "multiprocessing_context can only be used with multi-process loading (num_workers > 0), but got num_workers=0"
                )
            _context(multiprocessing_context)
        streams = isinstance(dataset, IterableDataset)
        if streams:
            for name, value, wrong in (
                ("shuffle", shuffle, bool(shuffle)),
                ("sampler", sampler, sampler is not None),
                ("batch_sampler", batch_sampler, batch_sampler is not None),
            ):
                if wrong:
                    raise ValueError(f"DataLoader with IterableDataset: expected unspecified {name} option, but got {name}={value}")
        if sampler is not None and shuffle:
            raise ValueError("sampler option is mutually exclusive with shuffle")
        if batch_sampler is not None:
            if batch_size != 1 or shuffle or sampler is not None or drop_last:
                raise ValueError("batch_sampler option is mutually exclusive with batch_size, shuffle, sampler, and drop_last")
            batch_size = None
            drop_last = False
        elif batch_size is None and drop_last:
            raise ValueError("batch_size=None option disables auto-batching and is mutually exclusive with drop_last")
        if sampler is None:
            sampler = _Endless() if streams else RandomSampler(dataset, generator=generator) if shuffle else SequentialSampler(dataset)
        if batch_size is not None and batch_sampler is None:
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)  # type: ignore[arg-type]
        self.dataset = dataset
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.sampler = sampler
        self.batch_sampler = batch_sampler
        self.num_workers = num_workers
        self.collate_fn = collate_fn or (default_collate if batch_sampler is not None else default_convert)
        self.pin_memory = pin_memory
        self.pin_memory_device = pin_memory_device
        self.timeout = timeout
        self.worker_init_fn = worker_init_fn
        self.multiprocessing_context = multiprocessing_context
        self.generator = generator
        self.prefetch_factor = 2 if num_workers > 0 and prefetch_factor is None else prefetch_factor
        self.persistent_workers = persistent_workers
        self.in_order = in_order
        self._fetcher_kind: Any = _StreamFetcher if streams else _MapFetcher
        self._ready = True

    def __setattr__(self, name: str, value: Any) -> None:
        if self._ready and name in self._fixed:
            raise ValueError(f"{name} attribute should not be set after {type(self).__name__} is initialized")
        object.__setattr__(self, name, value)

    @property
    def _auto_collation(self) -> bool:
        return self.batch_sampler is not None

    @property
    def _index_sampler(self) -> Iterable[Any]:
        return self.sampler if self.batch_sampler is None else self.batch_sampler

    def _fetcher(self) -> Callable[[Any], Any]:
        return self._fetcher_kind(self.dataset, self.collate_fn, self._auto_collation, self.drop_last)  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[Any]:
        if self.num_workers == 0:
            return _HereIterator(self)
        if not self.persistent_workers:
            return _WorkerIterator(self)
        if self._iterator is None or not self._iterator.workers:
            self._iterator = _WorkerIterator(self)
            return self._iterator
        return self._iterator.begin()

    def __len__(self) -> int:
        if not isinstance(self.dataset, IterableDataset):
            return len(self._index_sampler)  # type: ignore[arg-type]
        n = len(self.dataset)  # type: ignore[arg-type]
        if self.batch_size is None:
            return n
        return n // self.batch_size if self.drop_last else (n + self.batch_size - 1) // self.batch_size

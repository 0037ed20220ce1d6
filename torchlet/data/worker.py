"""What runs inside a DataLoader's worker process, and how batches travel between processes.

A batch is pickled with protocol 5: the structure in one message, the bytes of each array in one more, sent from where they
lie and received where they shall lie, so that an array is copied only by the pipe itself.
"""

from __future__ import annotations

import io
import pickle
import queue
import random
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from torchlet import ops
from torchlet.autograd import force
from torchlet.op import STATE
from torchlet.storage import as_host
from torchlet.tensor import Parameter, Tensor, wrap

__all__ = ["WorkerInfo", "get_worker_info"]


@dataclass(frozen=True)
class WorkerInfo:
    """Inside a worker: its number, the number of workers, its seed and its copy of the dataset."""

    id: int
    num_workers: int
    seed: int
    dataset: Any


_info: WorkerInfo | None = None


def get_worker_info() -> WorkerInfo | None:
    """What this worker process is; None in the main process."""
    return _info


# ------------------------------------------------------------------------------------------------ transport


def _tensor_from(array: np.ndarray[Any, Any], dtype_name: str) -> Tensor:
    return wrap(array.view(dtype_name) if array.dtype.name != dtype_name else array)


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor) and not isinstance(value, Parameter):
            if value.requires_grad and value.grad_fn is not None:
                raise RuntimeError(
                    "DataLoader: a worker cannot send a tensor that is part of an autograd graph\nhelp: return tensor.detach()"
                )
            array = np.ascontiguousarray(as_host(force(value))).reshape(value.shape)
            # NumPy sends no foreign dtypes out of band: bfloat16 goes as its bits
            return _tensor_from, (array.view(np.uint16) if array.dtype.kind == "V" else array, array.dtype.name)
        return NotImplemented


def send(pipe: Connection, value: Any) -> None:
    """Send a value that holds tensors or arrays."""
    buffers: list[pickle.PickleBuffer] = []
    text = io.BytesIO()
    _Pickler(text, protocol=5, buffer_callback=buffers.append).dump(value)
    raw = [b.raw() for b in buffers]
    pipe.send([r.nbytes for r in raw])
    pipe.send_bytes(text.getbuffer())
    for r in raw:
        if r.nbytes:
            pipe.send_bytes(r)


def receive(pipe: Connection) -> Any:
    """Receive what `send` sent. Raises EOFError when the other side is gone."""
    sizes = pipe.recv()
    text = pipe.recv_bytes()
    buffers = [np.empty(n, np.uint8) for n in sizes]
    for buffer in buffers:
        if buffer.size:
            pipe.recv_bytes_into(buffer)
    return pickle.loads(text, buffers=buffers)


class CarriedError:
    """An exception on its way from a worker, with its traceback as text."""

    def __init__(self, where: str):
        kind = sys.exc_info()[0]
        assert kind is not None
        self.kind: Any = kind
        self.text = f"Caught {kind.__name__} {where}.\nOriginal {traceback.format_exc()}"
        try:
            pickle.dumps(kind)
        except (pickle.PicklingError, AttributeError, TypeError):
            self.kind = RuntimeError

    def reraise(self) -> None:
        """Raise an exception of the same class, or RuntimeError where that class takes other arguments."""
        try:
            error = _KeyErrorText(self.text) if self.kind is KeyError else self.kind(self.text)
        except Exception:
            raise RuntimeError(self.text) from None
        raise error


class _KeyErrorText(KeyError):  # a KeyError shows the repr of its argument, which would put the traceback on one line
    def __str__(self) -> str:
        return str(self.args[0])


# ------------------------------------------------------------------------------------------------ the worker


class StreamEnded(Exception):
    """The stream of an IterableDataset has no more samples."""


def _take_tasks(pipe: Connection, tasks: queue.SimpleQueue[Any], gone: threading.Event) -> None:
    """Take tasks off the pipe at once: a main process that waits to send one would never come to take a result."""
    try:
        while True:
            tasks.put(pipe.recv())
    except (EOFError, OSError):  # the main process closed its end, or is no more
        gone.set()
        tasks.put(None)


def work(
    make_fetcher: Callable[[], Callable[[Any], Any]],
    dataset: Any,
    pipe: Connection,
    inherited: list[Connection],
    worker: int,
    workers: int,
    seed: int,
    init: Callable[[int], None] | None,
) -> None:
    """Main function of a worker: answer (number, indices) by (number, batch or CarriedError, whether a stream has ended)."""
    global _info
    for other in inherited:  # while a worker holds the main process's end of a pipe, its reader would not see the main process end
        other.close()
    STATE.run = None  # the fork may have happened inside a compiled call
    random.seed(seed)
    ops.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    _info = WorkerInfo(worker, workers, seed, dataset)
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    gone = threading.Event()
    threading.Thread(target=_take_tasks, args=(pipe, tasks, gone), daemon=True).start()
    where = f"in DataLoader worker process {worker}"
    failure: CarriedError | None = None
    fetch: Callable[[Any], Any] | None = None
    try:
        if init is not None:
            init(worker)
    except Exception:
        failure = CarriedError(where)
    try:
        while (task := tasks.get()) is not None and not gone.is_set():
            number, indices = task
            if number is None:  # a new epoch of persistent workers
                fetch = None
                continue
            ended = False
            try:
                if failure is not None:
                    value: Any = failure
                else:
                    fetch = fetch or make_fetcher()
                    value = fetch(indices)
            except StreamEnded:
                value, ended = None, True
            except Exception:
                value = CarriedError(where)
            try:
                send(pipe, (number, value, ended))
            except (BrokenPipeError, ConnectionResetError):
                return
            except Exception:
                send(pipe, (number, CarriedError(where), ended))
    except KeyboardInterrupt:
        return

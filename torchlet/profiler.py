"""torchlet.profiler: how often each operator ran, for how long, and on which shapes.

    with torchlet.profiler.profile(record_shapes=True) as prof:
        model(x)
    print(prof.key_averages().table(sort_by="cpu_time_total", row_limit=10))

Times are of the calling thread. Inside a compiled function no operator runs by itself: a `record_function` around the call times
the call, and the debug dump (`torchlet.debug`) tells what its kernels do.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torchlet import autograd
from torchlet import op as op_module
from torchlet.tensor import Tensor

__all__ = [
    "EventList", "FunctionEvent", "ProfilerAction", "ProfilerActivity", "profile", "record_function", "schedule", "supported_activities",
    "tensorboard_trace_handler",
]  # fmt: skip


class ProfilerActivity(enum.Enum):
    """What is looked at; operators are timed where they are called, whatever is asked for."""

    CPU = 0
    CUDA = 1
    XPU = 2
    MTIA = 3


class ProfilerAction(enum.Enum):
    """What a schedule says of a step."""

    NONE = 0
    WARMUP = 1
    RECORD = 2
    RECORD_AND_SAVE = 3


def supported_activities() -> set[ProfilerActivity]:
    """What can be asked for."""
    return {ProfilerActivity.CPU, ProfilerActivity.CUDA}


def schedule(*, wait: int, warmup: int, active: int, repeat: int = 0, skip_first: int = 0, **_: Any) -> Callable[[int], ProfilerAction]:
    """Steps in turns of `wait` unobserved, `warmup` thrown away and `active` recorded, `repeat` times (0: for ever)."""

    def action(step: int) -> ProfilerAction:
        step -= skip_first
        turn = wait + warmup + active
        if step < 0 or (repeat > 0 and step // turn >= repeat):
            return ProfilerAction.NONE
        at = step % turn
        if at < wait:
            return ProfilerAction.NONE
        if at < wait + warmup:
            return ProfilerAction.WARMUP
        return ProfilerAction.RECORD if at < turn - 1 else ProfilerAction.RECORD_AND_SAVE

    return action


class FunctionEvent:
    """One run of an operator or of a named region, or the average of several; times in microseconds."""

    def __init__(self, name: str, start: float, shapes: Any = None):
        self.name = self.key = name
        self.start, self.input_shapes = start, shapes
        self.count = 1
        self.cpu_time_total = 0.0
        self.self_cpu_time_total = 0.0

    cpu_time = property(lambda self: self.cpu_time_total / max(self.count, 1), doc="The mean.")
    device_time_total = cuda_time_total = self_device_time_total = self_cuda_time_total = 0.0
    device_time = cuda_time = 0.0

    def __repr__(self) -> str:
        return f"<FunctionEvent name={self.name} cpu_time={self.cpu_time:.3f}us count={self.count}>"


def _time(us: float) -> str:
    return f"{us / 1e6:.3f}s" if us >= 1e6 else f"{us / 1e3:.3f}ms" if us >= 1e3 else f"{us:.3f}us"


class EventList(list[FunctionEvent]):
    """Events, with PyTorch's table."""

    self_cpu_time_total = property(lambda self: sum(e.self_cpu_time_total for e in self), doc="The time of all, counted once.")

    def key_averages(self, group_by_input_shape: bool = False, **_: Any) -> EventList:
        """Events of one name (and, on request, of equal shapes) as one."""
        found: dict[Any, FunctionEvent] = {}
        for e in self:
            key = (e.name, str(e.input_shapes) if group_by_input_shape else None)
            into = found.get(key)
            if into is None:
                into = found[key] = FunctionEvent(e.name, e.start, e.input_shapes if group_by_input_shape else None)
                into.count = 0
            into.count += e.count
            into.cpu_time_total += e.cpu_time_total
            into.self_cpu_time_total += e.self_cpu_time_total
        return EventList(found.values())

    def total_average(self) -> FunctionEvent:
        """All as one."""
        out = FunctionEvent("Total", 0.0)
        out.count = sum(e.count for e in self)
        out.cpu_time_total = out.self_cpu_time_total = self.self_cpu_time_total
        return out

    def table(
        self, sort_by: str | None = None, row_limit: int = 100, max_name_column_width: int = 55, header: str | None = None, **_: Any
    ) -> str:
        """Text with a line for each event, sorted by one of its attributes ("cpu_time_total", "self_cpu_time_total", "count", …)."""
        rows: list[FunctionEvent] = list(self)
        if sort_by is not None:
            rows.sort(key=lambda e: getattr(e, sort_by.replace("device", "cpu").replace("cuda", "cpu"), 0.0), reverse=True)
        total = self.self_cpu_time_total or 1.0
        shapes = any(e.input_shapes is not None for e in rows)
        heads = ["Name", "Self CPU %", "Self CPU", "CPU total %", "CPU total", "CPU time avg", "# of Calls"] + ["Input Shapes"] * shapes
        lines = [heads]
        for e in rows[: row_limit if row_limit >= 0 else None]:
            name = e.name if len(e.name) <= max_name_column_width else e.name[: max_name_column_width - 3] + "..."
            line = [name, f"{e.self_cpu_time_total / total:.2%}", _time(e.self_cpu_time_total), f"{e.cpu_time_total / total:.2%}"]
            lines.append([*line, _time(e.cpu_time_total), _time(e.cpu_time), str(e.count), *[str(e.input_shapes or [])] * shapes])
        widths = [max(len(line[k]) for line in lines) for k in range(len(heads))]
        rule = "  ".join("-" * w for w in widths)
        text = [rule, *["  ".join(v.rjust(w) for v, w in zip(line, widths, strict=True)) for line in lines], rule]
        text.insert(2, rule)
        return "\n".join(([header] if header else []) + text) + f"\nSelf CPU time total: {_time(self.self_cpu_time_total)}\n"

    def export_chrome_trace(self, path: str) -> None:
        """Write the events for chrome://tracing."""
        events = [
            {"name": e.name, "ph": "X", "ts": e.start, "dur": e.cpu_time_total, "pid": os.getpid(), "tid": 0, "cat": "cpu_op",
             "args": {} if e.input_shapes is None else {"Input Dims": e.input_shapes}}
            for e in self
        ]  # fmt: skip
        Path(path).write_text(json.dumps({"traceEvents": events}))


class _Recorder:
    """What is observed now: finished events, and the time that inner ones took of those still open."""

    def __init__(self, shapes: bool):
        self.events, self.shapes = EventList(), shapes
        self.open: list[float] = []

    def run(self, name: str, inputs: Iterable[Any], call: Callable[[], Any]) -> Any:
        sizes = [list(t.shape) if isinstance(t, Tensor) else [] for t in inputs] if self.shapes else None
        event = FunctionEvent(name, time.perf_counter() * 1e6, sizes)
        self.open.append(0.0)
        try:
            return call()
        finally:
            self.close(event)

    def close(self, event: FunctionEvent) -> None:
        took = time.perf_counter() * 1e6 - event.start
        inner = self.open.pop()
        event.cpu_time_total, event.self_cpu_time_total = took, took - inner
        if self.open:
            self.open[-1] += took
        self.events.append(event)


_recorder: _Recorder | None = None


def _execute(op: Any, inputs: tuple[Any, ...], attrs: tuple[Any, ...]) -> Any:
    recorder = _recorder
    call = lambda: autograd.execute(op, inputs, attrs)
    return call() if recorder is None else recorder.run(f"aten::{op.name}", inputs, call)


def _update(op: Any, lists: Any, scalars: Any, attrs: Any) -> None:
    recorder = _recorder
    call = lambda: autograd.execute_update(op, lists, scalars, attrs)
    _ = call() if recorder is None else recorder.run(f"optimizer::{op.name}", [t for ts in lists for t in ts], call)


def _observe(recorder: _Recorder | None) -> None:
    """Put the observer between the dispatch and the executor, or take it away."""
    global _recorder
    _recorder = recorder
    op_module.set_executor(autograd.execute if recorder is None else _execute)
    op_module.set_update_executor(autograd.execute_update if recorder is None else _update)


class record_function(contextlib.ContextDecorator):
    """A named region, an entry of its own in the profile."""

    def __init__(self, name: str, args: str | None = None):
        self.name = name
        self._event: Any = None

    def __enter__(self) -> record_function:
        if _recorder is not None:
            self._event = (_recorder, FunctionEvent(self.name, time.perf_counter() * 1e6))
            _recorder.open.append(0.0)
        return self

    def __exit__(self, *_: Any) -> None:
        """Note how long it took."""
        if self._event is not None:
            recorder, event = self._event
            recorder.close(event)
            self._event = None


class profile:
    """Observe the operators that run in a `with` block, or in the steps that a schedule names; call `step()` after each step."""

    def __init__(
        self,
        *,
        activities: Iterable[Any] | None = None,
        schedule: Callable[[int], ProfilerAction] | None = None,
        on_trace_ready: Callable[..., Any] | None = None,
        record_shapes: bool = False,
        profile_memory: bool = False,
        with_stack: bool = False,
        with_flops: bool = False,
        with_modules: bool = False,
        **_: Any,
    ):
        self.activities = set(supported_activities() if activities is None else activities)
        self.schedule = schedule or (lambda step: ProfilerAction.RECORD)
        self.on_trace_ready, self.record_shapes = on_trace_ready, record_shapes
        self.step_num = 0
        self._found = EventList()
        self._own: _Recorder | None = None

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def start(self) -> None:
        """Begin with step 0."""
        self._set(self.schedule(self.step_num))

    def _set(self, action: ProfilerAction) -> None:
        if action is ProfilerAction.NONE or action is ProfilerAction.WARMUP:
            self._own = None
        elif self._own is None:
            self._own = _Recorder(self.record_shapes)
        _observe(self._own)

    def _ready(self) -> None:
        if self._own is not None:
            self._found, self._own = self._own.events, None
            if self.on_trace_ready is not None:
                self.on_trace_ready(self)

    def step(self) -> None:
        """One step is done."""
        done = self.schedule(self.step_num)
        _observe(None)
        if done is ProfilerAction.RECORD_AND_SAVE:
            self._ready()
        self.step_num += 1
        self._set(self.schedule(self.step_num))

    def stop(self) -> None:
        """The end."""
        _observe(None)
        self._ready()

    def events(self) -> EventList:
        """All events in the order in which they ended."""
        return self._found if self._own is None else self._own.events

    def key_averages(self, group_by_input_shape: bool = False, group_by_stack_n: int = 0, **_: Any) -> EventList:
        """Events of one name as one."""
        return self.events().key_averages(group_by_input_shape)

    def export_chrome_trace(self, path: str) -> None:
        """Write the events for chrome://tracing."""
        self.events().export_chrome_trace(path)


class autograd_profile(profile):
    """`torchlet.autograd.profiler.profile`: the same, with its older arguments, and the events as attributes."""

    def __init__(self, enabled: bool = True, *, use_cuda: bool = False, use_device: Any = None, record_shapes: bool = False, **_: Any):
        super().__init__(schedule=None if enabled else lambda step: ProfilerAction.NONE, record_shapes=record_shapes)

    function_events = property(lambda self: self.events())
    self_cpu_time_total = property(lambda self: self.events().self_cpu_time_total)

    def table(self, *args: Any, **kwargs: Any) -> str:
        """All events as a table."""
        return self.events().table(*args, **kwargs)

    def total_average(self) -> FunctionEvent:
        """All as one."""
        return self.events().total_average()

    def __repr__(self) -> str:
        return self.table()


def tensorboard_trace_handler(dir_name: str, worker_name: str | None = None, use_gzip: bool = False) -> Callable[[profile], None]:
    """For `on_trace_ready`: write each trace into a folder."""

    def handler(prof: profile) -> None:
        Path(dir_name).mkdir(parents=True, exist_ok=True)
        worker = worker_name or f"{socket.gethostname()}_{os.getpid()}"
        prof.export_chrome_trace(str(Path(dir_name) / f"{worker}.{time.time_ns()}.pt.trace.json"))

    return handler

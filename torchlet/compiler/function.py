"""A compiled function: who owns the tries, counts what happened, and answers explain() and kernels()."""

from __future__ import annotations

import functools
import inspect
import types
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torchlet import errors
from torchlet.autograd import _set_grad
from torchlet.compiler import debug
from torchlet.compiler.capture import MAX_PATHS, Run, original, run_class
from torchlet.compiler.codegen import triton
from torchlet.compiler.execute import Executable, optimize
from torchlet.compiler.interpret import interpret
from torchlet.compiler.launch import HOST_CALLS
from torchlet.compiler.load import Source
from torchlet.compiler.loops import Kernel
from torchlet.compiler.offline import compile_kernel
from torchlet.compiler.pages import places, short
from torchlet.compiler.program import Program, segment_of
from torchlet.compiler.replay import Replayer
from torchlet.compiler.schedule import schedule
from torchlet.compiler.sizes import Sizes
from torchlet.compiler.trie import Path, Step, user_line
from torchlet.config import config
from torchlet.op import STATE, when_walking
from torchlet.runtime.walk import missing
from torchlet.spec import normalize_dim
from torchlet.tensor import Tensor, wrap

_ALL: weakref.WeakSet[CompiledFunction] = weakref.WeakSet()


class CompiledFunction:
    """A function whose tensor operations are captured while it runs, compiled by segments, and launched.

    Every call runs the Python of `function`. Calls from several threads each walk a trie of their own.
    """

    __slots__ = ("function", "replayer", "paths", "_idle", "_uncompiled", "__dict__", "__weakref__")  # where the C walk reads them

    def __init__(
        self, function: Callable[..., Any], dynamic: bool | None, fullgraph: bool, backend: str | None, dump: str | None,
        replay: bool = False,
    ):
        if not callable(function):
            raise TypeError(f"compile: got {type(function).__name__}; expected a function, a method or a module")
        if isinstance(function, types.FunctionType | types.MethodType):
            functools.update_wrapper(self, function)
        self.function = function
        self.dynamic, self.fullgraph, self.backend, self.dump = dynamic, fullgraph, backend, dump
        self.name = getattr(function, "__name__", type(function).__name__).strip("<>")
        self.steps_recorded = 0
        self.paths: list[tuple[Path, str]] = []
        self.programs: list[Program] = []
        self._idle: list[Run] = []
        self._uncompiled = "a generator or coroutine function runs uncompiled" if _suspends(function) else ""
        self.changes: list[str] = []  # what was different when a new path was recorded, the last ones
        self.dropped = 0  # paths that were forgotten
        self.replayer = Replayer(self) if replay else None
        self.sizes = Sizes(dynamic)
        _ALL.add(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        replayer = self.replayer
        if replayer is not None and replayer.ready is not None and replayer.again is not None:
            result = replayer.again(replayer, args, kwargs)
            if result is not NotImplemented:
                return result
        if STATE.run is not None or self._uncompiled:  # inside another compiled call: followed inline
            return self.function(*args, **kwargs)
        if replayer is not None:
            return replayer.call(args, kwargs, self._follow)
        idle = self._idle
        run = idle.pop() if idle else run_class()(self)
        try:
            run.begin(args, kwargs)
            return self.function(*args, **kwargs)
        finally:
            try:
                run.end()
                if len(self.paths) > MAX_PATHS:
                    self._forget(run)
            finally:
                if STATE.run is run:  # an interrupt came before `end` did anything
                    run.abandon()
                idle.append(run)

    def _follow(self, run: Run | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call on a walk of the caller's own (None: on a new one)."""
        run = run_class()(self) if run is None else run
        try:
            run.begin(args, kwargs)
            return self.function(*args, **kwargs)
        finally:
            run.end()
            if len(self.paths) > MAX_PATHS:
                self._forget(run)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<compiled {self.name}>"

    def enter(self, path: Path) -> None:
        """A new path."""
        self.paths.append((path, user_line()))
        if path.cause:
            self.changes.append(path.cause)
            del self.changes[:-MAX_PATHS]

    def _forget(self, run: Run, stacklevel: int = 3) -> None:
        """Drop the paths of this trie that were not used for longest, so that what differs from call to call does not fill the memory."""
        gone = run.forget(max(len(run.paths) // 4, 1))
        if not self.dropped and gone:
            cause = max(set(self.changes), key=self.changes.count) if self.changes else "every call did something else"
            warnings.warn(
                f"compile: {self.name} makes new paths again and again ({len(self.paths)} so far), so old ones are forgotten. "
                f"The most frequent difference: {cause}", RuntimeWarning, stacklevel=stacklevel,
            )
        self.dropped += len(gone)
        self.paths = [entry for entry in self.paths if entry[0] not in gone]
        kept = {p for path, _ in self.paths for p in path.programs.values()}
        self.programs = [p for p in self.programs if p in kept]

    def compile(self, path: Path, alive: list[Step], run: Run) -> Program:
        """The program of a path for these visible outputs."""
        namer = _Namer(self.function, run.arguments)
        try:
            program = Program(path, alive, self.name, namer, self.sizes, self._varying(path, run))
        finally:
            namer.forget()
        self.programs.append(program)
        debug.record(self, path, program, run.scalars)
        return program

    def _varying(self, path: Path, run: Run) -> dict[int, tuple[int, ...]]:
        """For the arguments of the call among the path's tensors: the dimensions that are expected to vary. Empty if none is."""
        if self.dynamic is False:
            return {}
        found = {}
        given = {id(t) for t in _tensors(run.arguments)}
        for i, slot in enumerate(path.slots):
            t = None if slot.t is None else original(slot.t)
            if t is not None and id(t) in given:
                every = range(len(t._meta.shape)) if self.dynamic else ()
                found[i] = tuple(sorted({*every, *t.__dict__.get(_MARK, ())}))
        return found if any(found.values()) else {}

    def reset(self) -> None:
        """Forget every path and program."""
        self.sizes = Sizes(self.dynamic)
        self._idle.clear()
        if self.replayer is not None:
            self.replayer = Replayer(self)
        self.paths.clear()
        self.programs.clear()
        self.changes.clear()
        self.steps_recorded = self.dropped = 0


def _put_call(walk: Any) -> None:
    """`CompiledFunction.__call__` in C: what it does around a call takes as long as a small function."""
    if CompiledFunction.__call__ is _CALL:
        walk.setup_calls(CompiledFunction)
        CompiledFunction.__call__ = walk.Twin("compiled", _CALL, None, globals())  # type: ignore[method-assign]


_CALL = CompiledFunction.__call__
when_walking(_put_call)


def _suspends(function: Any) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


class _Namer:
    """The user's name of a tensor: of the parameter it was passed as, or its dotted place in a module that the function uses."""

    def __init__(self, function: Any, arguments: Any):
        self.function, self.arguments = function, arguments
        self.table: dict[int, str] | None = None

    def __call__(self, t: Tensor) -> str:
        if self.table is None:
            self.table = {}
            # not packages: to be asked for what it has not can take one, like torchlet, 15 ms, which it needs for the nearest name
            seen = [(name, value) for name, value in self._visible() if not isinstance(value, types.ModuleType)]
            for name, value in sorted(seen, key=lambda entry: hasattr(entry[1], "param_groups")):  # modules name parameters best
                self._enter(name, value)
        found = self.table.get(id(original(t)))
        return found or ""

    def forget(self) -> None:
        """Let go of the call: functions that call themselves, of which graphs are made, live until the collector comes."""
        self.table, self.function, self.arguments = self.table or {}, None, None

    def _visible(self) -> Iterator[tuple[str, Any]]:
        f = named = self.function
        args, kwargs = self.arguments or ((), {})
        if inspect.ismethod(f):
            yield "", f.__self__
            named, f = getattr(f.__self__, "forward", f), f.__func__
        try:
            bound = inspect.signature(named).bind(*args, **kwargs)
            yield from bound.arguments.items()
        except (TypeError, ValueError):
            yield from kwargs.items()
        while hasattr(f, "__wrapped__"):
            f = f.__wrapped__
        code = getattr(f, "__code__", None)
        if code is not None:
            for name, cell in zip(code.co_freevars, f.__closure__ or (), strict=False):
                try:
                    yield name, cell.cell_contents
                except ValueError:  # not assigned yet
                    continue
            for name in code.co_names:
                if name in f.__globals__:
                    yield name, f.__globals__[name]

    def _enter(self, name: str, value: Any) -> None:
        assert self.table is not None
        if isinstance(value, Tensor):
            self.table.setdefault(id(value), name)
            if value._grad is not None:
                self.table.setdefault(id(value._grad), f"grad_{name}")
        elif hasattr(value, "named_parameters") and hasattr(value, "named_buffers") and not isinstance(value, type):
            for kind in (value.named_parameters(), value.named_buffers()):
                for inner, t in kind:
                    self._enter(f"{name or type(value).__name__}.{inner}" if inner[0].isdigit() else inner, t)
        elif hasattr(value, "param_groups") and hasattr(value, "state"):
            for i, t in enumerate(t for group in value.param_groups for t in group["params"]):
                self._enter(f"param_{i}", t)
            for t, state in value.state.items():
                base = self.table.get(id(t), "")
                for key, s in state.items() if isinstance(state, dict) else ():
                    if isinstance(s, Tensor):
                        self.table.setdefault(id(s), f"{key}_{base}")
        elif isinstance(value, tuple | list):
            for i, item in enumerate(value[:16]):
                if isinstance(item, Tensor):
                    self._enter(f"{name}_{i}", item)


def compile(
    f: Any = None, *, dynamic: bool | None = None, fullgraph: bool = False, backend: str | None = None, dump: str | None = None,
    mode: str | None = None, options: Any = None, disable: bool = False, replay: bool = False,
) -> Any:
    """Capture what `f` does with tensors, and run it compiled. `f` is a function, a method or a module; also a decorator.

    dynamic    sizes that vary share kernels, so that a new size needs no C compiler: None from the second size of something on, True
               from the first, False never. On GPUs every size is compiled
    fullgraph  raise CompileError where a call has more than one segment, instead of compiling each
    backend    None or "cpu"
    dump       a folder that receives every stage and every kernel of what this function compiles
    replay     skip the Python of `f` once three calls did the same: for pure steps only, see compiler/replay.py for what it checks and
               when it raises CompileError
    mode, options are accepted for PyTorch's sake. `disable=True` returns `f` as it is.

    The result gives exactly what `f` gives, prints, side effects and exceptions included. When temporaries die, and when compiled calls
    of other threads see writes in place to tensors made before, are the two things that it may do later: see compiler/README.md.
    """
    if f is None:
        return functools.partial(
            compile, dynamic=dynamic, fullgraph=fullgraph, backend=backend, dump=dump, mode=mode, options=options, disable=disable,
            replay=replay,
        )
    if disable:
        return f
    if isinstance(f, CompiledFunction):
        return f
    if isinstance(f, staticmethod | classmethod):
        return type(f)(compile(f.__func__, dynamic=dynamic, fullgraph=fullgraph, backend=backend, dump=dump, replay=replay))
    if hasattr(f, "named_parameters") and hasattr(f, "forward") and not isinstance(f, type):
        return _compile_module(f, dynamic, fullgraph, backend, dump, replay)
    return CompiledFunction(f, dynamic, fullgraph, backend, dump, replay)


def _compile_module(module: Any, dynamic: bool | None, fullgraph: bool, backend: str | None, dump: str | None, replay: bool = False) -> Any:
    """The same module under a subclass whose calls are compiled: it shares every attribute, parameter and hook."""
    cls = type(module)
    call = CompiledFunction(types.MethodType(cls.__call__, module), dynamic, fullgraph, backend, dump, replay)
    call.name = cls.__name__
    again = _compile_module, (module, dynamic, fullgraph, backend, dump, replay)  # how a copy or an unpickled one is made
    members = {"__call__": lambda self, *args, **kwargs: call(*args, **kwargs), "__reduce_ex__": lambda self, protocol: again}
    compiled_class = type(cls.__name__, (cls,), {**members, "__module__": cls.__module__})
    twin: Any = object.__new__(compiled_class)
    object.__setattr__(twin, "__dict__", module.__dict__)
    _CALLS[twin] = call
    return twin


_CALLS: weakref.WeakKeyDictionary[Any, CompiledFunction] = weakref.WeakKeyDictionary()


def compiled_function(f: Any) -> CompiledFunction:
    """The CompiledFunction behind what compile() returned. Raises TypeError for anything else."""
    if isinstance(f, CompiledFunction):
        return f
    if inspect.ismethod(f) and isinstance(f.__func__, CompiledFunction):
        return f.__func__
    try:
        found = _CALLS.get(f)
    except TypeError:
        found = None
    if found is None:
        raise TypeError(f"expected a compiled function, got {f!r}\nhelp: pass what torchlet.compile returned")
    return found


def disable(f: Any = None, recursive: bool = True, *, reason: str | None = None) -> Any:
    """`f` as a function that runs uncompiled, also when a compiled function calls it. `reason` is what explain() tells."""
    if f is None:
        return functools.partial(disable, recursive=recursive, reason=reason)

    @functools.wraps(f)
    def uncompiled(*args: Any, **kwargs: Any) -> Any:
        run = STATE.run
        if run is None:
            return f(*args, **kwargs)
        run.flush(f"{getattr(f, '__name__', 'a function')} is disabled{f': {reason}' if reason else ''}")
        STATE.run = None
        try:
            return f(*args, **kwargs)
        finally:
            STATE.run = run

    return uncompiled


def is_compiling() -> bool:
    """True inside a compiled call."""
    return STATE.run is not None


_MARK = "_varying_dimensions"


def mark_dynamic(t: Tensor, index: int | Sequence[int]) -> None:
    """Say that the size of these dimensions will vary, so that the first size is already compiled for all. Raises IndexError."""
    for d in (index,) if isinstance(index, int) else index:
        t.__dict__.setdefault(_MARK, set()).add(normalize_dim("mark_dynamic", d, t.ndim))


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def reset() -> None:
    """Forget what every compiled function has compiled (the disk cache stays)."""
    for f in list(_ALL):
        f.reset()


def stats() -> dict[str, int]:
    """How much has been compiled: compiles, segments, paths, cache_hits, kernels, steps, launches, stepwise."""
    out = dict.fromkeys(("compiles", "segments", "paths", "cache_hits", "kernels", "steps", "launches", "stepwise"), 0)
    for f in list(_ALL):
        out["steps"] += f.steps_recorded
        out["paths"] += len(f.paths)
        for path, _ in f.paths:
            out["launches"] += path.launches
            out["stepwise"] += path.stepwise
        for p in f.programs:
            out["segments"] += 1
            for exe in executables(p):
                out["compiles"] += 1
                out["kernels"] += exe.counts[0]
                out["cache_hits"] += exe.counts[1]
    return out


def executables(program: Program) -> list[Executable]:
    """What a program runs: its forward, and its backward once it was compiled."""
    out = [] if program.executable is None else [program.executable]
    if program.backward is not None and program.backward.executable is not None:
        out.append(program.backward.executable)
    return out


# ------------------------------------------------------------------------------------------------ explain


@dataclass(frozen=True)
class Explanation:
    """What explain() found; print it."""

    text: str
    segments: int
    kernels: int

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


def explain(f: Any, *more: Any, **kwargs: Any) -> Any:
    """`explain(f)(*args)`: call a compiled function and tell its paths, its segments and why each ended, what runs uncompiled and why."""

    def call(*args: Any, **kw: Any) -> Explanation:
        compiled = f if _is_compiled(f) else compile(f)
        compiled(*args, **kw)
        return describe(compiled_function(compiled))

    return call(*more, **kwargs) if more or kwargs else call


def _is_compiled(f: Any) -> bool:
    try:
        compiled_function(f)
    except TypeError:
        return False
    return True


def describe(f: CompiledFunction) -> Explanation:
    """The text of explain() for what has happened so far."""
    total = sum(len(exe.kernels) for p in f.programs for exe in executables(p))
    calls = sum(exe.stages.get("calls", 0) for p in f.programs for exe in executables(p))
    what = [(len(f.paths), "path"), (f.steps_recorded, "recorded step"), (total, "kernel")]
    lines = [f"{f.name}: {', '.join(_count(*x) for x in what)}, {_count(calls, 'call')} of the C compiler"]
    if f.replayer is not None:
        lines.extend(f"  {line}" for line in f.replayer.describe())
    if f.dropped:
        lines.append(f"  {_count(f.dropped, 'path')} forgotten, because there were more than {MAX_PATHS}")
    if f._uncompiled:
        lines.append(f"  {f._uncompiled}")
    for i, (path, place) in enumerate(f.paths, 1):
        last = next((s.source for s in reversed(path.steps) if s.source), "")
        lines.append(
            f"path {i}: {_count(len(path.steps), 'step')} to {short(last) or '?'}, ended at {short(place) or '?'}: "
            f"{', '.join(r or 'launched' for r in path.reasons)}; {_count(path.launches, 'launch', 'es')}"
            + (f", {path.stepwise} of them step by step" if path.stepwise else "")
        )
        if path.cause:
            lines.append(f"  recorded because something was different: {short_cause(path.cause)}")
        lines.extend(f"  ended also at {short(where)}: {why or 'launched'}" for why, where in list(path.reasons.items())[1:])
        lines.extend(f"  not compiled, run step by step: {why}" for why in path.stepwise_because)
        if path.copied:
            copied = ", ".join(f"{list(shape)} ({nbytes} bytes) at {short(where)}" for where, shape, nbytes in path.copied.values())
            lines.append(f"  copied in calls where NumPy can see it (help: drop the array, or hand out a copy of it): {copied}")
        for p in path.programs.values():
            for exe in executables(p):
                natives = getattr(exe, "natives", [])
                externs = f", {_count(len(natives), 'native call')}" if natives else ""
                externs += f", {_count(len(exe.externs), 'extern call')}" if exe.externs else ""
                sources = exe.stages.get("shared", [Source("")] * len(exe.kernels))
                many = sum(bool(s.values) for s in sources)
                serves = f", {many} of them for all sizes ({_count(exe.stages['calls'], 'call')} of the C compiler)" if many else ""
                lines.append(f"  {exe.name}: {_count(len(exe.kernels), 'kernel')}{externs}{serves}")
                for k, s in zip(exe.kernels, sources, strict=True):
                    sizes = f"for all sizes since {s.note}" if s.note and s.values else "for all sizes" if s.values else s.note
                    lines.append(f"    {k.name.ljust(44)} {places(k.origin).ljust(24 if sizes else 0)} {sizes}".rstrip())
                lines.extend(f"    tile of {c}" for c in exe.choices())
                lines.extend(
                    f"    native {n.op.name if n.op else n.kind}: a function of the C runtime".ljust(48) + f" {short(n.source)}"
                    for n in natives
                )
                lines.extend(
                    f"    extern {n.op.name if n.op else n.kind}: it has no loops to compile and {exe.extern_text}".ljust(48)
                    + f" {short(n.source)}"
                    for n in exe.externs
                )
                lines.extend(
                    f"    {op} is computed by its parts, not as one kernel, because {why}".ljust(48) + f" {short(where)}"
                    for op, why, where in exe.stages.get("opened", [])
                )
                lines.extend(f"    {text}".ljust(48) + f" {short(where)}" for text, where in exe.stages.get("large", []))
    if missing() and config.c_walk:
        lines.append(f"known paths are followed in Python, which is slower: {missing().splitlines()[0]}")
    if HOST_CALLS:
        lines.append(
            "so far copied to the host and back, because they have no loops: "
            + ", ".join(f"{k} ({n} times)" for k, n in HOST_CALLS.most_common())
        )
    return Explanation("\n".join(lines), len(f.paths), total)


def short_cause(text: str) -> str:
    """A difference with its path shortened as other places are."""
    place, _, rest = text.partition(": ")
    return f"{short(place)}: {rest}"


def _count(n: int, what: str, plural: str = "s") -> str:
    return f"{n} {what}{'' if n == 1 else plural}"


# ------------------------------------------------------------------------------------------------ kernels without a launch


class _DryRun(Run):
    """Records a call and launches nothing: values that Python asks for are computed aside, outside tensors stay as they are."""

    def __init__(self, owner: CompiledFunction):
        super().__init__(owner)
        self.programs: list[Program] = []

    def _launch(self, path: Path, stepwise: str) -> None:
        alive, _ = self._look(path)
        path.quiet = None
        program = Program(path, alive, self.owner.name, _Namer(self.owner.function, self.arguments))
        self.programs.append(program)
        if program.stepwise:
            raise errors.UnsupportedError(f"kernels: {program.stepwise}")
        seg = segment_of(path, alive, self.owner.name, lambda t: "")
        slots = path.slots
        values = interpret(seg.graph, [slots[i].t._np for i in seg.inputs], [self.scalars[i] for i in seg.scalars])
        made = {
            s: v if order is None else v.transpose([order.index(d) for d in range(v.ndim)])
            for s, v, order in zip(seg.outputs, values, seg.orders, strict=True)
            if s is not None
        }
        for s in alive:
            source = (
                wrap(made[s])
                if s in made
                else wrap(
                    interpret(
                        _alone(seg.graph, seg.alive_nodes[s]), [slots[i].t._np for i in seg.inputs], [self.scalars[i] for i in seg.scalars]
                    )[0]
                )
            )
            t = s.t
            t._np, t._store = source._np, source._store
            s.t = None


def _alone(graph: Any, node: Any) -> Any:
    return type(graph)(graph.name, graph.inputs, graph.scalars, (node,), (None,))


def kernels(f: Any, *args: Any, target: str = "cuda:90", **kwargs: Any) -> list[Any]:
    """The kernels that a call `f(*args)` would launch, for any target, without launching them: no tensor changes.

    `target` is "cpu", "cuda:80", "cuda:90", "cuda:100", "cuda:120", "hip:gfx942" or "hip:gfx950". Each kernel has `.name .source .ttir
    .ptx .sass .registers .spill_bytes .shared_bytes .num_warps .bytes_moved .flops .roofline_us .lines`; what a target lacks is None.
    Python's own effects (prints, counters) do happen. Raises UnsupportedError when the call cannot be captured as graphs.
    """
    owner = compiled_function(f) if _is_compiled(f) else CompiledFunction(f, None, False, None, None)
    run = _DryRun(owner)
    run.arguments = (args, kwargs)
    grads: dict[int, tuple[Tensor, Any]] = {}
    seen = Tensor.grad  # type: ignore[attr-defined]

    def note(t: Tensor, value: Any) -> None:
        grads.setdefault(id(t), (t, t._grad))
        seen.fset(t, value)  # type: ignore[attr-defined]

    grad_mode = STATE.grad
    Tensor.grad = property(seen.fget, note, seen.fdel)  # type: ignore
    STATE.run, STATE.gpu = run, target != "cpu"
    try:
        if not STATE.grad:
            run.event("grad", False)
        run.grads = grads
        result = owner.function(*args, **kwargs)
        run.flush("the call ended", last=True)
        del result
        for program in run.programs:
            if program.backward is not None:
                program.backward.compiled([True] * len(program.backward.seed_metas))
    finally:
        STATE.gpu = False
        Tensor.grad = seen  # type: ignore
        STATE.run = None
        _set_grad(grad_mode)
        for t, g in grads.values():
            t._grad = g
    found: list[Any] = []
    for program in run.programs:
        for exe in executables(program):
            planned = exe.kernels
            if target != "cpu":
                planned = schedule(optimize(exe.stages["graph"], gpu=True), exe.name, gpu=True)[0].kernels
            found.extend(report(k, target) for k in planned)
    return found


def report(kernel: Kernel, target: str) -> Any:
    """One kernel for one target."""
    if target == "cpu":
        return debug.cpu_report(kernel)
    return compile_kernel(triton.emit(kernel, target), target)



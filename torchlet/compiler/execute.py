"""Turns a graph into something that runs: passes, plan, loaded kernels, and the lean call that binds addresses and launches."""

from __future__ import annotations

import ctypes
import struct
import threading
import time
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from torchlet import dtypes
from torchlet.compiler import launch, load, native, recipe
from torchlet.compiler.chunk import chunk
from torchlet.compiler.claim import claims, refusals
from torchlet.compiler.decompose import decompose
from torchlet.compiler.graph import Graph, Node
from torchlet.compiler.interpret import interpret
from torchlet.compiler.launch import CudaExecutable
from torchlet.compiler.loops import Kernel
from torchlet.compiler.recipe import Launch, Recipe
from torchlet.compiler.recognise import recognise
from torchlet.compiler.recurrent import with_loops
from torchlet.compiler.schedule import Extern, KernelLaunch, Plan, Slot, schedule
from torchlet.compiler.simplify import simplify
from torchlet.compiler.sizes import Family, Sizes
from torchlet.compiler.tune import Choice
from torchlet.errors import CompileError
from torchlet.runtime import cpu
from torchlet.runtime.cpu import Program, arena
from torchlet.spec import CPU, contiguous_strides
from torchlet.spec import device as Place

__all__ = ["Executable", "compile_graph", "compile_plan", "optimize"]

Number = int | float | bool
Array = np.ndarray[Any, Any]


def optimize(graph: Graph, gpu: bool = False, notes: list[tuple[str, str]] | None = None) -> Graph:
    """The graph in operators that have loops or are written by hand for the target, simplified until nothing changes.

    `notes`: what is said of its large values (see `chunk`).
    """

    def claimed(n: Node) -> bool:
        return claims(n, gpu) or (not gpu and native.claims(n))

    def simple(graph: Graph) -> Graph:
        size = -1
        while size != (size := len(graph.nodes())):
            graph = decompose(simplify(graph), claimed)
        return graph

    graph = simple(decompose(recognise(with_loops(graph) if gpu else graph, claimed), claimed))
    chunked = chunk(graph, notes)
    return graph if chunked is graph else simple(chunked)


def compile_graph(
    graph: Graph, name: str, device: Place = CPU, host_inputs: Sequence[int] = (), host_outputs: Sequence[int] = (),
    sizes: Sizes | None = None, varying: Hashable = (), example: Callable[[], Graph | None] = lambda: None,
) -> Executable:
    """The graph as an Executable; its `stages` hold what each pass made.

    On a CUDA device the addresses of inputs and outputs are the device's, except those listed in `host_inputs`, `host_outputs`.
    On the CPU, graphs that differ in sizes only share kernels if they are compiled with the same `sizes`. `example` gives the graph at
    other sizes, with which already the first of them is compiled for all sizes, or None; `varying` says which sizes it takes. With
    `sizes`, what was made of a graph is kept on disk: where it is there, the passes wait until somebody asks what they make.
    """

    def compiled() -> Executable:
        return _compile(graph, name, device, host_inputs, host_outputs, sizes, example)

    if device is not CPU or sizes is None:
        return compiled()
    with sizes.lock:
        key = sizes.key(graph, name, varying)
        kept = None if key is None else recipe.find(key)
        if kept is not None:
            try:
                found = _Kept(graph, name, kept, compiled, sizes)
                sizes.waiting.append(found.explain)
                return found
            except CompileError:  # a kernel is gone, or damaged
                pass
        sizes.catch_up()
        exe = compiled()
        if key is not None and exe.recipe is not None:
            recipe.keep(key, exe.recipe)
    return exe


def _compile(
    graph: Graph, name: str, device: Place, host_inputs: Sequence[int], host_outputs: Sequence[int], sizes: Sizes | None,
    example: Callable[[], Graph | None],
) -> Executable:
    clock = [time.perf_counter()]
    opened: list[tuple[str, str, str]] = []  # what has a kernel written by hand, but not here
    known = recognise(graph, lambda n: claims(n, device is not CPU), opened)
    opened += refusals(known, device is not CPU)
    large: list[tuple[str, str]] = []
    simple = optimize(known, gpu=device is not CPU, notes=large)
    clock.append(time.perf_counter())
    family, shared = sizes.enter(simple) if sizes is not None and device is CPU else (None, False)
    plan, fused = schedule(simple, name, family.decisions if shared and family is not None else None, gpu=device is not CPU)
    if family is not None and family.decisions is None:
        assert fused.decisions is not None
        family.examples, family.decisions = plan.kernels, fused.decisions
        if (other := example()) is not None:
            other = optimize(other)
            if sizes is not None and sizes.enter(other)[0] is family:  # it may have other chunks
                family.examples = schedule(other, name, family.decisions)[0].kernels
                shared = True
    clock.append(time.perf_counter())
    counts = load.COUNTS if device is CPU else launch.COUNTS
    compiled, calls = counts["compiled"], load.COUNTS["calls"]
    if device is CPU:
        exe = compile_plan(plan, family if shared else None)
    else:  # a CudaExecutable has the same face
        exe = cast(Executable, CudaExecutable(plan, device, host_inputs, host_outputs))
    clock.append(time.perf_counter())
    ms = {stage: round((b - a) * 1e3, 3) for stage, a, b in zip(("simplify", "schedule", "load"), clock, clock[1:], strict=False)}
    cached = len(plan.kernels) - (counts["compiled"] - compiled)
    exe.stages |= {"opened": opened, "large": large}
    exe.stages |= {"graph": graph, "simplified": simple, "fused": fused, "plan": plan, "ms": ms, "cached": cached}
    exe.stages["calls"] = load.COUNTS["calls"] - calls
    exe.counts = len(plan.kernels), cached
    return exe


def compile_plan(plan: Plan, family: Family | None = None) -> Executable:
    """The plan with its kernels compiled and loaded; `family`: with the kernels that serve all sizes."""
    return Executable(plan, family)


class Executable:
    """A plan that can be run on the CPU.

    `kernels` are its loop nests in launch order, `externs` the nodes it runs as eager calls, `stages` what the passes made.
    """

    extern_text = "runs as NumPy"  # what explain() says of an extern call

    recipe: Recipe | None = None  # where it is one program
    counts = 0, 0  # its kernels, and those of them that needed no C compiler

    def __init__(self, plan: Plan, family: Family | None = None):
        self.plan, self.family = plan, family
        self.kernels: list[Kernel] = plan.kernels
        self.externs: list[Node] = [s.node for s in plan.steps if isinstance(s, Extern)]
        self.natives: list[Node] = []  # those of them that the C runtime computes
        self.stages: dict[str, Any] = {}
        self._prepare(plan.graph, plan.name, plan.arena_bytes)
        try:
            self._load()
        except CompileError as error:
            _warn_once(str(error))
            self.run = self._interpret  # type: ignore[method-assign]

    def _prepare(self, graph: Graph, name: str, arena_bytes: int) -> None:
        self.name, self.arena_bytes = name, arena_bytes
        self._n_inputs, self._n_outputs, self._n_scalars = len(graph.inputs), len(graph.outputs), len(graph.scalars)
        self._pack_pointers = struct.Struct(f"={self._n_inputs + self._n_outputs}Q").pack_into
        self._kinds = "".join("d" if n.spec.dtype is dtypes.float64 else "q" for n in graph.scalars)
        self._pack_scalars = struct.Struct(f"={self._kinds}").pack_into
        self._lock = threading.Lock()
        self.on_tuned: list[Callable[[], None]] = []  # for GPUs: called when timed alternates have changed
        self._base = 0
        self._offsets: list[tuple[int, int]] = []
        self.programs: list[Program] = []
        # the plan cut at extern calls: (run, memory of pointers, memory of scalars) of a program, or (extern, None, None)
        self._segments: list[tuple[Any, memoryview | None, memoryview | None]] = []

    def _load(self) -> None:
        """Load the kernels, and make the programs between extern calls."""
        plan = self.plan
        arena_slots = list(dict.fromkeys(slot for s in plan.steps for slot in _slots(s) if slot.kind == "arena"))
        first = self._n_inputs + self._n_outputs
        number = {slot: first + i for i, slot in enumerate(arena_slots)}
        number |= {Slot("input", j): j for j in range(self._n_inputs)}
        number |= {Slot("output", k): self._n_inputs + k for k in range(self._n_outputs)}
        calls = {
            id(s): native.call_of(s.node, tuple([p and p[1] for p in s.inputs])) for s in plan.steps if isinstance(s, Extern)
        }
        parts = list(dict.fromkeys(cpu.part_of(call.function) for call in calls.values() if call is not None))
        sources = None if self.family is None else self.family.sources(plan.kernels)
        loaded = iter(load.load(plan.kernels, sources, parts))
        if sources is not None:
            self.stages["shared"] = sources
        places = tuple([slot.number for slot in arena_slots])
        overlaps = _overlaps(plan, number)
        launches: list[Launch] = []
        fixed: dict[int, int] = {}  # sizes that kernels get as numbers: the bits of each, and its place after the call's

        def slot(size: int | float) -> int:
            bits = size if isinstance(size, int) else struct.unpack("=q", struct.pack("=d", size))[0]
            return fixed.setdefault(bits, self._n_scalars + len(fixed))

        def flush() -> None:
            if launches:
                needed = tuple(dict.fromkeys(part for x in launches for part in load.PARTS.get(x.function, ())))
                self.recipe = Recipe(tuple(launches), places, tuple(fixed), overlaps, plan.arena_bytes, needed)
                self._add(self.recipe)
                launches.clear()

        for step in plan.steps:
            if isinstance(step, KernelLaunch):
                k = next(loaded)
                numbers = (*step.scalars, *map(slot, k.sizes))
                launches.append(Launch(k.name, False, k.key, k.work, k.parallel, k.writes, tuple([number[s] for s in step.slots]), numbers))
            elif (call := calls[id(step)]) is not None:
                assert step.node.op is not None
                read = [number[p[0]] for p in step.inputs if p is not None]
                pointers, numbers = (*read, number[step.output]), tuple(map(slot, call.numbers))
                launches.append(Launch(step.node.op.name, True, call.function, call.work, True, (len(read),), pointers, numbers))
                self.natives.append(step.node)
            else:
                flush()
                self._segments.append((step, None, None))
        flush()
        self.externs = [n for n in self.externs if n not in self.natives]
        if not self.is_single:
            self.recipe = None

    def _add(self, made: Recipe) -> None:
        """A further program, whose kernels are loaded."""
        first = self._n_inputs + self._n_outputs
        self._offsets = [(first + i, offset) for i, offset in enumerate(made.places)]
        launches = [(load.function_of(x), x.pointers, x.numbers) for x in made.launches]
        program = Program(launches, first + len(made.places), self._n_scalars + len(made.fixed), made.overlaps)
        program.scalars[self._n_scalars : self._n_scalars + len(made.fixed)] = list(made.fixed)
        self.programs.append(program)
        self._segments.append((program.run, memoryview(program.pointers).cast("B"), memoryview(program.scalars).cast("B")))

    def run(self, inputs: Sequence[int], outputs: Sequence[int], scalars: Sequence[Number] = ()) -> None:
        """Launch. `inputs` and `outputs` are addresses, one for each of the graph's; those of outputs with a target are not used (0).

        Raises IndexError when a data-dependent position is outside its tensor, and what an extern call raises.
        """
        with self._lock:  # the tables of addresses serve one call at a time
            if self._offsets and (base := arena(self.arena_bytes)) != self._base:
                self._move(base)
            for what, pointers, numbers in self._segments:
                if pointers is None:
                    self._call(what, inputs, outputs, scalars)
                    continue
                self._pack_pointers(pointers, 0, *inputs, *outputs)
                if scalars:
                    self._pack_scalars(numbers, 0, *scalars)  # type: ignore[arg-type]
                what()

    @property
    def is_single(self) -> bool:
        """True where a run is one native call: no extern calls between programs, no interpretation."""
        return len(self.programs) == 1 and len(self._segments) == 1

    def _move(self, base: int) -> None:
        """Temporaries lie in the arena of the thread that calls."""
        self._base = base
        for program in self.programs:
            for i, offset in self._offsets:
                program.pointers[i] = base + offset

    def _call(self, step: Extern, inputs: Sequence[int], outputs: Sequence[int], scalars: Sequence[Number]) -> None:
        """An eager call on arrays over the addresses."""

        def address(slot: Slot) -> int:
            return {"input": inputs, "output": outputs}[slot.kind][slot.number] if slot.kind != "arena" else self._base + slot.number

        args: list[Any] = []
        for x, place in zip(step.node.inputs, step.inputs, strict=True):
            if place is not None:
                assert isinstance(x, Node)
                args.append(array_at(address(place[0]), x.spec.shape, x.spec.dtype, place[1]))
            else:
                args.append(scalars[x.attrs[0]] if isinstance(x, Node) else x)
        node = step.node
        assert node.op is not None
        with np.errstate(all="ignore"):
            out = node.op.eager(*args, *node.attrs)
        array_at(address(step.output), node.spec.shape, node.spec.dtype)[...] = out

    def choices(self) -> list[Choice]:
        """For GPUs: which tiles the kernels have, and why."""
        return []

    def _interpret(self, inputs: Sequence[int], outputs: Sequence[int], scalars: Sequence[Number] = ()) -> None:
        """Run without a compiler: the graph in NumPy."""
        graph = self.plan.graph
        arrays = [array_at(p, n.spec.shape, n.spec.dtype, n.attrs[1]) for p, n in zip(inputs, graph.inputs, strict=True)]
        results = [np.array(r) for r in interpret(graph, arrays, scalars)]  # copies: a target may be the input of another output
        for k, (result, target) in enumerate(zip(results, graph.targets, strict=True)):
            where = array_at(outputs[k], result.shape, graph.outputs[k].spec.dtype) if target is None else arrays[target]
            where[...] = result

    def __repr__(self) -> str:
        return f"<Executable {self.name}: {len(self.kernels)} kernels, {len(self.externs)} extern calls>"


class _Kept(Executable):
    """An executable whose recipe was on disk; what else is known of executables is made when somebody asks for it."""

    def __init__(self, graph: Graph, name: str, kept: Recipe, compiled: Callable[[], Executable], sizes: Sizes):
        self.externs, self._compiled, self._sizes = [], compiled, sizes
        self._prepare(graph, name, kept.arena_bytes)
        kernels = [x.function for x in kept.launches if not x.native]
        load.load_kept(kernels, kept.parts)
        self.counts = len(kernels), len(kernels)
        self._add(kept)

    def __getattr__(self, name: str) -> Any:  # of what `__init__` left out
        if name not in _EXPLAINED:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        self._sizes.catch_up()
        return self.__dict__[name]

    def explain(self) -> None:
        """Compile the graph as if nothing had been kept, for what that tells; with the sizes that were compiled before it."""
        whole = self._compiled()
        self.__dict__.update({k: whole.__dict__[k] for k in _EXPLAINED})


_EXPLAINED = ("plan", "family", "kernels", "natives", "stages")


def _slots(step: KernelLaunch | Extern) -> list[Slot]:
    return list(step.slots) if isinstance(step, KernelLaunch) else [step.output, *(p[0] for p in step.inputs if p is not None)]


def _overlaps(plan: Plan, number: Mapping[Slot, int]) -> dict[int, tuple[int, ...]]:
    """For the number of each place in the arena those of all places that share memory with it."""
    ends: dict[Slot, int] = {}
    for step in plan.steps:
        if isinstance(step, KernelLaunch):
            for b, slot in zip(step.kernel.buffers, step.slots, strict=True):
                if slot.kind == "arena":
                    ends[slot] = max(ends.get(slot, 0), slot.number + b.size * b.dtype.itemsize)
        elif step.output.kind == "arena":
            spec = step.node.spec
            ends[step.output] = max(ends.get(step.output, 0), step.output.number + spec.numel * spec.dtype.itemsize)
    return {number[a]: tuple([number[b] for b in ends if a.number < ends[b] and b.number < ends[a] or a == b]) for a in ends}


def array_at(address: int, shape: tuple[int, ...], dtype: dtypes.dtype, strides: tuple[int, ...] | None = None) -> Array:
    """The memory at an address as an array; it must outlive the array. Strides are in elements, none means row-major."""
    step = dtype.itemsize
    if 0 in shape:
        return np.empty(shape, dtype.np)
    strides = contiguous_strides(shape) if strides is None else strides
    count = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    flat: Array = np.frombuffer((ctypes.c_char * (count * step)).from_address(address), dtype.np, count)  # type: ignore[call-overload]
    return np.lib.stride_tricks.as_strided(flat, shape, [s * step for s in strides])


_warned = False


def _warn_once(cause: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(f"compiled functions run in NumPy, which is slow: {cause}", RuntimeWarning, stacklevel=2)

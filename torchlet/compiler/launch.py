"""A plan's kernels on a CUDA device: cubins with a disk cache of our own, launches in a row or as one CUDA graph."""

from __future__ import annotations

import atexit
import gc
import hashlib
import itertools
import json
import operator
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np

from torchlet.compiler import offline, tune, winners
from torchlet.compiler.codegen import triton as codegen
from torchlet.compiler.codegen.triton import TritonKernel
from torchlet.compiler.graph import Node
from torchlet.compiler.load import canonical
from torchlet.compiler.loops import Kernel
from torchlet.compiler.schedule import Extern, KernelLaunch, Plan, Slot
from torchlet.config import config
from torchlet.errors import CompileError, UnsupportedError
from torchlet.runtime import cc, cuda
from torchlet.runtime.cuda import Device, Function, Launch, LaunchGraph, LaunchInfo, MapForm, TableLaunch
from torchlet.spec import contiguous_strides, numel
from torchlet.spec import device as Place
from torchlet.storage import DeviceArray

__all__ = ["COUNTS", "HOST_CALLS", "CudaExecutable", "cubin_of", "precompile", "target_of"]

Number = int | float | bool
GRAPH_AFTER = 3  # calls after which a segment's launches become a CUDA graph: making one costs about as much as ten launches a kernel
COUNTS = {"kernels": 0, "compiled": 0, "compile_failures": 0, "launches": 0, "graph_launches": 0, "graph_updates": 0}
COUNTS |= {"contests": 0, "swaps": 0}  # kernels whose alternates were timed; those that another form won
HOST_CALLS: Counter[str] = Counter()  # operators that ran on the host although their tensors lie on a device


_AMPERE = dict.fromkeys([(8, 0), (8, 6), (8, 7), (8, 9)], "cuda:80")  # binaries run on later devices of the same major version
_TARGETS = {**_AMPERE, (9, 0): "cuda:90", (10, 0): "cuda:100", (12, 0): "cuda:120"}


def target_of(device: Device) -> str:
    """The compiler's name of the device's architecture. Raises UnsupportedError for one that is not supported."""
    found = _TARGETS.get(device.capability)
    if found is None:
        major, minor = device.capability
        known = ", ".join(f"{a}.{b}" for a, b in _TARGETS)
        raise UnsupportedError(f"cuda: {device.properties.name} has compute capability {major}.{minor}; expected one of {known}")
    return found


# ------------------------------------------------------------------------------------------------ cubins


@lru_cache(maxsize=1)
def _compiler() -> str:
    return f"triton {version('triton')}"  # read from the package's metadata: importing it takes a fifth of a second


def _key(kernel: TritonKernel, target: str) -> str:
    parts = (
        kernel.source, list(kernel.signature.items()), list(kernel.constexprs.items()), sorted((k, v) for k, v in kernel.attrs.items()),
        kernel.num_warps, kernel.num_stages, target, _compiler(),
    )  # fmt: skip
    return "cubin-" + hashlib.sha256(repr(parts).encode()).hexdigest()[:40]


def _emitted(kernel: Kernel, target: str, maps: bool = True) -> TritonKernel:
    """The kernel as source in which every name is a position, so that equal layers of a model share one binary."""
    return _printed(kernel, target, maps, config.float32_dot)


@lru_cache(maxsize=4096)
def _printed(kernel: Kernel, target: str, maps: bool, precision: str) -> TritonKernel:
    return codegen.emit(_nameless(kernel), target, maps=maps)


def _nameless(kernel: Kernel) -> Kernel:
    if kernel.body is not None:
        buffers = tuple(replace(b, name=f"b{i}") for i, b in enumerate(kernel.buffers))
        return replace(kernel, name=type(kernel.body).__name__.lower(), buffers=buffers, origin=())
    return canonical(kernel)


def _record(kernel: TritonKernel, device: Device) -> str:
    return tune.record(_key(kernel, target_of(device)), kernel.grid, kernel.sizes, device)


def _chosen(kernel: Kernel, device: Device) -> TritonKernel:
    """The form that won a contest on such a device; where there was none, the table's or the formula's."""
    target = target_of(device)
    formula = _emitted(kernel, target)
    won = tune.recall(_record(formula, device)) if tune.allowed() else None
    if won is None:
        return _tabled(kernel, target) or formula
    if won == _key(formula, target):
        return formula
    return next((f for f in codegen.emit_choices(_nameless(kernel), target) if _key(f, target) == won), formula)


def _tabled(kernel: Kernel, target: str) -> TritonKernel | None:
    """The form that the committed table names, if it has the kernel's problem."""
    if not winners.knows(target):
        return None
    nameless = _nameless(kernel)
    tile = winners.lookup(winners.problem_of(codegen.simplified(nameless)), target, codegen.tiles(nameless, target))
    return None if tile is None else codegen.emit(nameless, target, tile)


def _fitting(kernel: Kernel, target: str) -> TritonKernel:
    """The kernel with the first of its tiles whose binary has no flaw."""
    return offline.fitting(_nameless(kernel), target, lambda k: cubin_of(k, target)[1].flaw)


def cubin_of(kernel: TritonKernel, target: str) -> tuple[bytes, LaunchInfo]:
    """The kernel's binary and what its launch needs, from the disk cache or compiled now. Raises CompileError."""
    key = _key(kernel, target)
    COUNTS["kernels"] += 1
    entry = cc.read_entry(key)
    path = cc.cache_folder() / f"{key}.cubin"
    if entry is not None and cc.verified(path, entry.get("sha256")):
        facts = json.loads(entry["launch"])
        return path.read_bytes(), LaunchInfo(**{**facts, "maps": tuple([MapForm(**{**m, "box": tuple(m["box"])}) for m in facts["maps"]])})
    COUNTS["compiled"] += 1
    cubin, info = _compile(kernel, target)
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix="cubin-", delete=False) as f:
        f.write(cubin)
    os.replace(f.name, path)
    cc.write_entry(key, {"sha256": hashlib.sha256(cubin).hexdigest(), "launch": json.dumps(asdict(info))})
    return cubin, info


def _compile(kernel: TritonKernel, target: str) -> tuple[bytes, LaunchInfo]:
    """By Triton. Raises CompileError with the kernel's name and lines."""
    try:
        built = offline.compile_kernel(kernel, target)
        cubin, m = built.cubin, built.metadata
    except Exception as error:  # Triton raises what it likes, assertions of MLIR passes among them
        lines = ", ".join(kernel.kernel.origin) if kernel.kernel else ""
        raise CompileError(f"triton: kernel {kernel.name} ({lines}) for {target}: {type(error).__name__}: {error}") from error
    if cubin is None:
        raise CompileError(f"triton: {target} has no cubin")
    names = set(LaunchInfo.__dataclass_fields__)
    maps = tuple([MapForm(x["swizzle"], x["elem_type"], x["elem_size"], tuple(x["block_size"])) for x in m.tensordesc_meta or ()])
    return cubin, LaunchInfo(**{n: getattr(m, n) for n in names if hasattr(m, n)}, maps=maps, flaw=built.flaw)


FEW = 4  # kernels below which a further process costs more than it saves: it imports Triton first


def precompile(kernels: Sequence[TritonKernel], target: str) -> None:
    """Put the kernels' cubins into the disk cache, by several processes: threads of one would wait for each other.

    What fails is met again, with its name, where the kernel is loaded.
    """
    missing = list({key: k for k in kernels if cc.read_entry(key := _key(k, target)) is None}.values())
    count = min(len(missing) // FEW, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 16)
    if count < 2:
        return
    missing.sort(key=lambda k: ("tl.dot" not in k.source, -len(k.source)))  # what takes longest is begun first
    with tempfile.TemporaryDirectory(prefix="torchlet-compile-") as taken:
        workers = [_worker(missing, target, taken) for _ in range(1, count)]
        done, _ = compile_share(missing, target, taken)
        for worker in workers:
            if worker.wait():
                COUNTS["compile_failures"] += 1
    COUNTS["compiled"] += len(missing) - done


def compile_share(kernels: Sequence[TritonKernel], target: str, taken: str) -> tuple[int, int]:
    """Compile the kernels that no other process has begun; how many they were, and how many failed.

    Whoever makes the file of a kernel's number in the folder `taken` has it, so nobody waits while there is work, whatever it takes.
    """
    done = failed = 0
    collects = gc.isenabled()
    gc.disable()  # Triton makes many objects and hardly any cycles; to look for them takes a tenth of the time
    try:
        for i, kernel in enumerate(kernels):
            try:
                os.close(os.open(os.path.join(taken, str(i)), os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            done += 1
            try:
                cubin_of(kernel, target)
            except CompileError:
                failed += 1
    finally:
        if collects:
            gc.enable()
    return done, failed


def _worker(kernels: Sequence[TritonKernel], target: str, taken: str) -> subprocess.Popen[bytes]:
    """A process that puts the kernels' cubins into the disk cache, but those that another has begun."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with tempfile.TemporaryFile() as work:  # no pipe, which would hold us up until the process reads
        pickle.dump((str(cc.cache_folder()), target, [replace(k, kernel=None, table=None) for k in kernels], taken), work)
        work.seek(0)
        command = [sys.executable, "-m", "torchlet.compiler.compile_worker"]
        return subprocess.Popen(command, stdin=work, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


def compile_later(kernels: Sequence[TritonKernel], target: str) -> Callable[[], list[TritonKernel] | None]:
    """Begin to put the kernels' cubins into the disk cache by one process in the background.

    What is returned gives None until that ended, then the kernels that are in the cache: a compiler that crashes takes others with it.
    """
    missing = list({key: k for k in kernels if cc.read_entry(key := _key(k, target)) is None}.values())
    taken = tempfile.TemporaryDirectory(prefix="torchlet-compile-")
    worker = _worker(missing, target, taken.name) if missing else None
    if worker is not None:
        atexit.register(worker.kill)

    def compiled() -> list[TritonKernel] | None:
        if worker is not None and worker.poll() is None:
            return None
        taken.cleanup()
        return [k for k in kernels if cc.read_entry(_key(k, target))]

    return compiled


_FUNCTIONS: dict[tuple[int, str], Function] = {}


def load(kernel: TritonKernel, device: Device) -> Function:
    """The kernel on the device, loaded once. Raises CompileError, CudaError."""
    target = target_of(device)
    key = (device.index, _key(kernel, target))
    found = _FUNCTIONS.get(key)
    if found is None:
        found = _FUNCTIONS[key] = Function(device, *cubin_of(kernel, target))
        for watcher in ON_LOAD:
            watcher(found, kernel)
    return found


ON_LOAD: list[Callable[[Function, TritonKernel], None]] = []  # who wants to see each loaded kernel (the tests' stand-in for a device)


# ------------------------------------------------------------------------------------------------ execution


class _Segment:
    """Kernels between two extern calls. `sources[i]` picks the arguments of launch i from the call's values; `sites`: what is timed."""

    __slots__ = ("launches", "sources", "kernels", "forms", "bound", "graph", "names", "sites")

    def __init__(
        self, launches: list[Launch], sources: list[Callable[[Sequence[Any]], tuple[Any, ...]]], kernels: list[Kernel],
        forms: list[TritonKernel],
    ):  # fmt: skip
        self.launches, self.sources, self.kernels, self.forms = launches, sources, kernels, forms
        self.sites: dict[int, tune.Site] = {}
        self.bound: list[tuple[Any, ...] | None] = [None] * len(launches)
        self.graph: LaunchGraph | None = None
        self.names = [x.name for x in launches]


class CudaExecutable:
    """A plan that runs on a CUDA device.

    Addresses given to `run` are of the device, except those of inputs and outputs listed in `host_inputs` and `host_outputs`,
    which are of the host and are copied. Extern calls copy what they read to the host, run there and copy the result back.
    """

    extern_text = "is copied to the host and back"
    is_single = False  # `run` does more than one native call
    recipe = None
    counts = 0, 0

    def __init__(self, plan: Plan, place: Place, host_inputs: Sequence[int] = (), host_outputs: Sequence[int] = ()):
        self.plan, self.place, self.name = plan, place, plan.name
        self.kernels: list[Kernel] = plan.kernels
        self.externs: list[Node] = [s.node for s in plan.steps if isinstance(s, Extern)]
        self.stages: dict[str, Any] = {}
        self.device = cuda.device(place)
        self.host_inputs, self.host_outputs = tuple(host_inputs), tuple(host_outputs)
        self.calls = 0
        self._lock = threading.Lock()
        self._emitted = [_chosen(k, self.device) for k in plan.kernels]
        self._slots = list(dict.fromkeys(slot for s in plan.steps for slot in _slots(s) if slot.kind == "arena"))
        self._variants: dict[frozenset[int], list[_Segment | Extern]] = {}
        self._misaligned: frozenset[int] = frozenset()
        self._last: list[Any] | None = None
        self._staged: dict[tuple[str, int], cuda.Block] = {}
        self._position = self._positions()
        precompile(self._emitted, target_of(self.device))
        self._parts = self._variant(frozenset())
        self.contests: set[str] = set()  # the names of those that were decided here
        self.on_tuned: list[Callable[[], None]] = []
        self._turns = _tuned([p for p in self._parts if isinstance(p, _Segment)], self.device, self.contests, self.on_tuned)

    def _positions(self) -> dict[Slot, int]:
        """Where the values of a call hold each slot: inputs, outputs, places in the arena, then numbers."""
        graph = self.plan.graph
        n, m = len(graph.inputs), len(graph.outputs)
        found = {Slot("input", j): j for j in range(n)} | {Slot("output", k): n + k for k in range(m)}
        return found | {slot: n + m + i for i, slot in enumerate(self._slots)}

    def _variant(self, misaligned: frozenset[int]) -> list[_Segment | Extern]:
        """The steps for calls whose values at these positions are no multiples of 16: those kernels do not assume that they are."""
        found = self._variants.get(misaligned)
        if found is not None:
            return found
        graph = self.plan.graph
        first_scalar = len(graph.inputs) + len(graph.outputs) + len(self._slots)
        parts: list[_Segment | Extern] = []
        launches: list[Launch] = []
        sources: list[Any] = []
        kernels: list[Kernel] = []
        forms: list[TritonKernel] = []

        def flush() -> None:
            if launches:
                parts.append(_Segment(list(launches), list(sources), list(kernels), list(forms)))
                for entries in (launches, sources, kernels, forms):
                    entries.clear()  # type: ignore[attr-defined]

        emitted = iter(self._emitted)
        for step in self.plan.steps:
            if isinstance(step, Extern):
                flush()
                parts.append(step)
                continue
            kernel = next(emitted)
            where = [self._position[s] for s in step.slots] + [first_scalar + i for i in step.scalars]
            loose = {i for i, at in enumerate(where[: len(step.slots)]) if at in misaligned}
            if loose:
                if any(m.buffer in loose for m in kernel.maps.values()):
                    kernel = _emitted(step.kernel, target_of(self.device), maps=False)
                if kernel.table is not None:
                    kernel = replace(kernel, constexprs={**kernel.constexprs, "ALIGN": 1})
                else:
                    kernel = replace(kernel, attrs={k: v for k, v in kernel.attrs.items() if k[0] not in loose})
            function = load(kernel, self.device)
            if function.info.flaw and not loose:
                kernel = _fitting(step.kernel, target_of(self.device))
                function = load(kernel, self.device)
            launches.append(_launch_of(function, kernel, step.kernel))
            sources.append(_picker(where))
            kernels.append(step.kernel)
            forms.append(kernel)
        flush()
        self._variants[misaligned] = parts
        return parts

    def run(self, inputs: Sequence[int], outputs: Sequence[int], scalars: Sequence[Number] = ()) -> None:
        """Queue everything on the current stream; host outputs are complete when this returns.

        Raises CudaError, and what an extern call raises.
        """
        device = self.device
        with self._lock:
            device.activate()
            stream = device.stream.cuda_stream
            host = inputs
            if self.host_inputs or self.host_outputs:
                inputs, outputs = self._to_device(inputs, outputs, stream)
            base = device.arena(self.plan.arena_bytes) if self.plan.arena_bytes else 0
            values = [*inputs, *outputs, *[base + s.number for s in self._slots], *scalars]
            changed = values != self._last
            if changed:
                pointers = values[: len(values) - len(scalars)]
                misaligned = frozenset([i for i, p in enumerate(pointers) if int(p) & 15])
                if misaligned != self._misaligned:
                    self._misaligned, self._parts = misaligned, self._variant(misaligned)
                self._last = values
            self.calls += 1
            turn = next(self._turns, None)
            for part in self._parts:
                if isinstance(part, Extern):
                    self._call(part, values, scalars)
                else:
                    self._launch(part, values, changed, stream, turn)
            if self.host_outputs:
                self._to_host(stream)
            elif any(cuda.is_pinned(host[j]) for j in self.host_inputs):
                device.stream.synchronize()  # the caller may write to pinned memory as soon as this returns

    def _launch(self, part: _Segment, values: list[Any], changed: bool, stream: int, turn: int | None) -> None:
        stale: list[int] = []
        if changed or part.bound[0] is None:
            for i, (pick, launch) in enumerate(zip(part.sources, part.launches)):
                new = pick(values)
                if new != part.bound[i]:
                    launch.bind(new)
                    part.bound[i] = new
                    stale.append(i)
        graph = part.graph
        if graph is None and self.calls >= GRAPH_AFTER and len(part.launches) > 1 and config.cuda_graphs and not config.cuda_sync:
            graph = part.graph = LaunchGraph(self.device, part.launches)
            stale = []
        cuda.note(part.names)
        if graph is not None:
            for i in stale:
                graph.update(i)
        if turn is not None and part.sites:
            for i, launch in enumerate(part.launches):
                if site := part.sites.get(i):
                    site.run(turn, part.sources[i](values), stream)
                else:
                    launch(stream)
            COUNTS["launches"] += len(part.launches)
        elif graph is not None:
            graph(stream)
            COUNTS["graph_launches"] += 1
            COUNTS["graph_updates"] += len(stale)
        else:
            for launch in part.launches:
                launch(stream)
            COUNTS["launches"] += len(part.launches)

    def choices(self) -> list[tune.Choice]:
        """For each kernel that can be cut in several ways: how it is cut now, and why."""
        target = target_of(self.device)
        found: dict[str, tune.Choice] = {}
        for part in self._variants[frozenset()]:
            for kernel, form in zip(part.kernels, part.forms, strict=True) if isinstance(part, _Segment) else ():
                tiles = codegen.tiles(_nameless(kernel), target)
                if len(tiles) < 2 or form.tile is None:
                    continue
                formula = _emitted(kernel, target)
                name = _record(formula, self.device)
                known = tune.times(name) if tune.allowed() else []
                timed = "timed" if name in self.contests else "timed before"
                why = timed if known else "by the table" if _tabled(kernel, target) else "by formula"
                why += "" if known or why != "by formula" or form.tile == formula.tile else ", the first that fits the registers"
                candidates = known or [(winners.in_words(t), None) for t in tiles[: 1 + tune.ALTERNATES]]
                found[name] = tune.Choice(kernel.name, winners.in_words(form.tile), why, tuple(candidates))
        return list(found.values())

    # -------------------------------------------------------------------------------------------- host memory

    def _stage(self, kind: str, number: int, nbytes: int) -> int:
        block = self._staged.get((kind, number))
        if block is None:
            block = self._staged[kind, number] = self.device.allocate(nbytes, f"copy of a CPU tensor for {self.name}")
        return block.address

    def _to_device(self, inputs: Sequence[int], outputs: Sequence[int], stream: int) -> tuple[list[int], list[int]]:
        """Copies of the host's inputs, and room for the host's outputs."""
        graph = self.plan.graph
        found, room = list(inputs), list(outputs)
        for j in self.host_inputs:
            n = graph.inputs[j]
            nbytes = _span(n.spec.shape, n.attrs[1], n.spec.dtype.itemsize)
            found[j] = self._stage("input", j, nbytes)
            if nbytes:
                self.device.copy_in(found[j], inputs[j], nbytes, stream)
        for k in self.host_outputs:
            n = graph.outputs[k]
            room[k] = self._stage("output", k, n.spec.numel * n.spec.dtype.itemsize)
        self._host_addresses = [outputs[k] for k in self.host_outputs]
        return found, room

    def _to_host(self, stream: int) -> None:
        for k, address in zip(self.host_outputs, self._host_addresses, strict=True):
            n = self.plan.graph.outputs[k]
            self.device.copy_out(address, self._staged["output", k].address, n.spec.numel * n.spec.dtype.itemsize, stream)
        self.device.stream.synchronize()

    def _call(self, step: Extern, values: list[Any], scalars: Sequence[Number]) -> None:
        """An operator without loops: its inputs come to the host, its result goes back."""
        args: list[Any] = []
        for x, place in zip(step.node.inputs, step.inputs, strict=True):
            if place is None:
                args.append(scalars[x.attrs[0]] if isinstance(x, Node) else x)
            else:
                assert isinstance(x, Node)
                args.append(cuda.download(self._array(values[self._position[place[0]]], x, place[1])))
        node = step.node
        assert node.op is not None
        HOST_CALLS[node.op.name] += 1
        with np.errstate(all="ignore"):
            result = node.op.eager(*args, *node.attrs)
        target = self._array(values[self._position[step.output]], node, contiguous_strides(node.spec.shape))
        cuda.write(target, np.ascontiguousarray(result, node.spec.dtype.np).reshape(node.spec.shape))

    def _array(self, address: int, node: Node, strides: tuple[int, ...]) -> DeviceArray:
        d = node.spec.dtype
        return DeviceArray(node.spec.shape, d.np, tuple([s * d.itemsize for s in strides]), address, None, self.place)

    def __repr__(self) -> str:
        return f"<CudaExecutable {self.name} on {self.place}: {len(self.kernels)} kernels, {len(self.externs)} extern calls>"


def _launch_of(function: Function, form: TritonKernel, kernel: Kernel) -> Launch:
    about = (function, form.grid, form.types, kernel.name, kernel.origin)
    if form.table is None:
        return Launch(*about, maps=tuple(form.maps.values()), sizes=tuple(form.sizes.values()))
    return TableLaunch(*about, table=form.table, count=len(kernel.buffers))


def _tuned(
    parts: Sequence[_Segment], device: Device, decided: set[str], then: Sequence[Callable[[], None]]
) -> Iterator[int | None]:
    """For each call which form of the hot kernels it is to time, None: none. At the end the winners have their places.

    Then their names are in `decided`, and `then` is called. (It knows no executable, which could not be freed at once.)
    """
    for _ in range(tune.AFTER):
        yield None
    if not tune.allowed() or config.cuda_sync:
        return
    target = target_of(device)
    places: dict[str, list[tuple[_Segment, int]]] = {}
    for part in parts:
        for i, kernel in enumerate(part.kernels):
            places.setdefault(_record(_emitted(kernel, target), device), []).append((part, i))
    groups = {name: [part.kernels[i] for part, i in found] for name, found in places.items()}
    forms: dict[str, list[TritonKernel]] = {}
    for name in tune.hot(groups, target):
        if tune.recall(name) is None and _tabled(groups[name][0], target) is None:
            forms[name] = list(itertools.islice(codegen.emit_choices(_nameless(groups[name][0]), target), 1 + tune.ALTERNATES))
    forms = {name: found for name, found in forms.items() if len(found) > 1}
    compiled = compile_later([f for found in forms.values() for f in found], target)
    while (there := compiled()) is None:
        yield None
    contests: dict[str, tune.Contest] = {}
    for name, found in forms.items():
        now = places[name][0][0].launches[places[name][0][1]].function
        functions = {_key(f, target): (f, load(f, device)) for f in found if f in there}
        others = [f for f, function in functions.values() if not function.info.flaw and function is not now]
        first = [f for f, function in functions.values() if function is now]
        if others and first:
            kernel = groups[name][0]
            about = {"kernel": kernel.name, "device": device.properties.name, "target": target}
            about["problem"] = winners.problem_of(codegen.simplified(_nameless(kernel)))
            rivals = [*first, *others]
            tiles = [winners.in_words(f.tile) for f in rivals if f.tile is not None]
            contests[name] = tune.Contest(name, [_key(f, target) for f in rivals], tiles, about)
            for part, i in places[name]:
                more = [_launch_of(load(f, device), f, part.kernels[i]) for f in others]
                part.sites[i] = tune.Site(contests[name], [part.launches[i], *more], rivals)
    COUNTS["contests"] += len(contests)
    for _ in range(tune.ROUNDS if contests else 0):
        yield from range(1 + tune.ALTERNATES)
    while not all(c.is_over for c in contests.values()):
        yield None
    won = {name: c.winner() for name, c in contests.items()}
    for part in parts:
        changed = [i for i, site in part.sites.items() if won[site.contest.name]]
        for i in changed:
            number = won[part.sites[i].contest.name]
            part.launches[i], part.forms[i] = part.sites[i].launches[number], part.sites[i].forms[number]
            part.bound[i] = part.bound[0] = None  # they are looked at where the first is not bound
        if changed and part.graph is not None:  # it has ended: calls after it have
            part.graph.close()
            part.graph = None
        part.sites.clear()
    COUNTS["swaps"] += sum(w > 0 for w in won.values())
    decided.update(won)
    for call in then if won else ():
        call()


def _picker(where: list[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    if len(where) > 1:
        return operator.itemgetter(*where)
    return lambda values: tuple([values[i] for i in where])


def _slots(step: KernelLaunch | Extern) -> list[Slot]:
    return list(step.slots) if isinstance(step, KernelLaunch) else [step.output, *(p[0] for p in step.inputs if p is not None)]


def _span(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> int:
    if not numel(shape):
        return 0
    return (1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))) * itemsize

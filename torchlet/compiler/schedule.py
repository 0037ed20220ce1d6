"""Orders kernels and extern calls, decides which memory each value lies in, and writes the launch plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torchlet.compiler import chunk
from torchlet.compiler.fuse import Decisions, Fused, fuse
from torchlet.compiler.graph import Graph, Node
from torchlet.compiler.group import form_of, grouped
from torchlet.compiler.loops import Kernel, Phase, depends_on, phase_roots
from torchlet.compiler.lower import Group, Home, build_kernels, group_of, in_safe_order
from torchlet.compiler.native import is_extern
from torchlet.compiler.split import split
from torchlet.expr import walk
from torchlet.index import Index
from torchlet.op import OPS, ScatterAdd

__all__ = ["Extern", "KernelLaunch", "Lifetime", "Plan", "Slot", "schedule"]

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a buffer is: "input" or "output" by position, "arena" by byte offset."""

    kind: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind} {self.number}"


@dataclass(frozen=True, slots=True)
class KernelLaunch:
    """One kernel with the places of its buffers and the positions of its scalars."""

    kernel: Kernel
    slots: tuple[Slot, ...]
    scalars: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Extern:
    """One eager call. `inputs`: for each node its place and strides in elements; numbers and scalars stay in `node.inputs`."""

    node: Node
    inputs: tuple[tuple[Slot, tuple[int, ...]] | None, ...]
    output: Slot


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A buffer: its place, and the first and last step that touch it."""

    name: str
    nbytes: int
    slot: Slot
    first: int
    last: int
    reuses: str = ""


@dataclass(frozen=True)
class Plan:
    """What a call launches, in order."""

    name: str
    graph: Graph
    steps: tuple[KernelLaunch | Extern, ...]
    arena_bytes: int
    lifetimes: tuple[Lifetime, ...] = field(default=())

    @property
    def kernels(self) -> list[Kernel]:
        """The kernels in launch order."""
        return [s.kernel for s in self.steps if isinstance(s, KernelLaunch)]

    def __str__(self) -> str:
        lines = [f"{self.name}: {len(self.steps)} steps, arena {self.arena_bytes} bytes"]
        for i, s in enumerate(self.steps):
            if isinstance(s, KernelLaunch):
                bound = ", ".join(f"{b.name}: {b.role} at {slot}" for b, slot in zip(s.kernel.buffers, s.slots, strict=True))
                lines.append(f"{i:4} {s.kernel.name}({bound})")
            else:
                lines.append(f"{i:4} extern {s.node.op.name if s.node.op else s.node.kind} -> {s.output}")
        lines.append("buffers")
        total = sum(b.nbytes for b in self.lifetimes)
        for b in self.lifetimes:
            reuse = f", in the memory of {b.reuses}" if b.reuses else ""
            lines.append(f"     {b.name}: {b.nbytes} bytes, {b.slot}, steps {b.first} to {b.last}{reuse}")
        lines.append(f"     all temporaries {total} bytes, peak {self.arena_bytes}")
        return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------ outputs


def _with_copies(graph: Graph) -> tuple[Graph, list[int]]:
    """Every output a node of its own: inputs, numbers and repeated outputs are copied. Also which outputs are inputs kept as they are."""
    outputs: list[Node] = []
    seen: set[Node] = set()
    kept = []
    for k, (n, target) in enumerate(zip(graph.outputs, graph.targets, strict=True)):
        if target is not None and n is graph.inputs[target]:
            kept.append(k)
        elif n.kind != "op" or n in seen:
            name = graph.output_names[k] if graph.output_names else ""
            n = Node("op", OPS["clone"], (n,), (), n.spec.replace(weak=False), n.source, name)
        seen.add(n)
        outputs.append(n)
    return replace(graph, outputs=tuple(outputs)), kept


def in_place(kernel: Kernel, buffer: str, also: str | None = None) -> bool:
    """True when the kernel may overwrite `buffer` while it reads it: each point reads only the element that it writes, and not after that.

    `also`: another name of the same memory, which is the one that is written.
    """
    written = also or buffer
    stores = [(i, p, s) for i, p in enumerate(kernel.phases) for s in p.stores if s.buffer == written]
    if len(stores) != 1 or stores[0][2].mode != "set":
        return False
    at, phase, store = stores[0]
    nested = _in_nest(phase, store.index, store.value)
    for i, p in enumerate(kernel.phases):
        loads = {e for e in walk(*phase_roots(p)) if e.op == "load" and e.attr[0] == buffer}  # type: ignore[index]
        if any(e.attr[1] != store.index for e in loads) or (loads and i > at):  # type: ignore[index]
            return False
        if loads and i == at:
            position = p.stores.index(store)
            later = [s for s in p.stores[position + 1 :] if nested or not _in_nest(p, s.index, s.value)]
            later += [s for s in p.stores[:position] if nested and not _in_nest(p, s.index, s.value)]
            if any(e in loads for s in later for e in walk(s.value)):
                return False
    return True


def _in_nest(p: Phase, index: Index, value: object) -> bool:
    axes = frozenset(p.reduce)
    return bool(axes & set(index.axes())) or depends_on(value, axes)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ order


class _Scheduler:
    def __init__(self, graph: Graph, known: Decisions | None, gpu: bool):
        self.original, self.known, self.gpu = graph, known, gpu
        self.graph, self.kept = _with_copies(graph)
        made = [k for k in range(len(self.graph.outputs)) if k not in self.kept]
        named = tuple(self.graph.output_names[k] for k in made) if self.graph.output_names else ()
        simple = replace(self.graph, outputs=tuple(self.graph.outputs[k] for k in made), targets=(), output_names=named)
        self.fused: Fused = fuse(simple, known, gpu)
        self.groups = list(self.fused.groups)
        self.group = {n: g for g in self.groups for n in g.nodes}
        self.reads = dict(self.fused.reads)
        self.slots: dict[str, Slot] = {}
        self.trials = {g: built.kernels[built.main] for g, built in self.fused.built.items() if built.kernels}  # with the homes as they are
        self.before: dict[Group, set[Group]] = {g: set() for g in self.groups}
        for g in self.groups:
            for n in self.reads[g]:
                if n in self.group and self.group[n] is not g:
                    self.before[g].add(self.group[n])
        self._settle_outputs()

    def _settle_outputs(self) -> None:
        """Outputs lie in the caller's memory; those with a target in the memory of that input, if nobody needs its old value afterwards."""
        fused, names = self.fused, self.fused.names
        for j, n in enumerate(self.graph.inputs):
            self.slots[names.of(n)] = Slot("input", j)
        for k, (n, target) in enumerate(zip(self.graph.outputs, self.graph.targets, strict=True)):
            if k in self.kept:
                continue
            if target is None:
                self.slots[fused.homes[n].buffer] = Slot("output", k)
            elif not self._write_into(n, self.graph.inputs[target]):
                copy = Node("op", OPS["clone"], (n,), (), n.spec, n.source)
                g = group_of(copy)
                self.groups.append(g)
                self.group[copy] = g
                self.reads[g] = [n]
                self.before[g] = {self.group[n]}
                fused.order[copy] = len(fused.order)
                done = self._write_into(copy, self.graph.inputs[target])
                assert done, "a copy reads only what was computed"

    def _write_into(self, n: Node, x: Node) -> bool:
        g, fused = self.group[n], self.fused
        if n.op is None or is_extern(n) or x.spec.dtype is not n.spec.dtype or x.spec.shape != n.spec.shape:
            return False
        strides = x.attrs[1]
        if any(s == 0 and k > 1 for s, k in zip(strides, x.spec.shape, strict=True)):
            return False
        home, stores = fused.homes.get(n), fused.stores.get(n)
        fused.homes[n] = Home.strided(fused.names.of(x), x.spec.shape, strides)
        fused.stores[n] = (fused.homes[n],)
        others = [r for r in self.groups if r is not g and x in self.reads[r]]
        ok = x not in self.reads[g] or not isinstance(n.op.lower, ScatterAdd)
        trial = self._trial(g, home, fused.homes[n])
        ok = ok and (x not in self.reads[g] or in_place(trial, fused.homes[n].buffer))
        if ok and not any(self._is_before(g, r) for r in others):
            self.before[g].update(others)
            self.trials[g] = trial
            return True
        if home is not None and stores is not None:
            fused.homes[n], fused.stores[n] = home, stores
        return False

    def _trial(self, g: Group, before: Home | None, home: Home) -> Kernel:
        """The kernel of a group once what lay in `before` lies in `home`."""
        kernel = self.trials.get(g)
        if kernel is None or before is None or before.strides != home.strides:
            built = self.fused.build(g)
            return built.kernels[built.main]
        phases = []
        for p in kernel.phases:
            stores = tuple(replace(s, buffer=home.buffer) if s.buffer == before.buffer else s for s in p.stores)
            phases.append(replace(p, stores=in_safe_order(stores)))
        return replace(kernel, phases=tuple(phases))

    def _is_before(self, a: Group, b: Group) -> bool:
        """True when b must run after a."""
        seen, todo = set(), [b]
        while todo:
            g = todo.pop()
            if g is a:
                return True
            if g not in seen:
                seen.add(g)
                todo += self.before[g]
        return False

    def order(self) -> list[Group]:
        """Makers before users, and among those that are ready the one that was written first, or all that read a large value."""
        rank = {g: max(self.fused.order[n] for n in g.nodes) for g in self.groups}
        after: dict[Group, list[Group]] = {g: [] for g in self.groups}
        waiting = {g: len(self.before[g]) for g in self.groups}
        for g, makers in self.before.items():
            for m in makers:
                after[m].append(g)
        ready = {g for g in self.groups if not waiting[g]}
        readers = self._readers()
        large = [n for n in readers if chunk.is_large(n)]
        now: set[Group] = set()  # what runs before all else
        out: list[Group] = []
        done: set[Group] = set()
        while ready:
            g = min(ready & now or ready, key=rank.__getitem__)
            ready.remove(g)
            now.discard(g)
            done.add(g)
            out.append(g)
            for n in self.reads[g]:
                if n in readers:
                    readers[n].discard(g)
            for h in after[g]:
                waiting[h] -= 1
                if not waiting[h]:
                    ready.add(h)
            now = now or self._freeing(large, readers, done)
        assert len(out) == len(self.groups), "the kernels wait for each other"
        return out

    def _readers(self) -> dict[Node, set[Group]]:
        """Who reads each value that takes a place in the arena."""
        found: dict[Node, set[Group]] = {}
        for g in self.groups:
            for n in self.reads[g]:
                if n in self.group and self.fused.homes[n].buffer not in self.slots:
                    found.setdefault(n, set()).add(g)
        return found

    def _freeing(self, large: list[Node], readers: Mapping[Node, set[Group]], done: set[Group]) -> set[Group]:
        """What could run now, after which a large value is not needed any more, nor more memory than before."""
        for n in large:
            left = readers[n]
            if not left or self.group[n] not in done:
                continue
            wanted, stack = set[Group](), list(left)
            while stack:
                g = stack.pop()
                if g not in wanted and g not in done:
                    wanted.add(g)
                    stack += self.before[g]
            freed = sum(_nbytes(x) for x, others in readers.items() if others and others <= wanted and self.group[x] in done)
            if sum(_nbytes(x) for g in wanted for x in g.nodes if x in readers) <= freed + chunk.LARGE // 64:
                return wanted
        return set()

    # -------------------------------------------------------------------------------------------- memory

    def plan(self, name: str) -> Plan:
        """The whole."""
        drafts: list[tuple[Kernel | Node, list[str]]] = []  # what runs, and the buffers it touches
        nbytes: dict[str, int] = {}
        homes = self.fused.homes
        for g in self.order():
            if is_extern(g.nodes[0]):
                n = g.nodes[0]
                drafts.append((n, [*(homes[x].buffer for x in n.args() if x in homes), homes[n].buffer]))
                nbytes[homes[n].buffer] = _nbytes(n)
                continue
            built = build_kernels(g, homes, self.fused.stores, self.fused.names, self.fused.order).kernels
            for kernel in [part for whole in built for part in (split(whole) if self.gpu else [whole])]:
                nbytes.update((b.name, b.size * b.dtype.itemsize) for b in kernel.buffers if b.role != "input")
                if kernel.body is not None or (kernel.points and any(p.stores for p in kernel.phases)):
                    drafts.append((kernel, [b.name for b in kernel.buffers]))
        drafts, lifetimes, arena = self._allocate(drafts, nbytes)
        steps: list[KernelLaunch | Extern] = []
        scalars = {self.fused.names.of(n): i for i, n in enumerate(self.graph.scalars)}
        for what, _ in drafts:
            if isinstance(what, Kernel):
                slots = tuple(self.slots[b.name] for b in what.buffers)
                steps.append(KernelLaunch(what, slots, tuple(scalars[s.name] for s in what.scalars)))
            else:
                placed = [homes.get(x) if isinstance(x, Node) else None for x in what.inputs]
                inputs = tuple(None if h is None else (self.slots[h.buffer], h.strides) for h in placed)
                steps.append(Extern(what, inputs, self.slots[homes[what].buffer]))
        if self.gpu:
            steps, lifetimes = _in_groups(steps, lifetimes)
        return Plan(name, self.original, tuple(steps), arena, tuple(lifetimes))

    def _allocate(
        self, drafts: list[tuple[Kernel | Node, list[str]]], nbytes: Mapping[str, int]
    ) -> tuple[list[tuple[Kernel | Node, list[str]]], list[Lifetime], int]:
        """Places in the arena by lifetime, best fit; a value may take the place of one that its own kernel reads for the last time."""
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        for i, (_, touched) in enumerate(drafts):
            for b in touched:
                if b not in self.slots:
                    first.setdefault(b, i)
                    last[b] = i
        arena = _Arena()
        at: dict[str, int] = {}
        reuses: dict[str, str] = {}
        out = []
        for i, (what, touched) in enumerate(drafts):
            new = [b for b in dict.fromkeys(touched) if first.get(b) == i]
            dying = [b for b in dict.fromkeys(touched) if last.get(b) == i and first[b] < i]
            for b in new:
                fitting = [d for d in dying if nbytes[d] == nbytes[b] and (self.known is None or (b, d) in self.known.reuses)]
                old = next((d for d in fitting if isinstance(what, Kernel) and _may_replace(what, d, b)), None)
                if old is not None and isinstance(what, Kernel):
                    what = _renamed(what, b, old)
                    dying.remove(old)
                    at[b], reuses[b] = at[old], old
                else:
                    at[b] = arena.take(nbytes[b])
            for b in dying + [b for b in new if last[b] == i]:
                arena.give(at[b], nbytes[b])
            out.append((what, touched))
        self.slots.update({b: Slot("arena", offset) for b, offset in at.items()})
        return out, [Lifetime(b, nbytes[b], self.slots[b], first[b], last[b], reuses.get(b, "")) for b in at], arena.size


def _in_groups(steps: list[KernelLaunch | Extern], lifetimes: list[Lifetime]) -> tuple[list[KernelLaunch | Extern], list[Lifetime]]:
    """Elementwise launches of one form that stand side by side and do not touch what others write, as one launch for each form."""
    out: list[KernelLaunch | Extern] = []
    moved: dict[int, int] = {}
    waiting: dict[Kernel, list[int]] = {}
    touched: set[Slot] = set()
    written: set[Slot] = set()

    def close() -> None:
        for form, members in waiting.items():
            launches = [s for i in members if isinstance(s := steps[i], KernelLaunch)]
            moved.update(dict.fromkeys(members, len(out)))
            if len(launches) <= 1:
                out.extend(steps[i] for i in members)
            else:
                kernel = grouped([s.kernel for s in launches], form)
                out.append(KernelLaunch(kernel, tuple(x for s in launches for x in s.slots), tuple(x for s in launches for x in s.scalars)))
        waiting.clear()
        touched.clear()
        written.clear()

    for i, step in enumerate(steps):
        if not isinstance(step, KernelLaunch):
            close()
            moved[i] = len(out)
            out.append(step)
            continue
        writes = {slot for b, slot in zip(step.kernel.buffers, step.slots, strict=True) if b.role != "input"}
        if writes & touched or written & set(step.slots) or any(w.kind == "arena" for w in writes):
            close()
        waiting.setdefault(form_of(step.kernel) or step.kernel, []).append(i)
        touched |= set(step.slots)
        written |= writes
        if any(w.kind == "arena" for w in writes):  # places in the arena overlap in more ways than slots tell
            close()
    close()
    return out, [replace(b, first=moved[b.first], last=moved[b.last]) for b in lifetimes]


def _may_replace(kernel: Kernel, old: str, new: str) -> bool:
    kinds = {b.name: b.dtype for b in kernel.buffers}
    return kinds[old] is kinds[new] and in_place(kernel, old, also=new)


def _renamed(kernel: Kernel, new: str, old: str) -> Kernel:
    """The kernel writing `new` in the memory of `old`, which it reads."""
    phases = tuple(replace(p, stores=tuple(replace(s, buffer=old) if s.buffer == new else s for s in p.stores)) for p in kernel.phases)
    buffers = tuple(replace(b, role="inout") if b.name == old else b for b in kernel.buffers if b.name != new)
    return replace(kernel, phases=phases, buffers=buffers)


class _Arena:
    """Offsets in growing memory with a list of free ranges."""

    def __init__(self) -> None:
        self.size = 0
        self.free: list[tuple[int, int]] = []  # (offset, bytes), by offset

    def take(self, nbytes: int) -> int:
        n = _aligned(nbytes)
        fitting = [(size, offset) for offset, size in self.free if size >= n]
        if fitting:
            size, offset = min(fitting)
            self.free.remove((offset, size))
            if size > n:
                self._insert(offset + n, size - n)
            return offset
        if self.free and sum(self.free[-1]) == self.size:  # the last range is free: let it grow
            offset, _ = self.free.pop()
        else:
            offset = self.size
        self.size = offset + n
        return offset

    def give(self, offset: int, nbytes: int) -> None:
        self._insert(offset, _aligned(nbytes))

    def _insert(self, offset: int, size: int) -> None:
        ranges: list[tuple[int, int]] = []
        for o, s in sorted([*self.free, (offset, size)]):
            if ranges and sum(ranges[-1]) == o:
                ranges[-1] = (ranges[-1][0], ranges[-1][1] + s)
            else:
                ranges.append((o, s))
        self.free = ranges


def _nbytes(n: Node) -> int:
    return n.spec.numel * n.spec.dtype.itemsize


def _aligned(nbytes: int) -> int:
    return max(-(-nbytes // ALIGNMENT), 1) * ALIGNMENT


def schedule(graph: Graph, name: str, known: Decisions | None = None, gpu: bool = False) -> tuple[Plan, Fused]:
    """The launch plan of a graph that `decompose` and `simplify` have been through, and how it was fused.

    `known`: what was decided for the same graph at other sizes, which is done here too wherever it can be.
    """
    scheduler = _Scheduler(graph, known, gpu)
    plan, fused = scheduler.plan(name), scheduler.fused
    assert fused.decisions is not None
    fused.built.clear()  # what is not needed any more
    fused.decisions = replace(fused.decisions, reuses=frozenset((b.name, b.reuses) for b in plan.lifetimes if b.reuses))
    return plan, fused



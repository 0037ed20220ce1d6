"""A compiled segment: from a path to a Graph, from arrays to arrays, and its place on the tape for a backward pass outside."""

from __future__ import annotations

import struct
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import numpy as np

from torchlet import autograd, dtypes, storage
from torchlet.autograd import Saved, edge_of, execute, execute_inplace, force, freed, walk_back
from torchlet.compiler.claim import claims
from torchlet.compiler.differentiate import differentiate, drop_gradients
from torchlet.compiler.execute import Executable, compile_graph
from torchlet.compiler.graph import Builder, Graph, Node, Number
from torchlet.compiler.host import bind_launch, c_launch, emit_launch
from torchlet.compiler.partition import partition
from torchlet.compiler.recognise import recognise
from torchlet.compiler.sizes import Sizes, resized
from torchlet.compiler.tape import keeping, kept_for, saves_overwritten, used_up
from torchlet.compiler.trie import base_slot, chain_of
from torchlet.errors import UnsupportedError
from torchlet.op import OPS, STATE, Composite, apply
from torchlet.ops.attention import on_gpu
from torchlet.runtime.cuda import CudaError
from torchlet.spec import CPU, contiguous_strides, device, memory_order
from torchlet.tensor import Meta, Tensor, address, new, share, wrap
from torchlet.tensor import Node as TapeNode
from torchlet.window import same_bits, twin_of

_refcount = sys.getrefcount


# ------------------------------------------------------------------------------------------------ path -> graph


@dataclass
class Segment:
    """A path as a graph, and which slot, number and step each input, scalar and output of the graph is."""

    graph: Graph
    inputs: list[int]  # positions in path.slots
    scalars: list[int]  # positions among the call's numbers
    outputs: list[Any]  # the step whose value output k is, or None for a write to an outside tensor
    orders: list[tuple[int, ...] | None]  # dimensions of output k from the outermost to the innermost in memory, where not row-major
    written: list[int]  # positions in path.slots of outside tensors that are overwritten
    behind: str = ""  # where a tensor that autograd follows is overwritten behind its back
    alive_nodes: dict[Any, Node] = field(default_factory=dict)  # the value of every step that is visible afterwards
    input_nodes: dict[int, Node] = field(default_factory=dict)


def segment_of(path: Any, alive: Sequence[Any], name: str, slot_name: Any) -> Segment:
    """The graph of a path. Raises UnsupportedError with the reason where a path is not a pure function with whole-tensor writes."""
    b = Builder()
    values: dict[Any, Node] = {}
    position = {h: i for i, h in enumerate(path.slots)}
    input_nodes: dict[int, Node] = {}
    scalar_nodes: dict[int, Node] = {}
    types: dict[int, type] = {}
    for s in path.steps:
        k = s.scalars_before
        for slot, meta in s.checks:
            if slot is None and isinstance(meta, type):
                types[k] = meta
                k += 1

    def scalar(index: int) -> Node:
        found = scalar_nodes.get(index)
        if found is None:
            t = types[index]
            found = scalar_nodes[index] = b.scalar(
                dtypes.bool_ if issubclass(t, bool) else dtypes.int64 if issubclass(t, int) else dtypes.float64
            )
        return found

    def outside(slot: Any) -> Node:
        i = position[slot]
        found = input_nodes.get(i)
        if found is None:
            m = slot.t._meta
            found = input_nodes[i] = b.input(m.spec, m.strides, slot_name(slot.t))
        return found

    def read(slot: Any) -> Node:
        if slot in values:
            return values[slot]
        if slot in position:
            return outside(slot)
        if hasattr(slot, "index"):
            return scalar(slot.index)
        if slot.kind == "op" and slot.op.is_view:  # always of the current value of its base: a view sees later writes
            return stop(slot, b.node(slot.op, (read(slot.checks[0][0]),), slot.attrs, slot.source))
        raise UnsupportedError(f"a tensor of {slot.source} is read that this segment did not make")

    turned: set[Any] = set()  # what requires grad although its step does not say so

    def requires(slot: Any) -> bool:
        if hasattr(slot, "index"):
            return False
        m = slot.meta if hasattr(slot, "meta") else slot.t._meta
        return slot in turned or (m is not None and m.requires_grad)

    def stop(step: Any, node: Node) -> Node:
        """No gradient flows through what was computed while none was recorded."""
        follows = step.recorded if step.kind == "inplace" else requires(step) or step.op.name == "detach"
        return node if follows or not any(s is not None and requires(s) for s, _ in step.checks) else b.node(OPS["detach"], (node,), ())

    def operands(step: Any, checks: Sequence[Any]) -> list[Node | Number]:
        out: list[Node | Number] = []
        k = step.scalars_before
        for slot, meta in checks:
            if slot is not None:
                out.append(read(slot))
            elif isinstance(meta, type):
                out.append(scalar(k))
                k += 1
            else:
                out.append(meta.value)
        return out

    def write(slot: Any, node: Node, source: str) -> None:
        m = slot.meta if hasattr(slot, "meta") else slot.t._meta
        if node.spec.dtype is not m.dtype:
            node = b.node(OPS["cast"], (node,), (m.dtype,))
        if slot in position:
            outside(slot)
        base = base_slot(slot)
        values[base] = node if base is slot else b.node(OPS["view_scatter"], (read(base), node), (chain_of(slot),), source)

    behind = ""

    for s in path.steps:
        if s.kind == "op" and not s.op.is_view:
            b.source = s.source
            values[s] = stop(s, b.node(s.op, tuple(operands(s, s.checks)), s.attrs, s.source))
        elif s.kind == "inplace":
            write(s.checks[0][0], stop(s, b.node(s.op, tuple(operands(s, s.checks[1:])), s.attrs, s.source)), s.source)
            turned.update(slot for slot, _ in s.turns)
            if not s.recorded and requires(base_slot(s.checks[0][0])):
                behind = behind or s.source
        elif s.kind == "update":
            attrs, lengths = s.attrs
            args = operands(s, s.checks)
            tensors = [b.tensor(a) if isinstance(a, Node) else a for a in args]
            lists, at = [], 0
            for n in lengths:
                lists.append(tensors[at : at + n])
                at += n
            b.source = s.source
            with b:
                results = s.op.lower.body(*lists, *tensors[at:], *attrs)
            new_values = [b.unwrap(t) for group in results for t in group]
            for slot, node in zip(s.writes, new_values, strict=True):
                assert isinstance(node, Node)
                write(slot, node, s.source)

    outputs: list[Node] = []
    targets: list[int | None] = []
    of_step: list[Any] = []
    orders: list[tuple[int, ...] | None] = []
    names: list[str] = []
    alive_nodes: dict[Any, Node] = {}
    for s in alive:
        alive_nodes[s] = read(s)
        base = base_slot(s)
        if base not in position and base not in of_step:
            m = base.meta  # type: ignore[attr-defined]
            order = None if m.contiguous else memory_order(m.shape, m.strides)
            # the graph computes such an output with its dimensions in memory order
            outputs.append(read(base) if order is None else b.node(OPS["permute"], (read(base),), (order,)))
            targets.append(None)
            orders.append(order)
            of_step.append(base)
            names.append("" if base.t is None else slot_name(base.t))
    written = []
    inputs_order = list(input_nodes)
    for slot in path.written_outside:
        i = position[slot]
        written.append(i)
        node = values[slot]
        if node is not input_nodes[i]:
            outputs.append(node)
            targets.append(inputs_order.index(i))
            orders.append(None)
            of_step.append(None)
            names.append(input_nodes[i].name)
    graph = Graph(name, tuple(input_nodes.values()), tuple(scalar_nodes.values()), tuple(outputs), tuple(targets), tuple(names))
    return Segment(graph, inputs_order, list(scalar_nodes), of_step, orders, written, behind, alive_nodes, input_nodes)


# ------------------------------------------------------------------------------------------------ running


class _Pool:
    """Output arrays that are used again as soon as nobody else holds them."""

    __slots__ = ("spec", "entries")

    def __init__(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any], place: device):
        self.spec = (shape, strides, dtype, place)
        self.entries: list[tuple[Any, int]] = []
        self.take()

    def take(self) -> tuple[Any, int]:
        """(array, address). The launch itself looks at the first entry before it calls this."""
        entries = self.entries
        for k, entry in enumerate(entries):
            if _refcount(entry[0]) == _UNHELD:
                entries[0], entries[k] = entry, entries[0]  # the one held longest is looked at first next time
                return entry
        array = storage.empty_strided(*self.spec)
        entry = (array, storage.address(array))
        if len(entries) < 3:
            entries.insert(0, entry)
        return entry


def _unheld() -> int:
    entry = (np.empty(1), 0)
    return _refcount(entry[0])


_UNHELD = _unheld()


class Program:
    """A segment compiled for one set of visible outputs. `stepwise` holds the reason where it is run step by step instead.

    `sizes` is what its function knows of sizes that vary; `varying`: for slots that hold data, the dimensions expected to vary.
    """

    def __init__(
        self, path: Any, alive: Sequence[Any], name: str, slot_name: Any, sizes: Sizes | None = None,
        varying: Mapping[int, Sequence[int]] | None = None,
    ):
        self.path, self.sizes, self.varying = path, sizes, varying or {}
        self.stepwise = ""
        self.executable: Executable | None = None
        self.backward: Backward | None = None
        try:
            self.segment = segment_of(path, alive, name, slot_name)
            self._prepare(alive)
        except UnsupportedError as error:
            self.stepwise = str(error)
        except CudaError:  # what the device refuses is no fault of the compiler's
            raise
        except RecursionError:
            self.stepwise = "its expressions are nested too deeply"
        except Exception as error:  # what runs plainly has to run here: a fault of the compiler costs time, not the result
            self.stepwise = f"the compiler failed with {type(error).__name__}: {error}"
            warnings.warn(f"compile: {name} runs step by step, because {self.stepwise}", RuntimeWarning, stacklevel=2)

    def _prepare(self, alive: Sequence[Any]) -> None:
        seg = self.segment
        graph = seg.graph
        self.place, self.host_inputs, self.host_outputs = self._places()
        position = {s: k for k, s in enumerate(seg.outputs) if s is not None}
        self.fresh = [k for k, t in enumerate(graph.targets) if t is None]
        followed = [s for s in alive if s.t._meta.requires_grad]
        spent = used_up(self.path)
        on_tape = [s for s in followed if s not in spent]
        self.released = {s: _released(spent[s]) for s in followed if s in spent}
        if on_tape:
            if any(self.path.slots[i].t._meta.requires_grad for i in seg.written):
                raise UnsupportedError("a tensor that requires grad is overwritten in a segment whose outputs still need a backward pass")
            if seg.behind:
                raise UnsupportedError(f"{seg.behind}: a tensor that autograd follows is overwritten while nothing is recorded")
            fault = saves_overwritten(self.path)
            if fault:  # the tape of eager execution raises it where it is used
                raise UnsupportedError(fault)
            self.backward = Backward(self, on_tape)
            graph = self.backward.forward
        self.graph = graph
        half = self.backward
        self.executable = compile_graph(
            graph, graph.name, self.place, self.host_inputs, self.host_outputs, self.sizes, self._marks,
            lambda: self._example(graph) if half is None else half.examples[0],
        )
        places = [CPU if k in self.host_outputs else self.place for k in range(len(graph.outputs))]
        # what a backward half keeps comes after the outputs of the segment
        layouts = [None if s is None or order is None else s.meta for s, order in zip(seg.outputs, seg.orders, strict=True)]
        layouts += [None] * (len(graph.outputs) - len(layouts))
        self.pools = [
            _Pool((m or n.spec).shape, m.strides if m else contiguous_strides(n.spec.shape), n.spec.dtype.np, p) if t is None else None
            for n, m, t, p in zip(graph.outputs, layouts, graph.targets, places, strict=True)
        ]
        # alive steps: either output k of the graph, or a view to be made of its base afterwards
        self.direct = [(position[s], s) for s in alive if s in position]
        self.views = [s for s in alive if s not in position]
        self.tape_steps = on_tape
        self.input_slots = [self.path.slots[i] for i in seg.inputs]
        gone = self.released
        self.is_plain = not (self.views or on_tape or gone.keys() - {s for _, s in self.direct})
        self.count = count = Counter(w for s in self.path.steps for w in s.writes)
        written = [(f"i{seg.inputs.index(i)}", count[self.path.slots[i]]) for i in seg.written]
        written += [(f"d{j}", count[s]) for j, (_, s) in enumerate(self.direct) if s in count]
        self.launch_source = emit_launch(
            self.executable, len(seg.inputs), [p is not None for p in self.pools], seg.scalars, written,
            [(k, s in gone) for k, s in self.direct] if self.is_plain else [], returns=not self.is_plain,
        )
        names = {f"i{j}": s for j, s in enumerate(self.input_slots)} | {f"d{j}": s for j, (_, s) in enumerate(self.direct)}
        for k, p in enumerate(self.pools):
            if p is not None:
                names |= {f"n{k}": p.entries, f"take{k}": p.take}
        names |= dict(address=address, refcount=_refcount, unheld=_UNHELD, nothing=(None, 0))
        names |= {f"u{j}": gone[s] for j, (_, s) in enumerate(self.direct) if s in gone}
        bound = [(s, k, gone.get(s)) for k, s in self.direct] if self.is_plain else []
        self.launch = c_launch(
            self.executable, self.input_slots, self.pools, seg.scalars, written, bound, not self.is_plain, names
        ) or bind_launch(self.launch_source, self.executable, names)

    def _places(self) -> tuple[device, list[int], list[int]]:
        """(where the segment runs, its graph's inputs that are on the host all the same, its outputs that are)."""
        slots, seg = self.path.slots, self.segment
        inputs = [slots[i].t._meta.device for i in seg.inputs]
        ends = zip(seg.outputs, seg.graph.targets, strict=True)
        outputs = [s.meta.device if t is None else slots[seg.inputs[t]].t._meta.device for s, t in ends]
        place = next((d for d in (*inputs, *outputs) if d is not CPU), CPU)
        if place is CPU:
            return CPU, [], []
        if any(d not in (CPU, place) for d in (*inputs, *outputs)):
            raise UnsupportedError("tensors of several devices in one segment")
        if any(slots[i].t._meta.device is CPU for i in seg.written):
            raise UnsupportedError("a CPU tensor is overwritten in a segment that runs on a device")
        return place, [i for i, d in enumerate(inputs) if d is CPU], [k for k, d in enumerate(outputs) if d is CPU]

    @property
    def _marks(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        return tuple(sorted((i, tuple(dims)) for i, dims in self.varying.items()))

    def _example(self, graph: Graph) -> Graph | None:
        """The segment's graph (or one with the same inputs) at other sizes, where sizes are expected to vary."""
        varying = {j: self.varying[i] for j, i in enumerate(self.segment.inputs) if i in self.varying}
        return resized(graph, varying) if varying else None

    def run(self, slots: Sequence[Any], scalars: Sequence[Any]) -> None:
        """Launch; bind the visible placeholders to their arrays."""
        if self.is_plain:
            self.launch(scalars)
            return
        on_tape = [s.t for s in self.tape_steps]
        watched = [s.t for s in self.backward.watched] if self.backward is not None else ()
        inputs = [s.t for s in self.input_slots]
        released = [(s.t, node) for s, node in self.released.items()]
        before = {} if self.backward is None else {k: wrap(storage.copy(force(inputs[k]))) for k in self.backward.old}
        entries = self.launch(scalars)
        if self.views:
            self._make_views(entries)
        for k, s in self.direct:
            t = s.t
            t._np, t._ptr = entries[k]
            s.t = None  # a visible tensor is not a placeholder any more
        if self.backward is not None:
            self.backward.attach(on_tape, inputs, entries, [scalars[i] for i in self.segment.scalars], watched, before)
        for t, node in released:
            t._node, t._out = node, 0

    def left_no_trace(self, error: Exception) -> bool:
        """True if a run that raised `error` has overwritten nothing."""
        if isinstance(error, CudaError):  # running it again would not help, and the text names the kernels
            return False
        if not self.path.written_outside:
            return True
        assert self.executable is not None
        # a number that 64 bits do not hold is refused before the first kernel
        return isinstance(error, struct.error) and not self.executable.externs

    def _make_views(self, entries: Sequence[Any]) -> None:
        """Views share the memory of their base, as they do in eager."""
        made: dict[Any, Tensor] = {}
        visible = dict.fromkeys(s for _, s in self.direct)
        for k, s in enumerate(self.segment.outputs):
            if s is not None:
                made[s] = t = s.t if s in visible else wrap(entries[k][0])
                t._np, t._ptr = entries[k]
                if s in self.count and s not in visible:
                    t._store.version += self.count[s]
        pending = set(self.views)

        def tensor_of(slot: Any) -> Tensor:
            if slot in made:
                return made[slot]
            if getattr(slot, "kind", "") != "op":
                return slot.t  # type: ignore[no-any-return]
            source = tensor_of(slot.checks[0][0])
            assert source._np is not None
            t = slot.t if slot in pending else new(Tensor)
            t._np, t._store, t._ptr = autograd.compute(slot.op, [source._np], slot.attrs), source._store, 0
            if slot not in pending:
                t._meta = slot.meta
            share(source)
            if slot.grad and slot.op.vjp:
                t._base = autograd._view_of(source, slot.op, slot.attrs)
            made[slot] = t
            return t

        for s in self.views:
            tensor_of(s)
        for s in self.views:
            s.t = None


# ------------------------------------------------------------------------------------------------ on the tape


class Backward:
    """The backward half of a segment whose outputs are differentiated outside of it."""

    def __init__(self, program: Program, on_tape: Sequence[Any]):
        seg = program.segment
        graph = seg.graph
        self.program = program
        self.of = list(on_tape)
        nodes = [seg.alive_nodes[s] for s in on_tape]
        distinct = list(dict.fromkeys(nodes))
        self.output_of = [distinct.index(n) for n in nodes]
        slots = program.path.slots
        self.wrt = [k for k, i in enumerate(seg.inputs) if slots[i].t._meta.requires_grad]
        self.reaches, self.group_of = _groups(graph, distinct, [graph.inputs[k] for k in self.wrt])
        joint, grads_in, self.has_grad = _joint(graph, distinct, [graph.inputs[k] for k in self.wrt], program.place)
        sizes = program.sizes if program.place is CPU else None
        known = None if sizes is None else sizes.cut(joint)
        needed = kept_for(program.path, on_tape)
        barred = self._guard(needed, joint.inputs)
        self.forward, self.graph, kept = partition(joint, grads_in, len(graph.outputs), known, barred)
        if sizes is not None and known is None:
            sizes.note_cut(joint, kept)
        self.distinct = distinct
        self.joint, self.kept_nodes = joint, kept
        joint_inputs = list(joint.inputs)
        computed = len(graph.outputs)
        self.kept: list[tuple[bool, int]] = []  # (is an input, its number) or (False, output number of the forward graph)
        for n in kept:
            if n.kind == "input":
                self.kept.append((True, joint_inputs.index(n)))
            else:
                self.kept.append((False, computed))
                computed += 1
        self.seed_metas = [Meta.get(n.spec.shape, n.spec.dtype, device=on_tape[nodes.index(n)].meta.device) for n in distinct]
        self.executables: dict[tuple[bool, ...], Executable] = {}  # by which gradients of the outputs are given
        self._read: dict[tuple[bool, ...], frozenset[int]] = {}
        self.on_compiled: Callable[[], None] | None = None  # who wants to see the executable once it is there
        self.written = {k for k, i in enumerate(seg.inputs) if i in seg.written}
        # whoever computes the segment again finds what it has overwritten: the new values, and of these inputs copies of the old ones
        self.new = {n: k for n, k in zip(graph.outputs, graph.targets, strict=True) if k is not None}
        again = self.again()
        self.old = [k for k in self.written if graph.inputs[k] in again]
        kept_by = keeping(program.path)
        self.keeping = {k: kept_by[s] for s, k in zip(on_tape, self.output_of, strict=True) if s in kept_by}

    def _guard(self, needed: Sequence[dict[Any, Any]], inputs: Sequence[Node]) -> list[Node]:
        """Note what must not be overwritten before the backward pass, and who says so; gives the inputs that may be."""
        program = self.program
        input_of = {program.path.slots[i]: k for k, i in enumerate(program.segment.inputs)}
        visible = {base_slot(s): s for s in program.segment.alive_nodes}
        every = {x for found in needed for x in found}
        self.watched = [visible[x] for x in every if x in visible]
        place = {base_slot(s): k for k, s in enumerate(self.watched)}
        # for output k, nearest first: (is an input, its number) or (False, place in `watched`), and the operator that needs it
        self.guards: list[list[tuple[bool, int, Any]]] = [[] for _ in set(self.output_of)]
        for k, found in zip(self.output_of, needed, strict=True):
            for x, step in sorted(found.items(), key=lambda item: -item[1].position):
                if x in input_of or x in place:
                    self.guards[k].append((x in input_of, input_of[x] if x in input_of else place[x], step.op))
        written = set(program.segment.written)
        return [
            inputs[k] for slot, k in input_of.items()
            if slot not in every and (program.segment.inputs[k] in written or not slot.t._meta.requires_grad)
        ]

    def again(self) -> list[Node]:
        """The nodes, in order, that lead to the outputs from the inputs and from what the segment has written into inputs."""
        order: list[Node] = []
        seen: set[Node] = set()
        stack = [(n, False) for n in reversed(self.distinct)]
        while stack:
            n, done = stack.pop()
            if done:
                order.append(n)
            elif n not in seen:
                seen.add(n)
                stack.append((n, True))
                stack.extend((x, False) for x in n.args() if n not in self.new)
        return order

    @property
    def executable(self) -> Executable | None:
        """What the first backward pass compiled, None before it."""
        return next(iter(self.executables.values()), None)

    def compiled(self, given: Sequence[bool]) -> Executable:
        """The executable for backward passes that bring these gradients; it is made when the first of them asks for it."""
        given = tuple(given)
        found = self.executables.get(given)
        if found is None:
            program, kept = self.program, len(self.kept)
            inputs = [j for j, (is_input, n) in enumerate(self.kept) if n in (program.host_inputs if is_input else program.host_outputs)]
            inputs += [kept + j for j, m in enumerate(self.seed_metas) if m.device is CPU and program.place is not CPU]
            outputs = [j for j, p in enumerate(self.places()) if p is not program.place]
            found = self.executables[given] = compile_graph(
                self._given(self.graph, given), self.graph.name, program.place, inputs, outputs, program.sizes, program._marks,
                lambda: None if self.examples[1] is None else self._given(self.examples[1], given),
            )
            if len(self.executables) == 1 and self.on_compiled is not None:
                self.on_compiled()
        return found

    def read(self, given: tuple[bool, ...]) -> frozenset[int]:
        """Which of the kept values a backward pass that brings these gradients reads; the others may have been overwritten."""
        found = self._read.get(given)
        if found is None:
            graph = self._given(self.graph, given)
            used = {x for n in graph.nodes() for x in n.inputs} | set(graph.outputs)
            found = self._read[given] = frozenset(j for j in range(len(self.kept)) if graph.inputs[j] in used)
        return found

    def _given(self, graph: Graph, given: Sequence[bool]) -> Graph:
        seeds = graph.inputs[len(self.kept) :]
        return graph if all(given) else drop_gradients(graph, seeds, [n for n, has in zip(seeds, given, strict=True) if not has])

    @cached_property
    def examples(self) -> tuple[Graph | None, Graph | None]:
        """Both halves at other sizes, where sizes are expected to vary."""
        graph, distinct = self.program.segment.graph, self.distinct
        both = replace(graph, outputs=(*graph.outputs, *distinct), targets=(*graph.targets, *[None] * len(distinct)))
        other = self.program._example(both)
        if other is None:
            return None, None
        n = len(graph.outputs)
        whole = replace(other, outputs=other.outputs[:n], targets=graph.targets)
        joint, grads_in, _ = _joint(whole, list(other.outputs[n:]), [other.inputs[k] for k in self.wrt], self.program.place)
        order = self.joint.nodes()
        return partition(joint, grads_in, n, [order.index(x) for x in self.kept_nodes])[:2]

    def places(self) -> list[device]:
        """Where each computed gradient goes: to the device of the input it belongs to."""
        return [CPU if k in self.program.host_inputs else self.program.place for k, has in zip(self.wrt, self.has_grad, strict=True) if has]

    def attach(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], entries: Sequence[Any], scalars: list[Any], watched: Sequence[Tensor],
        before: dict[int, Tensor],
    ) -> None:
        """Put the segment on the tape: its visible outputs get a node, those that share no computation one of their own."""
        made: dict[int, SegmentNode] = {}
        seen = [Saved(_shadow(t)) for t in watched]
        for t, k in zip(outputs, self.output_of, strict=True):
            group = self.group_of[k]
            if group not in made:
                made[group] = SegmentNode(self, group, inputs, entries, scalars, seen, before)
            t._node, t._out = made[group], k


def _joint(graph: Graph, of: Sequence[Node], wrt: Sequence[Node], place: device) -> tuple[Graph, tuple[Node, ...], list[bool]]:
    """(joint graph, its inputs that are gradients, which of `wrt` have a gradient); attention is whole in it where it has kernels."""
    joint, _, grads_out = differentiate(graph, of, wrt)
    joint = recognise(joint, lambda n: claims(n, on_gpu(place)))
    return joint, joint.inputs[len(graph.inputs) :], [g is not None for g in grads_out]


def _groups(graph: Graph, outputs: Sequence[Node], wrt: Sequence[Node]) -> tuple[list[set[int]], list[int]]:
    """(for each output the numbers of the `wrt` it depends on, for each output the number of its group).

    Outputs of different groups have no differentiable operation in common: a backward pass from one leaves the other's untouched.
    """
    sources = {n: {k} for k, n in enumerate(wrt)}
    reach: dict[Node, set[int]] = {}
    for n in replace(graph, outputs=tuple(outputs), targets=(None,) * len(outputs)).nodes():
        reach[n] = sources.get(n) or set().union(*[reach[x] for x in _differentiated(n)])
    group_of: list[int] = []
    owner: dict[Node, int] = {}
    for k, output in enumerate(outputs):
        group, seen, stack = k, {output}, [output]
        while stack:
            n = stack.pop()
            if n in sources or not reach.get(n):
                continue
            if n in owner:
                joined = owner[n]
                group_of = [joined if g == group else g for g in group_of]
                owner = {m: joined if g == group else g for m, g in owner.items()}
                group = joined
                continue
            owner[n] = group
            stack.extend(x for x in _differentiated(n) if x not in seen)
            seen.update(_differentiated(n))
        group_of.append(group)
    return [reach[n] for n in outputs], group_of


def _differentiated(n: Node) -> list[Node]:
    """The inputs of a node to which its rules give gradients."""
    op = n.op
    if op is None or not n.spec.dtype.has_gradient:
        return []
    opened = not op.vjp and isinstance(op.lower, Composite)
    return [x for i, x in enumerate(n.inputs) if isinstance(x, Node) and (opened or op.input_name(i) in op.vjp)]


class SegmentNode(TapeNode):
    """A segment, or one of its groups of outputs, on the tape: its gradients are computed by one compiled program."""

    __slots__ = ("half", "group", "seen", "kept", "inputs", "scalars", "freed", "arrays", "copies", "before")

    def __init__(
        self, half: Backward, group: int, inputs: Sequence[Tensor], entries: Sequence[Any], scalars: list[Any], seen: list[Saved],
        before: dict[int, Tensor],
    ):
        reached = set().union(*[r for r, g in zip(half.reaches, half.group_of, strict=True) if g == group])
        super().__init__(tuple(edge_of(inputs[k]) if j in reached else None for j, k in enumerate(half.wrt)), tuple(half.seed_metas))
        self.half, self.group, self.seen, self.scalars, self.freed = half, group, seen, scalars, False
        self.inputs, self.before = [Saved(t) for t in inputs], before
        # of memory that NumPy can see: what was read there.  The copies themselves turn into what they stand for after the launch
        self.copies: list[tuple[int, Any]] = [(k, t._np) for k, t in enumerate(inputs) if t._stands_for is not None]
        self.kept: list[Any] = [self.inputs[n] if is_input else entries[n] for is_input, n in half.kept]
        self.arrays = [entries[n][0] for is_input, n in half.kept if not is_input]  # held, so that the pools leave them alone

    def maker(self, output: int) -> Node:
        """The node of the graph that computes an output."""
        return self.half.distinct[output]

    def _check(self, grads: Sequence[Any], read: frozenset[int]) -> None:
        if self.freed:
            nearest = [self.half.keeping[k] for k, g in enumerate(grads) if g is not None and k in self.half.keeping]
            if nearest:
                raise freed(max(nearest)[1])
        for k, g in enumerate(grads):
            for is_input, i, op in self.half.guards[k] if g is not None else ():
                (self.inputs if is_input else self.seen)[i].get(op)
        for k in self.half.written:
            if any(self.kept[j] is self.inputs[k] for j in read):
                raise RuntimeError(
                    "backward: one of the variables needed for gradient computation has been modified by an inplace operation "
                    "inside the compiled call"
                )

    def backward(self, grads: list[Tensor | None], needs: Sequence[bool]) -> list[Tensor | None]:
        """Gradients of the inputs; with create_graph, the segment is walked operation by operation so that they can be differentiated."""
        half, given = self.half, tuple([g is not None for g in grads])
        read = half.read(given)
        self._check(grads, read)
        written = any(not same_bits(force(self.inputs[k].tensor), a) for k, a in self.copies)
        if STATE.grad or written:
            return self._differentiable(grads, STATE.grad, written)
        executable = half.compiled(given)
        seeds = []
        for g, m in zip(grads, self.metas, strict=True):
            if g is None:
                array = storage.zeros(tuple(m.shape), m.dtype.np, m.device)
            else:
                array = storage.contiguous(force(g))
            seeds.append((array, storage.address(array)))
        addresses = [
            address(s.get(_SEGMENT) if j in read else s.tensor) if isinstance(s, Saved) else s[1] for j, s in enumerate(self.kept)
        ] + [p for _, p in seeds]
        outs = [wrap(storage.empty(n.spec.shape, n.spec.dtype.np, p)) for n, p in zip(half.graph.outputs, half.places(), strict=True)]
        executable.run(addresses, [address(t) for t in outs], self.scalars)
        reached = set().union(*[r for r, g in zip(half.reaches, grads, strict=True) if g is not None])
        it = iter(outs)
        found = [next(it) if has else None for has in half.has_grad]
        return [g if j in reached else None for j, g in enumerate(found)]  # what no given gradient reaches has none, not zeros

    def _differentiable(self, grads: list[Tensor | None], create_graph: bool, written: bool) -> list[Tensor | None]:
        """The gradients, operation by operation. `written`: by NumPy since the segment ran; what was computed then stays as it is."""
        run = STATE.run if written else None
        if run is not None:  # what is written below must not be read later
            run.flush("NumPy wrote to memory that a backward pass reads")
            STATE.run = None
        before = STATE.grad
        STATE.grad = True
        try:
            return self._walked(grads, create_graph, dict(self.copies) if written else {})
        finally:
            STATE.grad = before
            if run is not None:
                STATE.run = run

    def _walked(self, grads: list[Tensor | None], create_graph: bool, copies: dict[int, Any]) -> list[Tensor | None]:
        half = self.half
        seg = half.program.segment
        values: dict[Node, Any] = dict(zip(seg.graph.scalars, self.scalars, strict=True))
        number = {n: k for k, n in enumerate(seg.graph.inputs)}
        sources: dict[int, Tensor] = {}
        later: list[tuple[Tensor, Tensor]] = []
        for n in half.again():
            if n in half.new:  # what the segment has written into an input is found there
                values[n] = self.inputs[half.new[n]].get(_SEGMENT)
            elif n in number:
                k = number[n]
                t = self.before[k] if k in self.before else self.inputs[k].get(_SEGMENT)
                if k in copies:
                    now, t = t, wrap(twin_of(copies[k]))
                    t._meta, t._stands_for = now._meta.replace(shared=False), now._stands_for
                    later.append((t, now))
                if k in half.wrt:
                    t = sources[k] = apply(OPS["alias"], (t,))  # gradients are wanted at this node's edge, not further down
                values[n] = t
            elif n not in values:
                assert n.op is not None
                values[n] = apply(n.op, tuple([values[x] if isinstance(x, Node) else x for x in n.inputs]), n.attrs)
        nodes = list(dict.fromkeys(seg.alive_nodes[s] for s in half.of))
        seeds = [(edge_of(values[n]), g) for n, g in zip(nodes, grads, strict=True) if g is not None]
        for t, now in later:  # the rules read what is there now
            t._np[...] = now._np  # type: ignore[index]
        found: dict[int, Tensor] = {}
        walk_back(seeds, True, create_graph, found, list(sources.values()), None)
        of = dict(zip(sources, map(found.get, range(len(sources))), strict=True))
        return [of.get(k) for k in half.wrt]

    def release(self) -> None:
        """A second backward raises where eager execution would have kept something; where it raises for all outputs, let go of it."""
        ours = [k for k, group in enumerate(self.half.group_of) if group == self.group]
        self.freed = any(k in self.half.keeping for k in ours)
        if all(k in self.half.keeping for k in ours):
            self.kept, self.inputs, self.arrays, self.copies, self.before = [], [], [], [], {}


def _shadow(t: Tensor) -> Tensor:
    """What tells of writes to a tensor without holding it: the tensor holds its node, which looks at this."""
    shadow = new(Tensor)
    shadow._store, shadow._meta = t._store, t._meta
    return shadow


class _Released(TapeNode):
    """What a backward pass inside the segment has used up."""

    __slots__ = ("name",)
    name: str  # of the operator that kept something

    def backward(self, grads: list[Tensor | None], needs: Sequence[bool]) -> list[Tensor | None]:
        """Always raises."""
        raise freed(self.name)


_SEGMENT = OPS["clone"]
_leaf = wrap(np.zeros((), np.float32), requires_grad=True)


@cache
def _released(name: str) -> _Released:
    node = _Released((_leaf,), (_leaf._meta,))  # type: ignore[arg-type]
    node.name = name
    return node



# ------------------------------------------------------------------------------------------------ step by step


def run_stepwise(path: Any, alive: Sequence[Any], scalars: Sequence[Any], reason: str) -> None:
    """Run a path in program order with eager operations on the real memory: always right, used where `explain` says so."""
    visible = set(alive)
    env: dict[Any, Tensor] = {h: h.t for h in path.slots}
    run, grad = STATE.run, STATE.grad
    STATE.run = None
    try:
        for s in path.steps:
            if s.kind == "event":
                if s.op == "grad":
                    STATE.grad = s.attrs[0]
                continue
            STATE.grad = s.grad
            args: list[Any] = []
            k = s.scalars_before
            for slot, meta in s.checks:
                if slot is None:
                    if isinstance(meta, type):
                        args.append(scalars[k])
                        k += 1
                    else:
                        args.append(meta.value)
                elif hasattr(slot, "index"):
                    args.append(scalars[slot.index])
                else:
                    args.append(env[slot])
            if s.kind == "op":
                result = execute(s.op, tuple(args), s.attrs)
                if s in visible:
                    t = s.t
                    t._np, t._store, t._meta, t._node, t._out, t._base, t._ptr = (
                        result._np,
                        result._store,
                        result._meta,
                        result._node,
                        result._out,
                        result._base,
                        0,
                    )
                    result = t
                    s.t = None
                env[s] = result
            elif s.kind == "inplace":
                execute_inplace(s.op, args[0], tuple(args[1:]), s.attrs)
            else:
                attrs, lengths = s.attrs
                lists, at = [], 0
                for n in lengths:
                    lists.append(args[at : at + n])
                    at += n
                autograd.execute_update(s.op, lists, args[at:], attrs)
    finally:
        STATE.run, STATE.grad = run, grad



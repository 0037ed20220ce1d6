"""Capture: the user's Python runs, every operation walks one step down a trie, and what is pending is launched where a value is needed.

The trie's edges are operations. A call follows the edge it took last time (`Step.next`): same operator, same attributes, the
same operands (the very tensors of earlier steps; outside tensors with the same interned Meta). Where no edge fits, one is
added. Python numbers are data of the call. Nothing is guarded and nothing can be stale: Python itself decides the path.

A *segment* is the path from a root to the point where Python needs a value or the call ends; it is compiled once and launched.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from torchlet import autograd, dtypes
from torchlet.autograd import OpNode, Saved, check_inplace, check_result, execute, execute_inplace, result_device
from torchlet.compiler.program import Program, run_stepwise
from torchlet.op import STATE, Composite, Op, as_spec
from torchlet.tensor import Meta, Storage, Tensor, new

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_STDLIB = os.path.dirname(os.path.abspath(operator.__file__))
MAX_STEPS = 2000  # a longer segment is cut: compile time grows faster than the gain
_refcount = sys.getrefcount


def _calibrate() -> int:
    """What getrefcount says of a placeholder that only the trie and one local hold (it differs between Python versions)."""
    holder = Slot()
    holder.t = new(Tensor)
    t = holder.t
    return _refcount(t)


class Slot:
    """A tensor's place on a path; filled anew in each call."""

    __slots__ = ("t", "position")

    def __init__(self) -> None:
        self.t: Any = None
        self.position = -1


class ScalarSlot(Slot):
    """A Python number of the call, as a weak 0-d tensor for gradient rules that compute with it."""

    __slots__ = ("index",)


class Step(Slot):
    """One operation of a path. `t` is its output: a placeholder that is used again whenever nobody else holds it.

    checks[i] says what input i must be:  (slot, None) that slot's tensor;  (slot, Meta) a new outside tensor;
    (None, type) a number, data of the call;  (None, Constant) a number that is part of the program.
    """

    __slots__ = (
        "kind", "op", "functional", "attrs", "checks", "known", "fresh", "meta", "parent", "next", "edges", "source", "slots_before", "scalars_before",
        "path", "after", "macros", "writes", "grad",
    )

    def __init__(self, parent: Step | None, kind: str = "root", op: Any = None, attrs: tuple[Any, ...] = ()):
        super().__init__()
        self.parent, self.kind, self.op, self.attrs = parent, kind, op, attrs
        self.functional = op if kind == "op" else None  # so that the hot loop asks one thing, not two
        self.checks: tuple[tuple[Slot | None, Any], ...] = ()
        self.known: tuple[tuple[Slot, ...], tuple[type, ...]] | None = None  # an update's checks, where all its tensors are known
        self.fresh: tuple[Slot, ...] = ()  # outside tensors that appear here first
        self.meta: Meta | None = None
        self.next: Step | None = None  # the edge taken last
        self.edges: dict[Any, Step] = {}
        self.source = ""
        self.position = parent.position + 1 if parent is not None else 0
        self.scalars_before = 0
        self.path: Path | None = None  # what is known when a segment ends here
        self.after: Step | None = None  # the root of the segment that follows then
        self.macros: dict[Any, Macro] = {}
        self.writes: tuple[Slot, ...] = ()
        self.grad = True


class Constant:
    """A number that is part of the program (it came from a gradient rule, not from the user)."""

    __slots__ = ("value",)
    table: dict[tuple[type, str], Constant] = {}

    @staticmethod
    def of(value: Any) -> Constant:
        """The one Constant of this type and value."""
        key = (value.__class__, repr(value))
        found = Constant.table.get(key)
        if found is None:
            found = Constant.table[key] = Constant()
            found.value = value
        return found


class Path:
    """A segment: its steps, its outside tensors, who makes what; and the programs compiled for it."""

    def __init__(self, root: Step, end: Step):
        steps: list[Step] = []
        s: Step | None = end
        while s is not root:
            assert s is not None
            steps.append(s)
            s = s.parent
        steps.reverse()
        self.steps = steps
        self.slots = [h for s in steps for h in s.fresh]
        self.producers = [s for s in steps if s.kind == "op"]
        self.written: list[Slot] = list(dict.fromkeys(w for s in steps for w in s.writes))
        self.written_outside = [w for w in self.written if not isinstance(w, Step)]
        self.released = frozenset(i for s in steps if s.kind == "event" and s.op == "release" for i in s.attrs[0])
        self.scalar_count = sum(slot is None and isinstance(meta, type) for s in steps for slot, meta in s.checks)
        self.is_empty = all(s.kind == "event" for s in steps)
        self.programs: dict[tuple[int, ...], Program] = {}
        self.quiet: tuple[list[Step], int, list[Step], Program | None] | None = None  # expected: dead outputs and their reference counts, visible ones
        self.reasons: list[str] = []
        self.launches = 0
        self.stepwise = 0
        self.stepwise_because: list[str] = []


    def dead_outputs(self, alive: list[Step]) -> list[Step]:
        """The other steps whose placeholders exist."""
        kept = set(alive)
        return [s for s in self.producers if s not in kept and s.t is not None]


class Macro:
    """A whole backward pass as one stride: where it ends, and the few facts that could differ next time.

    For leaf i (`slots[i]`): `made[i]` is the step of its new gradient, or, where it had one, `olds[i]` is the slot of that gradient,
    which was added to; `old_metas[i]` is its Meta where the slot is bound here first.
    """

    __slots__ = ("end", "slots", "made", "olds", "old_metas", "accumulates")

    def __init__(self, end: Step):
        self.end = end
        self.slots: list[Slot] = []
        self.made: list[Any] = []
        self.olds: list[Slot | None] = []
        self.old_metas: list[Meta | None] = []
        self.accumulates = False

    def leaf(self, slot: Slot, made: Any, old: Slot | None, meta: Meta | None) -> None:
        """One leaf."""
        self.slots.append(slot)
        self.made.append(made)
        self.olds.append(old)
        self.old_metas.append(meta)
        self.accumulates |= old is not None


class Run:
    """One walk at a time over one trie. `STATE.run` while a compiled function runs in this thread."""

    def __init__(self, owner: Any):
        self.owner = owner  # the compiled function: keeps statistics and names
        self.root = self.start = self.cur = Step(None)
        self.scalars: list[Any] = []
        self.writes_pending = False
        self.constants = False  # numbers met now are part of the program (a gradient rule is running)
        self.nodes: dict[Step, OpNode] | None = None  # tape nodes of pending steps, made when backward needs them
        self.weak: dict[int, ScalarSlot] = {}
        self.replaced: list[tuple[Tensor, Any]] = []  # (leaf, its .grad before) of backward passes in this segment
        self.arguments: Any = None  # of the running call, for the names in the dump
        self.grads: dict[int, Any] | None = None  # a dry run notes here the .grad that a backward pass replaces

    # ------------------------------------------------------------------------------------------------ following

    def step(self, op: Op, inputs: tuple[Any, ...], attrs: tuple[Any, ...]) -> Tensor:
        """Dispatch of an operation: one step down the trie. The comparison is `_match`, written out: this is the hottest loop."""
        s = self.cur.next
        if s is not None and s.functional is op and s.attrs == attrs and len(s.checks) == len(inputs):
            scalars = self.scalars
            before = len(scalars)
            try:
                for x, (slot, meta) in zip(inputs, s.checks):  # noqa: B905
                    if meta is None:
                        if x is not slot.t:  # type: ignore[union-attr]
                            break
                    elif slot is not None:
                        if x._meta is not meta or x._np is None or (meta.shared and x._store.exported):
                            break
                        slot.t = x
                    elif x.__class__ is meta:
                        scalars.append(x)
                    elif meta.__class__ is not Constant or x.__class__ is not meta.value.__class__ or repr(x) != repr(meta.value):
                        break
                else:
                    self.cur = s
                    t = s.t
                    if t is None or _refcount(t) > _FREE or t._np is not None:
                        t = self._place(s)
                    return t  # type: ignore[no-any-return]
            except AttributeError:  # a number where a tensor was
                pass
            del scalars[before:]
        return self._record_op(op, inputs, attrs)

    def _match(self, s: Step, inputs: Sequence[Any]) -> bool:
        """True if the operands are those of step `s`; outside tensors are bound to their slots."""
        checks = s.checks
        if len(checks) != len(inputs):
            return False
        scalars = self.scalars
        known = s.known
        if known is not None:  # tensors of earlier steps, then numbers: compared at C speed
            slots, types = known
            n = len(slots)
            if all(map(_is, inputs, map(_get_t, slots))) and tuple(map(type, inputs[n:])) == types:
                scalars += inputs[n:]
                return True
            return False
        before = len(scalars)
        try:
            for x, (slot, meta) in zip(inputs, checks):  # noqa: B905 (lengths were compared; this is the hot loop)
                if meta is None:
                    if x is not slot.t:  # type: ignore[union-attr]
                        break
                elif slot is not None:
                    if x._meta is not meta or x._np is None or (meta.shared and x._store.exported):
                        break
                    slot.t = x
                elif x.__class__ is meta:
                    scalars.append(x)
                elif meta.__class__ is not Constant or x.__class__ is not meta.value.__class__ or repr(x) != repr(meta.value):
                    break
            else:
                return True
        except AttributeError:  # a number where a tensor was
            pass
        del scalars[before:]
        return False

    def _place(self, s: Step) -> Tensor:
        """A fresh placeholder for the output of `s`."""
        t = s.t = new(Tensor)
        t._run, t._step, t._meta, t._store = self, s, s.meta, Storage()
        return t  # type: ignore[no-any-return]

    def step_inplace(self, op: Op, target: Tensor, inputs: tuple[Any, ...], attrs: tuple[Any, ...]) -> Tensor:
        """Dispatch of `target.op_()`: deferred where nothing but the memory of a whole tensor changes, else done at once."""
        s = self.cur.next
        if s is not None and s.op is op and s.attrs == attrs and s.kind == "inplace" and self._match(s, (target, *inputs)):
            self.cur = s
            self.writes_pending = True
            return target
        recording = STATE.grad and (target._meta.requires_grad or any(isinstance(x, Tensor) and x._meta.requires_grad for x in inputs))
        check_inplace(op, target, recording)
        if recording or not self._may_defer_write(target):
            what = "on a tensor that autograd follows" if recording else "through a view, or on memory that NumPy can see"
            self.flush(f"in-place {op.name}_ {what}")
            return execute_inplace(op, target, inputs, attrs)
        if any(isinstance(x, Tensor) and self._is_exported(x) for x in inputs):
            self.flush("memory that NumPy can see")
            return execute_inplace(op, target, inputs, attrs)
        spec = op.spec(*[x._meta.spec if isinstance(x, Tensor) else as_spec(x) for x in inputs], *attrs)
        check_result(op, target._meta.spec, spec)
        s = self._edge("inplace", op, (target, *inputs), attrs)
        s.writes = (s.checks[0][0],)  # type: ignore[assignment]
        self._take(s)
        self.writes_pending = True
        return target

    def _may_defer_write(self, target: Tensor) -> bool:
        if target._np is None:
            return not target._step.op.is_view
        return not target._store.exported and target._base is None

    def _is_exported(self, x: Tensor) -> bool:
        """True for what a compiled program must not hold: memory that NumPy can see, complex numbers (they run eagerly)."""
        return x._meta.dtype.is_complex or (x._np is not None and x._store.exported)

    def update(self, op: Op, lists: Sequence[Sequence[Tensor]], scalars: Sequence[Any], attrs: tuple[Any, ...]) -> None:
        """Dispatch of an update operator: one step, however many tensors."""
        inputs: list[Any] = list(chain(*lists, scalars))
        key = (attrs, tuple(map(len, lists)))
        s = self.cur.next
        if s is not None and s.op is op and s.attrs == key and s.kind == "update" and self._match(s, inputs):
            self.cur = s
            self.writes_pending = True
            return
        targets = [t for i in op.writes for t in lists[i]]
        for t in targets:
            if not self._may_defer_write(t):
                self.flush(f"{op.name} on a view, or on memory that NumPy can see")
                STATE.run = None
                try:
                    autograd.execute_update(op, lists, scalars, attrs)
                finally:
                    STATE.run = self
                return
        s = self._edge("update", op, inputs, key)
        starts = [sum(map(len, lists[:i])) for i in range(len(lists))]
        s.writes = tuple(s.checks[starts[i] + k][0] for i in op.writes for k in range(len(lists[i])))  # type: ignore[misc]
        if not s.fresh and not self.constants:
            n = sum(key[1])
            s.known = tuple(slot for slot, _ in s.checks[:n]), tuple(kind for _, kind in s.checks[n:])  # type: ignore[assignment]
        self._take(s)
        self.writes_pending = True

    def event(self, kind: str, *value: Any) -> None:
        """A fact that later steps depend on (the grad mode), as a step of the path, so that no step has to check it."""
        s = self.cur.next
        if s is None or s.kind != "event" or s.op != kind or s.attrs != value:
            found = self.cur.edges.get((kind, value))
            if found is None:
                found = Step(self.cur, "event", kind, value)
                found.scalars_before = len(self.scalars)
                self.cur.edges[kind, value] = found
            self.cur.next = s = found
        self.cur = s

    # ------------------------------------------------------------------------------------------------ recording

    def _record_op(self, op: Op, inputs: tuple[Any, ...], attrs: tuple[Any, ...]) -> Tensor:
        """Find another edge for the operation, or add one; run it at once where it cannot wait."""
        for x in inputs:
            if isinstance(x, Tensor) and x._np is None and x._run is not self and not x._meta.weak:
                x._run.force(x)
        needs = any(isinstance(x, Tensor) and x._meta.requires_grad for x in inputs) and STATE.grad
        if needs and not op.vjp and isinstance(op.lower, Composite):
            return op.lower.body(*inputs, **dict(zip(op.attrs, attrs, strict=True)))  # type: ignore[no-any-return]
        if (
            op.barrier
            or any(self._is_exported(x) if isinstance(x, Tensor) else isinstance(x, complex) for x in inputs)
            or any(isinstance(a, dtypes.dtype) and a.is_complex for a in attrs)
        ):
            self._unbind()
            self.flush(f"{op.name}: its result depends on data" if op.barrier else f"{op.name} on memory that NumPy can see")
            return execute(op, inputs, attrs)
        if self.cur.position - self.root.position >= MAX_STEPS:
            self.flush(f"{MAX_STEPS} steps")
        s = self._edge("op", op, inputs, attrs)
        if s.meta is None:
            s.meta = self._infer(op, inputs, attrs, needs)
        self._take(s)
        t = s.t
        if t is None or _refcount(t) > _FREE or t._np is not None:
            t = self._place(s)
        return t  # type: ignore[no-any-return]

    def _edge(self, kind: str, op: Op, inputs: Sequence[Any], attrs: tuple[Any, ...]) -> Step:
        """The edge with these operands from here; made if it is not there. Nothing changes if the operands are refused."""
        self._unbind()
        parent = self.cur
        bound = {id(h.t): h for h in self._slots()}
        checks: list[tuple[Slot | None, Any]] = []
        key: list[Any] = [kind, op, attrs]
        fresh: list[Slot] = []
        for x in inputs:
            if not isinstance(x, Tensor):
                entry: Any = Constant.of(x) if self.constants else x.__class__
                checks.append((None, entry))
                key.append(entry)
            elif x._np is None and x._run is self:
                checks.append((x._step, None))
                key.append(x._step)
            else:
                if x._np is None:
                    x._run.force(x)
                slot = bound.get(id(x))
                if slot is not None:
                    checks.append((slot, None))
                    key.append(slot)
                else:
                    slot = Slot()
                    slot.t = x
                    bound[id(x)] = slot
                    fresh.append(slot)
                    checks.append((slot, x._meta))
                    key.append(x._meta)
                    key.append(len(fresh))
        found = parent.edges.get(tuple(key))
        if found is None:
            found = Step(parent, kind, op, attrs)
            found.checks, found.fresh, found.source = tuple(checks), tuple(fresh), user_line()
            found.grad = STATE.grad
            if kind == "op":
                found.meta = self._infer(op, tuple(inputs), attrs, STATE.grad and any(isinstance(x, Tensor) and x._meta.requires_grad for x in inputs))
            parent.edges[tuple(key)] = found
            self.owner.steps_recorded += 1
        else:
            for mine, now in zip(found.fresh, fresh, strict=True):
                mine.t = now.t
        found.scalars_before = len(self.scalars)
        self.scalars.extend(x for x, (slot, _) in zip(inputs, found.checks, strict=True) if slot is None and not self.constants)
        return found

    def _take(self, s: Step) -> None:
        self.cur.next = s
        self.cur = s

    def _unbind(self) -> None:
        """A half-matched step leaves nothing behind."""
        if self.cur.next is not None:
            for slot in self.cur.next.fresh:
                slot.t = None

    def _slots(self) -> list[Slot]:
        """The outside tensors bound so far in this segment."""
        out: list[Slot] = []
        s = self.cur
        while s is not self.root:
            out.extend(s.fresh)
            assert s.parent is not None
            s = s.parent
        return out

    def _infer(self, op: Op, inputs: Sequence[Any], attrs: tuple[Any, ...], needs: bool) -> Meta:
        """Shape, dtype and strides of a result. Raises the operator's worded error on bad input."""
        metas = [x._meta if isinstance(x, Tensor) else None for x in inputs]
        spec = op.spec(*[as_spec(x) if m is None else m.spec for x, m in zip(inputs, metas, strict=True)], *attrs)
        needs = needs and bool(op.vjp) and spec.dtype.is_floating_point
        if not op.is_view:
            return Meta.get(spec.shape, spec.dtype, None, needs, False, result_device(op, inputs, attrs), spec.weak)
        m = metas[0]
        assert m is not None
        size = m.dtype.itemsize
        # a stand-in with the layout of the input and no memory behind it tells the strides of the view
        stand_in = np.lib.stride_tricks.as_strided(np.empty(1, m.dtype.np), m.shape, [s * size for s in m.strides])
        seen = op.eager(stand_in, *attrs)
        return Meta.get(seen.shape, m.dtype, tuple([s // size for s in seen.strides]), needs, True, m.device, m.weak)

    # ------------------------------------------------------------------------------------------------ launching

    def force(self, t: Tensor) -> None:
        """The value of a pending tensor is wanted."""
        if STATE.run is not self:
            # outside the call (or from another thread) nothing is pending any more, unless the owner is in the middle of it
            if t._np is None:
                self.flush("a value was read from outside the call")
            return
        self.flush("a value was read")

    def flush(self, reason: str = "", last: bool = False, stepwise: str = "") -> None:
        """Launch what is pending. The next segment starts at a root of its own."""
        end = self.cur
        if end is self.root:
            if last:
                self.root = self.cur = self.start
            return
        path = end.path
        if path is None:
            path = end.path = Path(self.root, end)
            if not path.is_empty:
                self.owner.paths.append((path, user_line()))
        if path.is_empty:
            if last:
                self.root = self.cur = self.start
            return
        if reason not in path.reasons:
            path.reasons.append(reason)
        path.launches += 1
        slots = path.slots
        try:
            if path.written_outside and len(set(map(id, map(_get_store, map(_get_t, slots))))) != len(slots):
                stepwise = stepwise or "outside tensors share memory that is written"
            # which outputs can anyone still see?  The expected ones are looked at, the others are counted at C speed
            quiet = path.quiet
            if quiet is None or stepwise:
                self._launch(path, stepwise)
            else:
                dead, count, alive, program = quiet
                if sum(map(_refcount, map(_get_t, dead))) != count or min(map(_refcount, map(_get_t, alive)), default=3) <= 2:
                    self._launch(path, "")
                elif program.is_plain:
                    program.launch(self.scalars)
                else:
                    program.run(slots, self.scalars)
        except BaseException:
            for leaf, g in reversed(self.replaced):  # nothing was computed: no leaf may hold a gradient that never came to be
                leaf._grad = g
            raise
        finally:
            self.replaced.clear()
            for h in slots:
                h.t = None
            self.scalars.clear()
            self.writes_pending = False
            self.nodes = None
            if last:
                self.root = self.cur = self.start
            else:
                if end.after is None:
                    end.after = Step(None)
                self.root = self.cur = end.after

    def _launch(self, path: Path, stepwise: str) -> None:
        """Find or compile the program for what is visible, or run step by step where that is not possible."""
        alive, program = self._look(path)
        if not stepwise:
            if program is None:
                program = self.owner.compile(path, alive, self)
                path.programs[tuple([s.position for s in alive])] = program
            if not program.stepwise:
                dead = path.dead_outputs(alive)
                path.quiet = (dead, sum(map(_refcount, map(_get_t, dead))), alive, program)
                program.run(path.slots, self.scalars)
                return
            stepwise = program.stepwise
        path.stepwise += 1
        if stepwise not in path.stepwise_because:
            path.stepwise_because.append(stepwise)
        path.quiet = None
        run_stepwise(path, alive, self.scalars, stepwise)

    def _look(self, path: Path) -> tuple[list[Step], Program | None]:
        """The steps whose outputs someone can still see, and the program compiled for them, if there is one."""
        alive = [s for s in path.producers if s.t is not None and s.t._np is None and _refcount(s.t) > 2]
        return alive, path.programs.get(tuple([s.position for s in alive]))

    # ------------------------------------------------------------------------------------------------ backward

    def edge_of(self, t: Tensor) -> Any:
        """The tape node of a pending tensor. Nodes of the whole segment are made in order, so that depth costs no recursion."""
        if t._meta.weak:
            return None
        nodes = self.nodes
        if nodes is None:
            nodes = self.nodes = {}
        step = t._step
        if step not in nodes:
            path: list[Step] = []
            s = self.cur
            while s is not self.root:
                path.append(s)
                assert s.parent is not None
                s = s.parent
            path.reverse()
            last_write: dict[Slot, int] = {}
            released: set[int] = set()
            for s in path:
                for w in s.writes:
                    last_write[w] = s.position
                if s.kind == "event" and s.op == "release":
                    released.update(s.attrs[0])
            for s in path:
                if s.kind == "op" and s.meta is not None and s.meta.requires_grad and s not in nodes:
                    inputs = []
                    k = s.scalars_before
                    for slot, meta in s.checks:
                        if slot is not None:
                            inputs.append(slot.t)
                        elif meta.__class__ is Constant:
                            inputs.append(meta.value)
                        else:
                            inputs.append(self._weak_scalar(k))
                            k += 1
                    if s.t is None:
                        self._place(s)
                    node = nodes[s] = OpNode(s.op, tuple(inputs), s.attrs, s.t)
                    node.freed = s.position in released
                    assert node.kept is not None
                    for saved in node.kept.values():
                        if isinstance(saved, Saved):
                            origin = saved.tensor._step if saved.tensor._np is None else next((h for h, _ in s.checks if h is not None and h.t is saved.tensor), None)
                            if origin is not None and last_write.get(_base_slot(origin), -1) > s.position:
                                saved.version = -1  # overwritten since: using it raises, as in eager
        return nodes[step], 0

    def _weak_scalar(self, index: int) -> Any:
        """Number `index` of this call as a 0-d tensor that gradient rules can compute with."""
        slot = self.weak.get(index)
        value = self.scalars[index]
        d = dtypes.bool_ if isinstance(value, bool) else dtypes.int64 if isinstance(value, int) else dtypes.float64
        if slot is None or slot.t._meta.dtype is not d:
            slot = self.weak[index] = ScalarSlot()
            slot.index = index
            t = slot.t = new(Tensor)
            t._meta, t._run, t._step, t._store = Meta.get((), d, weak=True), self, slot, Storage()
        return slot.t

    def observe(self, t: Tensor) -> None:
        """Someone hooks into the middle of the tape: run the segment step by step, so that every tensor has its own node."""
        self.flush("a hook on an intermediate tensor", stepwise="a hook on an intermediate tensor")

    def follow_backward(self, tensors: Sequence[Tensor], gradients: Sequence[Any], retain_graph: bool, create_graph: bool, inputs: Any) -> bool:
        """Stride over a backward pass that was recorded from here, if nothing it depends on differs. False: walk it."""
        if len(tensors) != 1 or create_graph or inputs is not None or gradients[0] is not None:
            return False
        m = self.cur.macros.get((tensors[0]._step, retain_graph)) if tensors[0]._np is None else None
        if m is None:
            return False
        leaves = list(map(_get_t, m.slots))
        if len(set(map(id, leaves))) != len(leaves):
            return False
        if m.accumulates:
            return self._accumulate_backward(m, leaves)
        for leaf in leaves:
            if leaf._grad is not None or leaf._hooks:
                return False
        self.replaced += [(leaf, None) for leaf in leaves]
        for leaf, made in zip(leaves, m.made):  # noqa: B905
            t = made.t
            leaf._grad = self._place(made) if t is None or _refcount(t) > _FREE or t._np is not None else t
        self.cur = m.end
        return True

    def _accumulate_backward(self, m: Macro, leaves: list[Tensor]) -> bool:
        """The stride where leaves have gradients already, which are added to in place."""
        for leaf, old, meta in zip(leaves, m.olds, m.old_metas, strict=True):
            g = leaf._grad
            if leaf._hooks:
                return False
            if old is None:
                if g is not None:
                    return False
            elif g is None or (g is not old.t if meta is None else (g._meta is not meta or g._np is None or g._store.exported)):
                return False
        for leaf, old, meta, made in zip(leaves, m.olds, m.old_metas, m.made, strict=True):
            self.replaced.append((leaf, leaf._grad))
            if old is None:
                t = made.t
                leaf._grad = self._place(made) if t is None or _refcount(t) > _FREE or t._np is not None else t
            else:
                self.writes_pending = True
                if meta is not None:
                    old.t = leaf._grad
        self.cur = m.end
        return True

    def begin_backward(self, tensors: Sequence[Tensor], gradients: Sequence[Any], retain_graph: bool, create_graph: bool, inputs: Any) -> BackwardRecord:
        """A backward pass is about to be walked: note what it does."""
        simple = len(tensors) == 1 and tensors[0]._np is None and not create_graph and inputs is None and gradients[0] is None
        return BackwardRecord(self, tensors[0]._step if simple else None, retain_graph, simple)


class BackwardRecord:
    """What one walk of the engine does, so that the next call can stride over it."""

    def __init__(self, run: Run, root: Step | None, retain_graph: bool, simple: bool):
        self.run, self.root, self.retain_graph, self.simple = run, root, retain_graph, simple
        self.begin, self.segment = run.cur, run.root
        self.leaves: list[tuple[Tensor, Tensor | None, Tensor]] = []
        self.visited: list[int] = []

    def visit(self, node: Any) -> None:
        """The engine uses a node: one of this segment's steps, or something that forbids striding."""
        nodes = self.run.nodes
        position = next((s.position for s, n in nodes.items() if n is node), None) if nodes and isinstance(node, OpNode) else None
        if position is None:
            self.simple = False
        else:
            self.visited.append(position)

    def refuse(self) -> None:
        """A hook ran: next time must look again."""
        self.simple = False

    def leaf(self, leaf: Tensor, old: Tensor | None, g: Tensor) -> None:
        """A leaf receives `g`."""
        if self.run.grads is not None:
            self.run.grads.setdefault(id(leaf), (leaf, leaf._grad))
        self.run.replaced.append((leaf, leaf._grad))
        self.leaves.append((leaf, old, g))

    def finish(self) -> None:
        """The walk is done."""
        run = self.run
        if not self.retain_graph and self.visited and run.root is self.segment:
            run.event("release", tuple(sorted(self.visited)))
        if not self.simple or run.root is not self.segment:
            return
        slots = {id(h.t): h for h in run._slots()}
        before = {id(h) for h in _slots_between(self.begin, self.segment)}
        m = Macro(run.cur)
        new_here = []
        for leaf, old, g in self.leaves:
            slot = slots.get(id(leaf))
            if slot is None or id(slot) not in before or (old is None and g._np is not None):
                return
            if old is None:
                m.leaf(slot, g._step, None, None)
            elif old._np is None:
                m.leaf(slot, None, old._step, None)
            else:
                h = slots[id(old)]
                fresh = id(h) not in before
                if fresh:
                    new_here.append(h)
                m.leaf(slot, None, h, old._meta if fresh else None)
        if any(id(h) not in before and h not in new_here for h in slots.values()):
            return  # an outside tensor that the facts above do not bind
        self.begin.macros[self.root, self.retain_graph] = m


def _slots_between(end: Step, root: Step) -> list[Slot]:
    out: list[Slot] = []
    s = end
    while s is not root:
        out.extend(s.fresh)
        assert s.parent is not None
        s = s.parent
    return out


def _base_slot(slot: Slot) -> Slot:
    """The slot whose memory a chain of view steps shows."""
    while isinstance(slot, Step) and slot.kind == "op" and slot.op.is_view:
        source = slot.checks[0][0]
        assert source is not None
        slot = source
    return slot


def user_line() -> str:
    """file:line of the innermost frame outside torchlet."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_PACKAGE) and not (name.startswith(_STDLIB) and "site-packages" not in name):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


_is = operator.is_
_get_t, _get_store = operator.attrgetter("t"), operator.attrgetter("_store")
_FREE = _calibrate()

"""Capture: the user's Python runs, every operation walks one step down a trie, and what is pending is launched where a value is needed.

The trie's edges are operations. A call follows the edge it took last time (`Step.next`): same operator, same attributes, the
same operands (the very tensors of earlier steps; outside tensors with the same interned Meta). Where no edge fits, one is
added. Python numbers are data of the call. Nothing is guarded and nothing can be stale: Python itself decides the path.

A *segment* is the path from a root to the point where Python needs a value or the call ends; it is compiled once and launched.
"""

from __future__ import annotations

import math
import operator
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, pairwise
from typing import Any

import numpy as np

from torchlet import autograd, dtypes
from torchlet.autograd import check_inplace, check_result, execute, execute_inplace, open_composite, result_device
from torchlet.compiler.program import Program, run_stepwise
from torchlet.compiler.tape import Tape
from torchlet.compiler.trie import (
    ONLY_NONE,
    Constant,
    Lost,
    Macro,
    Path,
    Quiet,
    ScalarSlot,
    Slot,
    Step,
    base_slot,
    difference,
    get_grad,
    get_t,
    get_weak,
    likeness,
    refcount,
    slots_between,
    user_line,
    view_steps,
)
from torchlet.errors import CompileError
from torchlet.op import OPS, RUNS, STATE, Composite, Generate, Op, Pointwise, View, apply, as_spec, put_twins, result_strides
from torchlet.ops.view import REPLACEABLE
from torchlet.runtime.walk import walk
from torchlet.spec import CPU
from torchlet.tensor import Meta, Storage, Tensor, address, new
from torchlet.window import same_bits, twin_of

MAX_STEPS = 2000  # a longer segment is cut: compile time grows faster than the gain
LOOP_STEPS = 64  # from which a loop of training steps is cut, where one of them ends
MAX_PATHS = 256  # of one function; those not used for longest are forgotten
MAX_PROGRAMS = 8  # of one path: sets of outputs that someone still holds
MAX_COPY = 1 << 25  # bytes of an operand that NumPy can see: above it, to end the segment costs less memory and no more time than a copy
MAX_ASIDE = 16  # operations that are computed twice, so that positions are known before they are used
SEEN = "memory that NumPy can see (help: drop the array, or hand out a copy of it)"
_is, _get_store = operator.is_, operator.attrgetter("_store")


def _calibrate() -> int:
    """What getrefcount says of a placeholder that only the trie and one local hold (it differs between Python versions)."""
    holder = Slot()
    holder.t = new(Tensor)
    t = holder.t
    return refcount(t)


def _is_fixed(op: Op, x: Any) -> bool:
    """True for a number of the user's that is part of the program: what masks are made of."""
    return not isinstance(x, int | float) or (op.name in ("where", "full") and x in (math.inf, -math.inf))


class Run:
    """One walk at a time over one trie. `STATE.run` while a compiled function runs in this thread.

    `begin`, `end`, `step`, `step_inplace`, `update`, `follow_backward` and `flush` have twins in C (runtime/csrc/walk_run.c), which
    `run_class` puts before these where it can: they do the same for what is known, and call these for everything else.
    """

    cur: Step
    is_watched = False  # by who repeats calls, and wants to know of optimizers' steps and schedules
    inside = 0  # more: the owner's thread is in the C code, which has no frame that would tell

    def __init__(self, owner: Any):
        self._owner = weakref.ref(owner)  # results know their run: they do not hold what the compiled function holds
        self.root = self.start = self.cur = Step(None)
        self.roots: dict[Any, Step] = {}  # of segments after the first, by the line where the one before ended
        self.paths: list[Path] = []
        self.calls = 0
        self.thread = 0  # of the running call
        self.lock = threading.Lock()  # held by another thread that launches what is pending here
        self.moved = False  # a placeholder could not be used again in this segment
        self.cause = ""  # why a step was recorded in this segment though another was expected
        self.scalars: list[Any] = []
        self.writes_pending = False
        self.walking = 0  # backward passes that are being walked
        self.constants = False  # numbers met now are part of the program (a gradient rule is running)
        self.tape: Tape | None = None  # of pending steps, made when backward needs it
        self.turned: list[Slot] = []  # tensors that an in-place operation made require grad, though their steps do not say so
        self.weak: dict[int, ScalarSlot] = {}
        self.replaced: list[tuple[Tensor, Any]] = []  # (leaf, its .grad before) of backward passes in this segment
        self.arguments: Any = None  # of the running call, for the names in the dump
        self.places: tuple[Step | None, dict[int, Slot], int] = (None, {}, 0)  # up to a step: the outside tensors, their slots, how many
        self.copies: dict[int, list[Tensor]] = {}  # of memory that NumPy can see, by the tensor they stand for; this segment reads them
        self.grads: dict[int, Any] | None = None  # a dry run notes here the .grad that a backward pass replaces
        RUNS.append(weakref.ref(self, RUNS.remove))

    @property
    def owner(self) -> Any:
        """The compiled function: keeps statistics and names."""
        return self._owner()

    # ------------------------------------------------------------------------------------------------ following

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call of the compiled function begins in this thread; facts that every step would depend on are its first steps."""
        self.arguments = (args, kwargs)
        self.calls += 1
        self.thread = _thread_id()
        STATE.run = self
        if not STATE.grad:
            self.event("grad", False)
        if dtypes._default is not dtypes.float32:
            self.event("default dtype", dtypes._default)

    def end(self) -> None:
        """The call is over: launch what is pending, and stand at the start."""
        try:
            self.flush("the call ended", last=True)
        except BaseException:
            self.abandon()
            raise
        STATE.run = None
        self.thread = 0
        self.arguments = None

    def abandon(self) -> None:
        """The call is over, and its end failed."""
        self.restart()
        STATE.run = None
        self.thread = 0
        self.arguments = None

    def step(self, op: Op, inputs: tuple[Any, ...], attrs: tuple[Any, ...]) -> Tensor:
        """Dispatch of an operation: one step down the trie. The comparison is `_match`, written out: this is the hottest loop."""
        s = self.cur.next
        if s is not None and s.functional is op and s.attrs == attrs and len(s.checks) == len(inputs):
            scalars = self.scalars
            before = len(scalars)
            try:
                for x, (slot, meta) in zip(inputs, s.checks):
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
                    if t is None or refcount(t) > _FREE or t._np is not None:
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
            if all(map(_is, inputs, map(get_t, slots))) and tuple(map(type, inputs[n:])) == types:
                scalars += inputs[n:]
                return True
            return False
        before = len(scalars)
        try:
            for x, (slot, meta) in zip(inputs, checks):
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
        if s.t is not None:
            self.moved = True
        t = s.t = new(Tensor)
        t._run, t._step, t._meta, t._store = self, s, s.meta, Storage()  # type: ignore[assignment]
        return t  # type: ignore[no-any-return]

    def step_inplace(self, op: Op, target: Tensor, inputs: tuple[Any, ...], attrs: tuple[Any, ...]) -> Tensor:
        """Dispatch of `target.op_()`: deferred where a whole tensor changes, or a part of one that is pending; else done at once.

        The step of the target goes on to stand for it; what it denotes is what the steps up to then have made of it.
        """
        if self._follow_write(op, target, inputs, attrs):
            return target
        if self.cur is HELD:
            self._wait()
        self._settle((target, *inputs))
        at_once = is_shown(target)
        if any(is_shown(x) for x in inputs):
            inputs = self._unseen(inputs, (target,))
            if self._follow_write(op, target, inputs, attrs):
                return target
        if op.check is not None:
            self._test(op, inputs, attrs)
        self._cut()
        recording = STATE.grad and (target._meta.requires_grad or any(isinstance(x, Tensor) and x._meta.requires_grad for x in inputs))
        if target._np is not None or not target._meta.requires_grad:  # what is pending is no leaf
            check_inplace(op, target, recording)
        reason = self._why_write_now(target, inputs, recording)
        if reason:
            self.flush(f"in-place {op.name}_ {reason}")
            return execute_inplace(op, target, inputs, attrs)
        spec = op.spec(*[x._meta.spec if isinstance(x, Tensor) else as_spec(x) for x in inputs], *attrs)
        check_result(op, target._meta.spec, spec)
        if recording:
            before = op, inputs, attrs
            op, inputs, attrs = self._apart(op, target, inputs, attrs)
            if target._np is not None:  # the segment was cut in between
                return execute_inplace(before[0], target, before[1], before[2])
            if self._follow_write(op, target, inputs, attrs):
                return target
        s = self._edge("inplace", op, (target, *inputs), attrs)
        if not s.writes:
            seen = s.checks[0][0]
            assert seen is not None
            s.writes, s.recorded = (base_slot(seen),), recording
            if recording and not target._meta.requires_grad:
                shown = [s.writes[0], *view_steps(seen)]
                metas = [(slot, slot.t._meta) for slot in shown]
                s.turns = tuple([(slot, m.replace(requires_grad=True)) for slot, m in metas if not m.requires_grad])
        self._take(s)
        self._note_write(s)
        if at_once:
            self.flush(f"in-place {op.name}_ on {SEEN}")
        return target

    def _follow_write(self, op: Op, target: Tensor, inputs: tuple[Any, ...], attrs: tuple[Any, ...]) -> bool:
        """True if the expected step was this in-place operation: it is taken."""
        s = self.cur.next
        if s is None or s.op is not op or s.attrs != attrs or s.kind != "inplace" or not self._match(s, (target, *inputs)):
            return False
        if op.check is not None:
            self._test(op, inputs, attrs, s)
        self.cur = s
        self._note_write(s)
        return True

    def _note_write(self, s: Step) -> None:
        if s.turns:
            self._turn(s)
        if not isinstance(s.writes[0], Step):
            self.writes_pending = True
        if self.tape is not None and not self.walking:
            self.tape = None  # it is made again, and knows then what was overwritten

    def _turn(self, s: Step) -> None:
        """Tensors begin to require grad; placeholders among them get their own Meta back when the segment ends."""
        for slot, meta in s.turns:
            slot.t._meta = meta
            self.turned.append(slot)

    def _turn_back(self) -> None:
        for slot in self.turned:
            if slot.t is not None:
                slot.t._meta = slot.meta  # type: ignore[attr-defined]
        self.turned.clear()

    def _apart(
        self, op: Op, target: Tensor, inputs: tuple[Any, ...], attrs: tuple[Any, ...]
    ) -> tuple[Op, tuple[Any, ...], tuple[Any, ...]]:
        """The operation such that no gradient rule asks for what it overwrites: that is copied before."""

        def copied(which: Sequence[Any]) -> tuple[Any, ...]:
            copy = apply(OPS["clone"], (target,)) if any(x is target for x in which) else None
            return tuple([copy if x is target and any(x is y for y in which) else x for x in inputs])

        if not op.vjp and isinstance(op.lower, Composite):
            return OPS["clone"], (apply(op, copied(inputs), attrs),), ()
        rules = [op.vjp.get(op.input_name(i)) for i, x in enumerate(inputs) if isinstance(x, Tensor) and x._meta.requires_grad]
        wanted = {name for rule in rules if rule is not None for name in rule.names}
        return op, copied([x for i, x in enumerate(inputs) if op.input_name(i) in wanted]), attrs

    def _why_write_now(self, target: Tensor, inputs: Sequence[Any], recording: bool) -> str:
        """In words: why an in-place operation cannot wait; empty if it can."""
        if any(isinstance(x, Tensor) and x._meta.dtype.is_complex for x in (target, *inputs)):
            return "on complex numbers"
        if any(is_shown(x) and (x is not target or x._meta.device is not CPU) for x in (target, *inputs)):
            return f"on {SEEN}"
        if target._np is not None:
            if recording:
                return "on a tensor that autograd follows, made before this segment"
            return "" if target._base is None else "through a view of a tensor made before this segment"
        views = view_steps(target._step)
        if not isinstance(base_slot(target._step), Step):
            return "through a view of a tensor made before this segment"
        if any(v.op.name not in REPLACEABLE for v in views):
            return "through a view that shows elements in an order of its own"
        if recording and any(not (v.grad and v.op.vjp) for v in views):
            return "through a view that autograd does not follow"
        return ""

    def update(self, op: Op, lists: Sequence[Sequence[Tensor]], scalars: Sequence[Any], attrs: tuple[Any, ...]) -> None:
        """Dispatch of an update operator: one step, however many tensors."""
        inputs: list[Any] = list(chain(*lists, scalars))
        key = (attrs, tuple(map(len, lists)))
        s = self.cur.next
        if s is not None and s.op is op and s.attrs == key and s.kind == "update" and self._match(s, inputs):
            self.cur = s
            self._note_update()
            return
        if self.cur is HELD:
            self._wait()
        self._settle(inputs)
        targets = [t for i in op.writes for t in lists[i]]
        shown = [t for t in targets if is_shown(t)]
        if any(is_shown(x) for x in inputs):
            lists = [self._unseen(ts, targets) for ts in lists]
            inputs = list(chain(*lists, scalars))
        together = overlap(shown) or any(is_shown(x) and all(x is not t for t in shown) for x in inputs)
        for t in targets:
            now = t._step.op.is_view if t._np is None else t._base is not None
            if now or t._meta.dtype.is_complex or together or (shown and t._meta.device is not CPU):
                self.flush(f"{op.name} on {SEEN if shown or together else 'a view, or on complex numbers'}")
                STATE.run = None
                try:
                    autograd.execute_update(op, lists, scalars, attrs)
                finally:
                    STATE.run = self
                return
        self._cut()
        s = self._edge("update", op, inputs, key)
        starts = [sum(map(len, lists[:i])) for i in range(len(lists))]
        s.writes = tuple(s.checks[starts[i] + k][0] for i in op.writes for k in range(len(lists[i])))  # type: ignore[misc]
        if not s.fresh and not self.constants:
            n = sum(key[1])
            s.known = tuple(slot for slot, _ in s.checks[:n]), tuple(kind for _, kind in s.checks[n:])  # type: ignore[assignment,misc]
        self._take(s)
        self._note_update()
        if shown:
            self.flush(f"{op.name} on {SEEN}")

    def _note_update(self) -> None:
        self.writes_pending = True
        if self.tape is not None and not self.walking:
            self.tape = None

    def event(self, kind: str, *value: Any) -> None:
        """A fact that later steps depend on (the grad mode), as a step of the path, so that no step has to check it."""
        at = self._here()
        s = at.next
        if s is None or s.kind != "event" or s.op != kind or s.attrs != value:
            found = at.edges.get((kind, value))
            if found is None:
                found = Step(at, "event", kind, value)
                at.edges[kind, value] = found
            at.next = s = found
        self.cur = s

    # ------------------------------------------------------------------------------------------------ recording

    def _record_op(self, op: Op, inputs: tuple[Any, ...], attrs: tuple[Any, ...]) -> Tensor:
        """Find another edge for the operation, or add one; run it at once where it cannot wait."""
        if self.cur is HELD:
            self._wait()
        self._settle(inputs)
        if any(is_shown(x) for x in inputs):
            return self._record_seen(op, inputs, attrs)
        return self._record(op, inputs, attrs)

    def _record_seen(self, op: Op, inputs: tuple[Any, ...], attrs: tuple[Any, ...]) -> Tensor:
        """An operation on memory that NumPy can see: later code may write there, and the operation must not see it.

        A view reads nothing. What is small is copied. What is large is read at once: the segment ends behind the operation, or before
        it where a gradient may be computed from the operands again, because eager execution would not see what is written until then.
        """
        if op.is_view:
            return execute(op, inputs, attrs)
        needs = any(isinstance(x, Tensor) and x._meta.requires_grad for x in inputs) and STATE.grad
        if _runs_at_once(op, inputs, attrs) or (needs and not op.vjp and isinstance(op.lower, Composite)):
            return self._record(op, inputs, attrs)
        inputs = self._unseen(inputs)
        if not any(is_shown(x) for x in inputs):
            return self.step(op, inputs, attrs)
        if needs or any(isinstance(x, Tensor) and x._meta.device is not CPU for x in inputs):
            self.flush(f"{op.name} on {SEEN}")
            return execute(op, inputs, attrs)
        t = self._record(op, inputs, attrs)
        self.flush(f"{op.name} on more than {MAX_COPY >> 20} MiB of {SEEN}")
        return t

    def _unseen(self, inputs: Sequence[Any], targets: Sequence[Tensor] = ()) -> tuple[Any, ...]:
        """The operands, with copies of those that NumPy can see, unless they are large or about to be overwritten."""
        return tuple([self._copy(x) if is_shown(x) and all(x is not t for t in targets) else x for x in inputs])

    def _copy(self, x: Tensor) -> Tensor:
        """A copy that stands for `x`: the one that this segment reads, if nobody has written to `x` since; `x` itself if it is large."""
        array = x._np
        if not isinstance(array, np.ndarray) or array.nbytes > MAX_COPY:
            return x
        made = self.copies.setdefault(id(x), [])
        if made and same_bits(made[-1]._np, array):  # type: ignore[arg-type]
            return made[-1]
        c = new(Tensor)
        c._np, c._meta, c._stands_for, c._store = twin_of(array), x._meta.replace(shared=False), x, Storage()
        c._store.version = x._store.version
        made.append(c)
        return c  # type: ignore[no-any-return]

    def _hand_over(self, path: Path | None) -> None:
        """The copies have been read: who goes on to hold one (a graph, for a backward pass) holds the memory of the tensor itself."""
        for s in path.steps if path is not None else ():
            for h in s.fresh:
                t = h.t
                if t is not None and t._stands_for is not None and h not in path.copied:  # type: ignore[union-attr]
                    path.copied[h] = s.source, tuple(t._meta.shape), t._np.nbytes  # type: ignore[union-attr]
        for made in self.copies.values():
            for c in made:
                x = c._stands_for
                assert x is not None and c._np is not None
                c._np, c._store, c._meta, c._ptr = x._np, x._store, x._meta, 0
        self.copies.clear()

    def look_again(self) -> None:
        """A backward pass is about to read what operations were given: it sees what NumPy has written since."""
        for made in self.copies.values():
            c = made[-1]
            if len(made) > 1 or not same_bits(c._np, c._stands_for._np):  # type: ignore[arg-type,union-attr]
                self.flush("NumPy wrote to memory that a backward pass reads")
                return

    def show(self, store: Storage) -> None:
        """NumPy sees this memory from now on: what is pending, in whatever thread, reads it before."""
        if not self._reads(store):  # what is matched just now sees the mark, or is no later than what NumPy does
            return
        if self.thread == _thread_id():
            self.flush("memory was shown to NumPy")
        else:
            self._from_outside("memory was shown to NumPy by another thread", lambda: self._reads(store))

    def meet(self, read: Sequence[Storage], written: Sequence[Storage]) -> None:
        """Another thread is about to read or write there: what is pending here of writes to the ones or reads of the others comes first."""

        def concerned() -> bool:
            return (self.writes_pending and any(map(self._overwrites, read))) or any(map(self._reads, written))

        if concerned():
            self._from_outside("another thread uses what is overwritten, or overwrites what is used", concerned)

    def _overwrites(self, store: Storage) -> bool:
        """True if the pending part of the segment writes there, or if that part is being launched."""
        s: Step | None = self.cur
        if s is HELD:
            return True
        while s is not None:
            if any(not isinstance(h, Step) and (t := h.t) is not None and t._store is store for h in s.writes):  # type: ignore[attr-defined]
                return True
            s = s.parent
        return False

    def _reads(self, store: Storage) -> bool:
        """True if an outside tensor of the pending part of the segment lies there, or if that part is being launched."""
        s: Step | None = self.cur
        if s is HELD:
            return True
        while s is not None:
            if any(t is not None and t._store is store for t in map(get_t, s.fresh)):  # its owner may empty slots meanwhile
                return True
            s = s.parent
        return False

    def _record(self, op: Op, inputs: tuple[Any, ...], attrs: tuple[Any, ...]) -> Tensor:
        """Find another edge for the operation, or add one; its operands are as they have to be."""
        if op.check is not None:
            s = self._here().next
            if s is not None and s.op is op and s.kind == "op" and s.attrs == attrs and self._match(s, inputs):
                self._test(op, inputs, attrs, s)
                self.cur = s
                t = s.t
                return self._place(s) if t is None or refcount(t) > _FREE or t._np is not None else t  # type: ignore[no-any-return]
            self._test(op, inputs, attrs)
        needs = any(isinstance(x, Tensor) and x._meta.requires_grad for x in inputs) and STATE.grad
        if needs and not op.vjp and isinstance(op.lower, Composite):
            return open_composite(op, inputs, attrs)  # type: ignore[no-any-return]
        if _runs_at_once(op, inputs, attrs):
            self._unbind()
            self.flush(f"{op.name}: its result depends on data" if op.barrier else f"{op.name} on complex numbers")
            return execute(op, inputs, attrs)
        self._cut()
        s = self._edge("op", op, inputs, attrs)
        self._take(s)
        t = s.t
        if t is None or refcount(t) > _FREE or t._np is not None:
            t = self._place(s)
        return t  # type: ignore[no-any-return]

    def _settle(self, inputs: Sequence[Any]) -> None:
        """Operands that are pending in another call, or that nobody can compute any more, are asked for their values.

        Views whose base was overwritten since they were made learn of it.
        """
        if self.turned and STATE.grad and any(isinstance(x, Tensor) and x._np is None and self._is_stale(x) for x in inputs):
            self.flush("a view was made before its base began to require grad")
        for x in inputs:
            if isinstance(x, Tensor) and x._np is None and x._run is not self:
                x._run.force(x)
            if isinstance(x, Tensor) and x._meta.shared and x._np is not None:
                autograd.current(x)

    def _is_stale(self, x: Tensor) -> bool:
        """True for a view whose base began to require grad after it was made: it has to look there first."""
        if x._run is not self or x._meta.requires_grad or x._meta.weak:
            return False
        views = view_steps(x._step)
        return bool(views) and base_slot(x._step).t._meta.requires_grad and all(v.grad and v.op.vjp for v in views)

    def _cut(self) -> None:
        """End a segment that has become long, a loop of training steps where its optimizer has just stepped once more: what follows is
        then the same segment again."""
        here = self._here()
        if here.position >= MAX_STEPS:
            self.flush(f"{MAX_STEPS} steps")
        elif here.position >= LOOP_STEPS:
            last = next(s for s in self._back(here) if s.kind != "event")
            assert last.parent is not None
            before = (w for s in self._back(last.parent) if s.op is last.op for w in s.writes)
            if last.kind == "update" and not set(last.writes).isdisjoint(before):
                self.flush(f"{last.op.name} has come to the same tensors again")

    def _test(self, op: Op, inputs: Sequence[Any], attrs: tuple[Any, ...], matched: Step | None = None) -> None:
        """Raise what eager raises where the operation fails on its data; a half-taken step is given back then.

        Positions that are pending are computed aside where they are cheap (a slice of an argument, `arange`); else the segment ends.
        """
        assert op.check is not None
        if matched is not None and matched.checked is not None and not self.writes_pending:
            for k, seen, version in matched.checked:
                x = inputs[k]
                if seen() is not x or x._store.version != version or x._store.exported:
                    break
            else:
                return
        if any(isinstance(x, Tensor) and x._meta.device is not CPU for x in inputs):
            return  # a look at a device's data would wait for all that was launched
        specs = [x._meta.spec if isinstance(x, Tensor) else as_spec(x) for x in inputs]
        try:
            positions = op.check.operands(specs, attrs)
        except Exception:  # shapes that do not fit: the operator says so itself
            return
        values: list[Any] = list(specs)
        for k in positions:
            x = inputs[k]
            if isinstance(x, Tensor):
                value = self._aside(x)
                if value is None:
                    if matched is not None:  # cannot be: the segment ended here when the step was recorded
                        raise CompileError(f"{op.name}: its positions were known when it was recorded")
                    self.flush(f"{op.name}: it may fail on data that is not computed yet")
                    value = autograd.force(x)
                values[k] = value
            else:
                values[k] = x
        try:
            op.check.test(values, attrs)
        except BaseException:
            if matched is not None:
                del self.scalars[matched.scalars_before :]
                self._unbind()
            raise
        if matched is not None:
            known = all(isinstance(inputs[k], Tensor) and inputs[k]._np is not None for k in positions)
            matched.checked = [(k, weakref.ref(inputs[k]), inputs[k]._store.version) for k in positions] if known else None

    def _aside(self, x: Tensor) -> Any:
        """The value of a tensor without a launch: an array, or None where that would cost too much."""
        written = set(self._writes()) if self.writes_pending or x._np is None else set()
        stores = {id(w.t._store) for w in written if not isinstance(w, Step)}
        budget = MAX_ASIDE

        def value(slot: Any, t: Any) -> Any:
            nonlocal budget
            if t is not None and t._np is not None:
                return None if id(t._store) in stores else t._np
            budget -= 1
            if budget < 0 or not isinstance(slot, Step) or slot.kind != "op" or slot in written:
                return None
            if not isinstance(slot.op.lower, View | Pointwise | Generate):
                return None
            args: list[Any] = []
            k = slot.scalars_before
            for source, meta in slot.checks:
                if source is None:
                    args.append(self.scalars[k] if isinstance(meta, type) else meta.value)
                    k += isinstance(meta, type)
                elif isinstance(source, ScalarSlot):
                    return None
                else:
                    args.append(value(source, source.t))
                    if args[-1] is None:
                        return None
            return autograd.compute(slot.op, args, slot.attrs)

        if x._np is not None:
            return value(None, x)
        maker = x._step
        while isinstance(maker, Step) and maker.kind == "op" and (maker.op.is_view or maker.op.name in ("cast", "clone", "clone_in_order")):
            if maker in written:
                return None
            maker = maker.checks[0][0]
        if maker in written:
            return None
        if isinstance(maker, Step) and maker.kind == "op" and maker.op.name in _POSITIONS:  # the first and the last that it can give
            source, dims = maker.checks[0][0], maker.attrs[_POSITIONS[maker.op.name]]
            shape = (source.meta if isinstance(source, Step) else source.t._meta).shape  # type: ignore[union-attr]
            sizes = [shape[d] for d in ((dims,) if isinstance(dims, int) else dims)] or [1]
            count = int(np.prod(sizes))
            return np.array([0, count - 1] if count else [], np.int64)
        return value(x._step, x)

    def _writes(self) -> Iterator[Slot]:
        """What is overwritten by the pending part of the segment."""
        return (w for s in self._back(self._here()) for w in s.writes)

    def _back(self, s: Step) -> Iterator[Step]:
        """The steps of the segment from `s` back to the first."""
        while s is not self.root:
            yield s
            assert s.parent is not None
            s = s.parent

    def _edge(self, kind: str, op: Op, inputs: Sequence[Any], attrs: tuple[Any, ...]) -> Step:
        """The edge with these operands from here; made if it is not there. Nothing changes if the operands are refused."""
        self._unbind()
        parent = self._here()
        checks: list[tuple[Slot | None, Any]] = []
        key: list[Any] = [kind, op, attrs]
        fresh: list[Slot] = []
        mine: dict[int, Slot] = {}
        for x in inputs:
            if not isinstance(x, Tensor):
                entry: Any = Constant.of(x) if self.constants or _is_fixed(op, x) else x.__class__
                checks.append((None, entry))
                key.append(entry)
            elif x._np is None and x._run is self:
                checks.append((x._step, None))
                key.append(x._step)
            else:
                slot = mine.get(id(x)) or self._slot_of(x, parent)
                if slot is not None:
                    checks.append((slot, None))
                    key.append(slot)
                else:
                    slot = mine[id(x)] = Slot()
                    slot.t = x
                    fresh.append(slot)
                    checks.append((slot, x._meta))
                    key.append(x._meta)
                    key.append(len(fresh))
        found = parent.edges.get(tuple(key))
        if found is None:
            found = Step(parent, kind, op, attrs)
            found.checks, found.fresh, found.source = tuple(checks), tuple(fresh), user_line()
            found.grad, found.inner = STATE.grad, self.constants
            found.scalars_after += sum(slot is None and isinstance(entry, type) for slot, entry in checks)
            if kind == "op":
                needs = STATE.grad and any(isinstance(x, Tensor) and x._meta.requires_grad for x in inputs)
                found.meta = self._infer(op, tuple(inputs), attrs, needs)
            if parent.edges and not self.cause:
                self.cause = difference(max(parent.edges.values(), key=lambda s: likeness(s, found)), found)
            parent.edges[tuple(key)] = found
            self.owner.steps_recorded += 1
        else:
            for known, now in zip(found.fresh, fresh, strict=True):
                known.t = now.t
        del self.scalars[found.scalars_before :]  # an interrupt may have left some
        self.scalars.extend(x for x, (slot, entry) in zip(inputs, found.checks, strict=True) if slot is None and isinstance(entry, type))
        return found

    def _take(self, s: Step) -> None:
        assert s.parent is not None
        s.parent.next = s
        self.cur = s

    def _unbind(self, at: Step | None = None) -> None:
        """A half-matched step leaves nothing behind."""
        expected = (at or self._here()).next
        if expected is not None:
            for slot in expected.fresh:
                slot.t = None

    def _slot_of(self, x: Tensor, parent: Step) -> Slot | None:
        """The slot that an outside tensor has up to a step of this segment. To look through all steps each time would be quadratic."""
        at, table, count = self.places
        if at is not parent:
            more: list[Slot] = []
            s: Step | None = parent
            while s is not at and s is not self.root:
                assert s is not None
                more += s.fresh
                s = s.parent
            if s is not at:
                table, count = {}, 0
            table.update((id(h.t), h) for h in more)
            count += len(more)
            self.places = parent, table, count
        slot = table.get(id(x))
        if slot is not None and slot.t is x:
            return slot
        if len(table) != count or list(map(id, map(get_t, table.values()))) != list(table):  # an earlier call filled it
            slots = self._slots()
            table = {id(h.t): h for h in slots}
            self.places = parent, table, len(slots)
            return table.get(id(x))
        return None

    def _slots(self) -> list[Slot]:
        """The outside tensors bound so far in this segment."""
        return [slot for s in self._back(self._here()) for slot in s.fresh]

    def _infer(self, op: Op, inputs: Sequence[Any], attrs: tuple[Any, ...], needs: bool) -> Meta:
        """Shape, dtype and strides of a result. Raises the operator's worded error on bad input."""
        metas = [x._meta if isinstance(x, Tensor) else None for x in inputs]
        spec = op.spec(*[as_spec(x) if m is None else m.spec for x, m in zip(inputs, metas, strict=True)], *attrs)
        needs = needs and bool(op.vjp) and spec.dtype.is_floating_point
        if not op.is_view:
            strides = result_strides(op, spec.shape, [(m.shape, m.strides) for m in metas if m is not None and not m.weak])
            return Meta.get(spec.shape, spec.dtype, strides, needs, False, result_device(op, inputs, attrs), spec.weak)
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
        if self.thread == _thread_id():
            self.flush("a value was read")
        else:
            self._from_outside("a value was read by another thread", lambda: t._np is None and t._run is self)
        if t._np is None:
            Lost(RuntimeError("it was no longer pending")).force(t)

    def _from_outside(self, reason: str, wanted: Callable[[], bool]) -> None:
        """Another thread wants a launch: do it on the owner's behalf, while its cursor stands on a step without edges."""
        while wanted():
            with self.lock:
                end = self._hold() if self._is_outside() else None
                if end is not None and self._is_outside() and self.cur is HELD:  # it has begun no step since, or has ended it
                    self.flush(reason, end=end)
                    continue
                if end is not None:
                    self._give_back(end)
            time.sleep(1e-4)

    def _hold(self) -> Step | None:
        """Take the cursor away, at once: from here on the owner finds HELD, and waits for the lock. None: it is taken already."""
        return self.__dict__.pop("cur", None)  # type: ignore[no-any-return]

    def _give_back(self, end: Step) -> None:
        """Undo `_hold`, unless the owner has just put its own."""
        self.__dict__.setdefault("cur", end)

    def _is_outside(self) -> bool:
        """True if the owner's thread is in code of the user's, or waits for another thread."""
        if self.inside:
            return False
        frame = sys._current_frames().get(self.thread)
        while frame is not None:
            code = frame.f_code
            if code in _WAITING:
                return True
            if code.co_filename == __file__:
                return False
            frame = frame.f_back  # type: ignore[assignment]
        return not self.constants  # a gradient rule computes with what belongs to this segment

    def _here(self) -> Step:
        """Where the walk stands; another thread may have the cursor in its hand, looking whether this one is in the middle of a step."""
        while (at := self.cur) is HELD:
            self._wait()
        return at

    def _wait(self) -> None:
        """Another thread is launching what is pending here."""
        while self.cur is HELD:
            with self.lock:
                pass

    def flush(self, reason: str = "", last: bool = False, stepwise: str = "", end: Step | None = None) -> None:
        """Launch what is pending. The next segment starts at a root of its own."""
        if end is None:
            end = self._here()
        if end is self.root:
            self.cur = self.root
            if last:
                self.restart()
            return
        path = end.path
        if path is None:
            path = self._new_path(end)
        if path.is_empty:
            self.cur = end
            if last:
                self.restart()
            return
        if reason not in path.reasons:
            path.reasons[reason] = user_line()
        path.launches += 1
        path.used = self.calls
        self.root = end  # nothing is pending any more, whatever happens now
        outer, STATE.run = STATE.run, None  # what a launch sets off (finalizers of dropped tensors) is no part of the path
        slots = path.slots
        # saved outputs are seen through shadows: in the middle of a backward pass they are wanted after this launch
        held = list(self.tape.outputs()) if self.tape is not None and self.walking else ()
        try:
            if len(self.scalars) != path.scalar_count:
                self._realign(path)
            quiet = path.quiet
            if quiet is None or self.moved or stepwise:
                if self.owner.fullgraph and not last:
                    why = f"{path.reasons[reason]}: {reason or 'a value was read'}"
                    raise CompileError(f"compile(fullgraph=True): {self.owner.name} is more than one segment; the first ends at {why}")
                self._launch(path, stepwise)
            elif (
                path.written_outside
                and len(set(map(id, map(_get_store, map(get_t, slots))))) != len(slots)
                or (  # which outputs can anyone still see?  They are counted at C speed
                    min(map(refcount, map(get_t, quiet.alive)), default=3) <= 2
                    or sum(map(refcount, map(get_t, quiet.dead))) != quiet.count
                    or any(quiet.notes)
                    or not ONLY_NONE.issuperset(map(get_grad, map(get_t, quiet.watched)))
                    or any(map(get_weak, map(get_t, quiet.watched)))
                )
            ):
                self._launch(path, "")
            else:
                self._run(path, quiet.alive, quiet.program)
            for node, t in held:
                shadow = node.out_shadow
                shadow._np, shadow._store, shadow._ptr = t._np, t._store, t._ptr  # type: ignore[union-attr]
        except BaseException as error:
            self._lose(path, error)
            raise
        finally:
            STATE.run = outer
            if self.copies:
                self._hand_over(path)
            for h in slots:
                h.t = None
            self._begin(end, last, outer is self)  # from here on an owner that another thread has held goes on

    def _realign(self, path: Path) -> None:
        """An interrupt came between a number and its step. Where the call ends with it, nothing is lost."""
        if sys.exc_info()[0] is None or len(self.scalars) < path.scalar_count:
            raise RuntimeError("a compiled call that was interrupted in the middle of an operation cannot go on")
        del self.scalars[path.scalar_count :]

    def restart(self) -> None:
        """Stand at the start again, whatever is left of a call that did nothing or ended in the middle of something."""
        self.root = self.cur = self.start
        self.scalars, self.tape, self.replaced = [], None, []
        self._turn_back()
        if self.copies:
            self._hand_over(None)
        self.writes_pending = self.moved = self.constants = False
        self.walking = 0

    def _begin(self, end: Step, last: bool, mine: bool) -> None:
        """The segment up to `end` is done; stand at the root of the next."""
        self._unbind(end)
        if self.tape is not None:
            self.tape.settle(self.scalars)
        if self.turned:
            self._turn_back()
        self.replaced.clear()
        self.scalars.clear()
        self.writes_pending = self.moved = False
        self.tape = None
        self.cause = ""
        if last:
            self.root = self.start
        else:
            after = end.after
            if after is None:
                # one root for each line where segments end, so that a loop comes back to the segments it knows
                key = (user_line(), STATE.grad, dtypes.get_default_dtype()) if mine else id(end)
                after = self.roots.get(key)
                if after is None:
                    after = self.roots[key] = Step(None)
                end.after = after
            self.root = after
        self.cur = self.root

    def _new_path(self, end: Step) -> Path:
        path = end.path = Path(self.root, end)
        if not path.is_empty:
            path.cause = self.cause
            self.paths.append(path)
            self.owner.enter(path)
        return path

    def _lose(self, path: Path, error: BaseException) -> None:
        """A launch failed: nothing may look as if it had been computed."""
        for leaf, g in reversed(self.replaced):  # no leaf may hold a gradient that never came to be
            leaf._grad = g
        lost = Lost(error)
        for s in path.producers:
            t, s.t = s.t, None
            if t is not None and t._np is None:
                t._run, t._step = lost, None
        path.quiet = None

    def forget(self, count: int) -> set[Path]:
        """Take the `count` paths that were not used for longest out of the trie. Between calls only."""
        # a segment is launched after those before it, so of equals the later one goes first
        order = sorted(range(len(self.paths)), key=lambda i: (self.paths[i].used, -i))
        gone: set[Path] = set()
        for i in order[:count]:
            path = self.paths[i]
            gone.add(path)
            s: Step = path.end
            s.path = s.after = None
            while s.parent is not None and s.path is None and not s.edges:
                parent = s.parent
                parent.edges = {k: v for k, v in parent.edges.items() if v is not s}
                if parent.next is s:
                    parent.next = None
                s = parent
            while s is not path.root and s.parent is not None:
                s.macros.clear()
                s = s.parent
            s.macros.clear()
        self.paths = [p for p in self.paths if p not in gone]
        used = {id(p.end.after) for p in self.paths}
        self.roots = {k: r for k, r in self.roots.items() if id(r) in used and r.edges}
        for p in self.paths:
            if p.end.after is not None and not p.end.after.edges:
                p.end.after = None
        return gone

    def _launch(self, path: Path, stepwise: str) -> None:
        """Find or compile the program for what is visible and run it, or run step by step where that is not possible."""
        slots = path.slots
        if path.written_outside and len(set(map(id, map(_get_store, map(get_t, slots))))) != len(slots):
            stepwise = stepwise or "outside tensors share memory that is written"
        alive, program = self._look(path)
        if stepwise:
            path.quiet = None
            self._run_stepwise(path, alive, stepwise)
            return
        if program is None:
            program = self.owner.compile(path, alive, self)
            if len(path.programs) >= MAX_PROGRAMS:
                self.owner.programs.remove(path.programs.pop(next(iter(path.programs))))
            path.programs[tuple([s.position for s in alive])] = program
            if path.quiet is not None:
                path.quiet.program = program
        self._run(path, alive, program)

    def _run(self, path: Path, alive: list[Step], program: Any) -> None:
        """Run a program; where it cannot be run, run the path step by step."""
        stepwise = program.stepwise
        if not stepwise:
            try:
                if program.is_plain:
                    program.launch(self.scalars)
                else:
                    program.run(path.slots, self.scalars)
                return
            except Exception as error:
                stepwise = self._failure(program, error)
        self._run_stepwise(path, alive, stepwise)

    def _failure(self, program: Any, error: Exception) -> str:
        """Why to run step by step after a launch that failed: the operation at fault raises it again. Raises it where that cannot be."""
        if not program.left_no_trace(error):
            raise error
        return f"its launch failed with {type(error).__name__}: {error}"

    def _run_stepwise(self, path: Path, alive: list[Step], reason: str) -> None:
        if self.owner.fullgraph:
            place = next(iter(path.reasons.values()))
            raise CompileError(f"compile(fullgraph=True): {self.owner.name} cannot be compiled up to {place}: {reason}")
        path.stepwise += 1
        if reason not in path.stepwise_because:
            path.stepwise_because.append(reason)
            del path.stepwise_because[8:]
        run_stepwise(path, alive, self.scalars, reason)

    def _look(self, path: Path) -> tuple[list[Step], Program | None]:
        """The steps whose outputs someone can still see, and the program compiled for them, if there is one."""
        alive = [s for s in path.producers if s.t is not None and s.t._np is None and refcount(s.t) > 2]
        kept = set(alive)
        dead, pristine = [], True
        for s in path.producers:
            if s not in kept and s.t is not None:
                if s.inner or (not s.t.__dict__ and s.t._grad is None and not get_weak(s.t)):
                    dead.append(s)
                else:
                    s.t, pristine = None, False
        program = path.programs.get(tuple([s.position for s in alive]))
        path.quiet = Quiet(dead, alive, program) if pristine else None
        return alive, program

    # ------------------------------------------------------------------------------------------------ backward

    def edge_of(self, t: Tensor) -> Any:
        """The tape node of a pending tensor."""
        if t._meta.weak:
            return None
        if self.cur is HELD:
            self._wait()
            if t._np is not None:
                return autograd.edge_of(t)
        if self.tape is None:
            self.tape = Tape(self)
        return self.tape.edge_of(t._step)

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

    def follow_backward(
        self, tensors: Sequence[Tensor], gradients: Sequence[Any], retain_graph: bool, create_graph: bool, inputs: Any
    ) -> bool:
        """Stride over a backward pass that was recorded from here, if nothing it depends on differs. False: walk it."""
        if len(tensors) != 1 or create_graph or inputs is not None or gradients[0] is not None:
            return False
        if self.cur is HELD:
            self._wait()
        m = self._here().macros.get((tensors[0]._step, retain_graph)) if tensors[0]._np is None else None
        if m is None:
            return False
        leaves = list(map(get_t, m.slots)) if not self.copies else [original(h.t) for h in m.slots]
        if len(set(map(id, leaves))) != len(leaves):
            return False
        if m.accumulates:
            return self._accumulate_backward(m, leaves)
        for leaf in leaves:
            if leaf._grad is not None or not _is_plain(leaf):
                return False
        self.replaced += [(leaf, None) for leaf in leaves]
        for leaf, made in zip(leaves, m.made):
            t = made.t
            leaf._grad = self._place(made) if t is None or refcount(t) > _FREE or t._np is not None else t
        self.cur = m.end
        return True

    def _accumulate_backward(self, m: Macro, leaves: list[Tensor]) -> bool:
        """The stride where leaves have gradients already, which are added to in place."""
        for leaf, old, meta in zip(leaves, m.olds, m.old_metas, strict=True):
            g = leaf._grad
            if not _is_plain(leaf):
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
                leaf._grad = self._place(made) if t is None or refcount(t) > _FREE or t._np is not None else t
            else:
                self.writes_pending = True
                if meta is not None:
                    old.t = leaf._grad
        self.cur = m.end
        return True

    def begin_backward(
        self, tensors: Sequence[Tensor], gradients: Sequence[Any], retain_graph: bool, create_graph: bool, inputs: Any
    ) -> BackwardRecord:
        """A backward pass is about to be walked: note what it does."""
        simple = len(tensors) == 1 and tensors[0]._np is None and not create_graph and inputs is None and gradients[0] is None
        return BackwardRecord(self, tensors[0]._step if simple else None, retain_graph, simple)


def is_shown(x: Any) -> bool:
    """True for a computed tensor whose memory NumPy can see."""
    return isinstance(x, Tensor) and x._meta.shared and x._np is not None and x._store.exported


def original(t: Tensor) -> Tensor:
    """The tensor that a copy stands for; any other tensor itself."""
    return t if t._stands_for is None else t._stands_for


def overlap(tensors: Sequence[Tensor]) -> bool:
    """True if two of these tensors may lie on the same bytes."""
    spans = []
    for t in tensors:
        first, m = address(t), t._meta
        length = sum((n - 1) * s for n, s in zip(m.shape, m.strides, strict=True)) + 1 if m.numel else 0
        spans.append((first, first + length * m.dtype.itemsize))
    spans.sort()
    return any(end > begin for (_, end), (begin, _) in pairwise(spans))


def _runs_at_once(op: Op, inputs: Sequence[Any], attrs: tuple[Any, ...]) -> bool:
    """True for operations that no compiled program holds: the shape of their result depends on data, or they are about complex numbers."""
    return (
        op.barrier
        or any(x._meta.dtype.is_complex if isinstance(x, Tensor) else isinstance(x, complex) for x in inputs)
        or any(isinstance(a, dtypes.dtype) and a.is_complex for a in attrs)
    )


def _is_plain(leaf: Tensor) -> bool:
    """True if a backward pass may give this leaf its gradient without looking further."""
    return not (leaf._hooks or leaf._accumulated_hooks) and leaf._node is None and leaf._base is None


class BackwardRecord:
    """What one walk of the engine does, so that the next call can stride over it."""

    def __init__(self, run: Run, root: Step | None, retain_graph: bool, simple: bool):
        self.run, self.root, self.retain_graph, self.simple = run, root, retain_graph, simple
        self.begin, self.segment = run._here(), run.root
        self.leaves: list[tuple[Tensor, Tensor | None, Tensor]] = []
        self.visited: list[int] = []

    def visit(self, node: Any) -> None:
        """The engine uses a node: one of this segment's steps, or something that forbids striding."""
        tape = self.run.tape
        step = tape.nodes.get(node) if tape is not None else None
        if step is None:
            self.simple = False
        else:
            self.visited.append(step.position)

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
            run.event("release", tuple(sorted(set(self.visited))))
        if not self.simple or run.root is not self.segment:
            return
        bound = run._slots()
        slots = {id(original(h.t)): h for h in bound}
        before = {id(h) for h in slots_between(self.begin, self.segment)}
        m = Macro(run._here())
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
        if any(id(h) not in before and h not in new_here for h in bound):
            return  # an outside tensor that the facts above do not bind
        self.begin.macros[self.root, self.retain_graph] = m


_thread_id = threading.get_ident
_POSITIONS = {"argsort": 0, "topk": 1, "argmax": 0, "argmin": 0}  # what gives positions, and which attribute holds their dimensions
HELD = Run.cur = Step(None)  # what the owner finds while another thread launches: a step without edges
_WAITING = {Run._wait.__code__, Run._from_outside.__code__}
_FREE = _calibrate()


@lru_cache(maxsize=1)
def run_class() -> type[Run]:
    """Run, with the hot methods in C where there is a C walk."""
    c = walk()
    if c is None:
        return Run
    slot = Slot()
    slot.t = object()
    seen_more = sum(map(refcount, map(get_t, [slot]))) - 1
    c.know(Tensor, Storage)
    c.setup(Run, Tensor, Storage, STATE, HELD, Slot, Step, Meta, Constant, Quiet, Macro, Path, Op, vars(dtypes), seen_more)
    led = type("Run", (c.Walk, Run), {"__doc__": Run.__doc__})
    c.setup_dispatch(led)
    put_twins(c)
    return led

"""The trie that capture walks: steps, the paths that are its segments, and in words how one step differs from another."""

from __future__ import annotations

import operator
import os
import sys
from typing import Any, ClassVar

from torchlet.tensor import Meta, Tensor

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_STDLIB = os.path.dirname(os.path.abspath(operator.__file__))
MAX_CONSTANTS = 4096  # numbers that are part of programs
refcount = sys.getrefcount
get_t, get_weak, get_grad = operator.attrgetter("t"), operator.attrgetter("__weakref__"), operator.attrgetter("_grad")
ONLY_NONE = frozenset([None])


class Slot:
    """A tensor's place on a path; filled anew in each call."""

    __slots__ = ("t", "position")

    def __init__(self) -> None:
        self.t: Any = None
        self.position = -1


class ScalarSlot(Slot):
    """A Python number of the call, as a weak 0-d tensor for gradient rules that compute with it."""

    __slots__ = ("index",)
    index: int


class Step(Slot):
    """One operation of a path. `t` is its output: a placeholder that is used again whenever nobody else holds it.

    checks[i] says what input i must be:  (slot, None) that slot's tensor;  (slot, Meta) a new outside tensor;
    (None, type) a number, data of the call;  (None, Constant) a number that is part of the program.
    """

    __slots__ = (
        "kind", "op", "functional", "attrs", "checks", "known", "fresh", "meta", "parent", "next", "edges", "source", "scalars_before",
        "scalars_after", "path", "after", "macros", "writes", "grad", "inner", "checked", "recorded", "turns",
    )

    def __init__(self, parent: Step | None, kind: str = "root", op: Any = None, attrs: tuple[Any, ...] = ()):
        super().__init__()
        self.parent, self.kind, self.op, self.attrs = parent, kind, op, attrs
        # so that the hot loop asks one thing, not three: an operation without effect that cannot fail on data
        self.functional = op if kind == "op" and op.check is None else None
        self.checks: tuple[tuple[Slot | None, Any], ...] = ()
        self.known: tuple[tuple[Slot, ...], tuple[type, ...]] | None = None  # an update's checks, where all its tensors are known
        self.fresh: tuple[Slot, ...] = ()  # outside tensors that appear here first
        self.meta: Meta | None = None
        self.next: Step | None = None  # the edge taken last
        self.edges: dict[Any, Step] = {}
        self.source = ""
        self.position = parent.position + 1 if parent is not None else 0
        self.scalars_before: int = 0 if parent is None else parent.scalars_after  # numbers of the segment so far
        self.scalars_after: int = self.scalars_before
        self.path: Path | None = None  # what is known when a segment ends here
        self.after: Step | None = None  # the root of the segment that follows then
        self.macros: dict[Any, Macro] = {}
        self.writes: tuple[Slot, ...] = ()  # whose memory is overwritten: never a view
        self.recorded = False  # an in-place operation that the tape knows: from here on its target has another maker
        self.turns: tuple[tuple[Slot, Meta], ...] = ()  # tensors that begin to require grad with it
        self.grad = True
        self.inner = False  # made by a gradient rule: the user's code does not see its output
        self.checked: Any = None  # (weak reference, version) of the positions that were last found to be legal


class Constant:
    """A number that is part of the program: it came from a gradient rule, or is an infinity that a mask is made of."""

    __slots__ = ("value",)
    value: Any
    table: ClassVar[dict[tuple[type, str], Constant]] = {}

    @staticmethod
    def of(value: Any) -> Constant:
        """The one Constant of this type and value."""
        key = (value.__class__, repr(value))
        found = Constant.table.get(key)
        if found is None:
            if len(Constant.table) >= MAX_CONSTANTS:
                Constant.table.clear()
            found = Constant.table[key] = Constant()
            found.value = value
        return found


class Path:
    """A segment: its steps, its outside tensors, who makes what; and the programs compiled for it."""

    __slots__ = (
        "steps", "slots", "producers", "written", "written_outside", "turned", "released", "root", "end", "scalar_count", "is_empty",
        "programs", "quiet", "reasons", "cause", "launches", "used", "stepwise", "stepwise_because", "copied",
    )

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
        self.turned = {slot: meta for s in steps for slot, meta in s.turns}
        self.released = frozenset(i for s in steps if s.kind == "event" and s.op == "release" for i in s.attrs[0])
        self.root, self.end = root, end
        self.scalar_count = end.scalars_after
        self.is_empty = all(s.kind == "event" for s in steps)
        self.programs: dict[tuple[int, ...], Any] = {}
        self.quiet: Quiet | None = None
        self.reasons: dict[str, str] = {}  # why it ended, and the user's line
        self.cause = ""  # what was different from the path known before
        self.launches = 0
        self.used = 0  # number of the call that launched it last
        self.stepwise = 0
        self.stepwise_because: list[str] = []
        self.copied: dict[Slot, tuple[str, tuple[int, ...], int]] = {}  # what NumPy could see: place, shape, bytes of the copy


class Quiet:
    """What is expected of the placeholders of a path when it is launched; one look at the counts tells whether it is so."""

    __slots__ = ("dead", "count", "alive", "program", "watched", "notes")

    def __init__(self, dead: list[Step], alive: list[Step], program: Any):
        self.dead, self.alive, self.program = dead, alive, program
        self.count = sum(map(refcount, map(get_t, dead)))
        # what the user's code held may carry its attributes, or be watched by its weak references: then it is not used again
        self.watched = [s for s in dead if not s.inner]
        self.notes = [s.t.__dict__ for s in self.watched]


class Lost:
    """Stands where the capture of a tensor stood whose launch failed."""

    def __init__(self, error: BaseException):
        self.text = f"{type(error).__name__}: {error}"

    def force(self, t: Tensor) -> None:
        """Always raises."""
        raise RuntimeError(f"this tensor was never computed, because the launch of its segment failed with {self.text}")

    edge_of = observe = force


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


def slots_between(end: Step, root: Step) -> list[Slot]:
    out: list[Slot] = []
    s = end
    while s is not root:
        out.extend(s.fresh)
        assert s.parent is not None
        s = s.parent
    return out


def view_steps(slot: Slot) -> list[Step]:
    """The view steps between a slot's base and the slot, from the base on."""
    out: list[Step] = []
    while isinstance(slot, Step) and slot.kind == "op" and slot.op.is_view:
        out.append(slot)
        source = slot.checks[0][0]
        assert source is not None
        slot = source
    out.reverse()
    return out


def chain_of(slot: Slot) -> tuple[Any, ...]:
    """The same as the operators of the tape take it."""
    return tuple([(s.op.name, s.attrs) for s in view_steps(slot)])


def base_slot(slot: Slot) -> Slot:
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


def difference(expected: Step | None, found: Step) -> str:
    """In words: how a step differs from the one that was expected in its place."""
    where = found.source
    if expected is None:
        return f"{where}: {_name(found)} where the call went on otherwise"
    if "event" in (expected.kind, found.kind):
        return f"{where or expected.source}: {_name(found)} instead of {_name(expected)}"
    if expected.op is not found.op:
        return f"{where}: {_name(found)} instead of {_name(expected)}"
    if expected.attrs != found.attrs:
        names = found.op.attrs if found.kind != "update" else ("attributes", "number of tensors")
        changed = [f"{n} {a} → {b}" for n, a, b in zip(names, expected.attrs, found.attrs, strict=False) if a != b]
        return f"{where}: {_name(found)}: {', '.join(changed)}"
    for i, ((slot, a), (other, b)) in enumerate(zip(expected.checks, found.checks, strict=False)):
        name = f"{_name(found)}: input {found.op.input_name(i)}" if found.kind == "op" else f"{_name(found)}: input {i}"
        if isinstance(a, Meta) and isinstance(b, Meta):
            if a is not b:
                return f"{where}: {name}: {_meta_difference(a, b)}"
        elif isinstance(a, type) and isinstance(b, type):
            if a is not b:
                return f"{where}: {name}: {a.__name__} → {b.__name__}"
        elif isinstance(a, Constant) and isinstance(b, Constant):
            if a is not b:
                return f"{where}: {name}: the number {a.value} → {b.value}, which is part of the program"
        elif slot is not other:
            return f"{where}: {name}: another tensor"
    if len(expected.checks) != len(found.checks):
        return f"{where}: {_name(found)}: {len(expected.checks)} → {len(found.checks)} inputs"
    return f"{where}: {_name(found)}"


def likeness(a: Step, b: Step) -> tuple[bool, bool, int]:
    """How much two steps have in common."""
    return a.op is b.op, a.attrs == b.attrs, sum(x[1] is y[1] for x, y in zip(a.checks, b.checks, strict=False))


def _name(s: Step) -> str:
    if s.kind == "event":
        return f"{s.op} {s.attrs[0]}" if s.op != "release" else "a backward pass"
    return f"{s.op.name}{'_' if s.kind == 'inplace' else ''}"


def _meta_difference(a: Meta, b: Meta) -> str:
    parts = [
        f"{what} {x} → {y}"
        for what, x, y in (
            ("shape", tuple(a.shape), tuple(b.shape)), ("dtype", a.dtype.name, b.dtype.name), ("device", a.device, b.device),
            ("requires_grad", a.requires_grad, b.requires_grad), ("memory shared with other tensors", a.shared, b.shared),
        )
        if x != y
    ]
    if not parts or (a.shape == b.shape and a.strides != b.strides):
        parts.append(f"strides {a.strides} → {b.strides}")
    return ", ".join(parts)

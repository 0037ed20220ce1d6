"""Replay: the opt-in that skips the Python of a function which has done the same in every call so far, and checks itself.

`compile(f, replay=True)`: a call is *followed* (its Python runs) until three calls in a row walked one path to its end, read the
same outside tensors and computed with the same numbers. From then on the program is launched without Python, as long as the facts
below hold; every 2^k-th call is followed again and compared, and a difference raises CompileError naming the first step that differs.

Facts looked at in every call: structure, Meta and identity pattern of the arguments, the grad mode, the Meta of every tensor that the
path reads, which of them have a gradient. A number of an argument is data once calls with different values have shown that it
is passed on as it is; otherwise its value is a fact too. The numbers of an optimizer (learning rate, step count) are asked of it in
every call (advance.py); where it does not say them, or has hooks on steps, its `step` runs, without its tensors. A number that comes
from anywhere else and changes from call to call (the position
of a random stream) means that the function is followed in every call; so does a value that is read, a
segment that ends early, and a tensor that is kept elsewhere than in the result and in `.grad`. `explain` tells which. Operations
that may fail on their data (a lookup by positions) are asked before each launch; where one would fail, the call is followed.

What replay cannot see: effects that are no tensor operations (prints, lists that grow, counters) happen in followed calls alone, and Python
state that changes (`train()/eval()`) is noticed by the next call that is followed.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from torchlet import autograd, dtypes
from torchlet.compiler.advance import ASKED, Advance, Row, advances_of, same_number
from torchlet.compiler.capture import Run, run_class
from torchlet.compiler.trie import Path, Slot, Step, difference, user_line
from torchlet.errors import CompileError
from torchlet.op import STATE, as_spec
from torchlet.runtime.walk import walk
from torchlet.spec import CPU
from torchlet.tensor import Storage, Tensor, new

MAX_SIGNATURES = 32
_NUMBERS = (float, int, bool)
_get_meta, _get_t = operator.attrgetter("_meta"), operator.attrgetter("t")


class WatchedRun(Run):
    """A walk that notes whether it could be done again without Python, and with what."""

    # a value that is read, also one that is there already, decides what Python does next: it shall come to flush
    writes_pending = property(lambda self: True, lambda self, value: None)  # type: ignore[assignment]

    is_watched = True

    def watch(self) -> None:
        """Before each call."""
        self.refused = ""
        self.path: Path | None = None
        self.optimizers: list[tuple[Any, Step]] = []  # those that made a step, and the step of the path before

    def stepping(self, optimizer: Any) -> None:
        """An optimizer begins a step."""
        self.optimizers.append((optimizer, self._here()))

    def disturb(self, reason: str) -> None:
        """Python state changes that a replayed call would leave as it is."""
        self.refused = self.refused or f"{user_line()}: {reason}"

    def flush(self, reason: str = "", last: bool = False, stepwise: str = "", end: Step | None = None) -> None:
        """As Run.flush; a segment that ends before the call does is noted."""
        if not last and not self.refused:
            self.refused = f"{user_line()}: {reason or 'a value was read'}"
        super().flush(reason, last, stepwise, end)

    def _run(self, path: Path, alive: list[Step], program: Any) -> None:
        self.path, self.alive, self.program = path, list(alive), program
        self.made = [s.t for s in alive]
        self.bound = [h.t for h in path.slots]
        self.numbers = list(self.scalars)
        super()._run(path, alive, program)

    def _run_stepwise(self, path: Path, alive: list[Step], reason: str) -> None:
        self.refused = self.refused or f"it runs step by step: {reason}"
        super()._run_stepwise(path, alive, reason)


class Observation:
    """What one followed call did: the path, where its tensors and numbers came from, where its results went."""

    def __init__(self, run: WatchedRun, tensors: Sequence[Tensor], numbers: list[Any], result: Any, without: dict[int, bool]):
        path = run.path
        self.refused = run.refused or ("it does nothing with tensors" if path is None else "")
        if path is not None and any(t._stands_for is not None for t in run.bound):
            self.refused = self.refused or "it reads memory that NumPy can see"
        self.numbers, self.arguments = [], numbers
        if self.refused or path is None:
            return
        self.path, self.alive, self.program, self.numbers = path, run.alive, run.program, run.numbers
        ends = [*[before for _, before in run.optimizers[1:]], None]
        self.optimizers = [(o, _updates(path, before, end)) for (o, before), end in zip(run.optimizers, ends, strict=False)]
        place = {id(t): j for j, t in reversed(list(enumerate(tensors)))}
        self.sources: list[Any] = [place.get(id(t), t) for t in run.bound]  # number of an argument, or the tensor itself
        self.fixed = [t for t in self.sources if isinstance(t, Tensor)]
        made = {id(t): i for i, t in enumerate(run.made)}
        used: set[int] = set()
        self.result = _template(result, made, place, used)
        self.grads = [(k, made[id(t._grad)]) for k, t in enumerate(run.bound) if t._grad is not None and id(t._grad) in made]
        used.update(i for _, i in self.grads)
        self.without = [without.get(id(t)) for t in run.bound]  # had it a gradient when the call began?  None: not known
        for i, s in enumerate(self.alive):
            if i not in used:
                self.refused = f"{s.source}: the result of {s.op.name} is kept elsewhere than in what the function returns"
        number = {h: k for k, h in enumerate(path.slots)}
        self.tests = []
        for s in path.steps:
            if s.kind != "event" and s.op.check is not None:
                test = DataTest(s, number, path.written, run.bound)
                self.tests.append(test)
                if any(i is None for _, i, _ in test.operands):
                    self.refused = f"{s.source}: {s.op.name} may fail on data that the call computes"

    def differs(self, other: Observation) -> str:
        """In words: how `other` did something else; empty if it did the same, numbers apart."""
        if self.refused or other.refused:
            return other.refused or self.refused
        if self.path is not other.path:
            for a, b in zip(self.path.steps, other.path.steps, strict=False):
                if a is not b:
                    return difference(a, b)
            longer = max(self.path.steps, other.path.steps, key=len)
            return f"{longer[min(len(self.path.steps), len(other.path.steps))].source}: one of the calls ended before"
        for k, (a, b) in enumerate(zip(self.sources, other.sources, strict=True)):
            if a is not b:
                slot = self.path.slots[k]
                step = next(s for s in self.path.steps if slot in s.fresh)
                return f"{step.source}: {step.op.name} reads another tensor"
        if self.alive != other.alive or self.grads != other.grads or not _same(self.result, other.result):
            return "what the function returns, or which tensors have gradients"
        return ""

    def where(self, number: int) -> str:
        """The step that computes with a number of the path."""
        step = next(s for s in self.path.steps if s.scalars_before <= number < s.scalars_after)
        return f"{step.source}: {step.op.name}"


def _updates(path: Path, before: Step, until: Step | None) -> list[Step]:
    """The updates that directly follow a step of the path, up to where another optimizer began its own."""
    at = path.steps.index(before) + 1 if before is not path.root else 0
    end = path.steps.index(until) + 1 if until is not None and until is not path.root else len(path.steps)
    return path.steps[at : next((i for i in range(at, end) if path.steps[i].kind != "update"), max(at, end))]


class _Numbers:
    """Stands where a capture stands while an optimizer makes a step for the sake of its numbers: learning rate, corrections, counts."""

    is_watched = False

    def __init__(self, expected: Sequence[Step]):
        self.expected = iter(expected)
        self.numbers: list[Any] = []

    def update(self, op: Any, lists: Sequence[Sequence[Tensor]], scalars: Sequence[Any], attrs: tuple[Any, ...]) -> None:
        """What it would do to its tensors; only the numbers are wanted."""
        s = next(self.expected, None)
        if s is None or s.op is not op or s.attrs != (attrs, tuple(map(len, lists))):
            raise _Refused(f"{op.name}: the optimizer does something else than before")
        for t, (slot, _) in zip(chain(*lists), s.checks, strict=False):
            if slot.__class__ is Slot and slot.t is not t:  # type: ignore[union-attr]
                raise _Refused(f"{op.name}: the optimizer updates other tensors than before")
        self.numbers += scalars

    def __getattr__(self, name: str) -> Any:
        raise _Refused("an optimizer's step does more than to update its tensors")


def _hyperparameters(optimizer: Any) -> list[Any]:
    return [v for group in optimizer.param_groups for k, v in group.items() if k != "params"]


def _template(x: Any, made: dict[int, int], place: dict[int, int], used: set[int]) -> Any:
    if isinstance(x, Tensor):
        i = made.get(id(x))
        if i is not None:
            used.add(i)
            return ("made", i)
        return ("argument", place[id(x)]) if id(x) in place else ("object", x)
    if isinstance(x, tuple | list):
        return ("sequence", x.__class__, [_template(v, made, place, used) for v in x])
    if x.__class__ is dict:
        return ("dict", list(x), [_template(v, made, place, used) for v in x.values()])
    return ("object", x)


def _same(a: Any, b: Any) -> bool:
    if a[0] != b[0]:
        return False
    if a[0] == "object":
        return a[1] is b[1] or (
            a[1].__class__ is b[1].__class__ and isinstance(a[1], str | int | float | bool | bytes) and repr(a[1]) == repr(b[1])
        )
    if a[0] in ("sequence", "dict"):
        return a[1] == b[1] and len(a[2]) == len(b[2]) and all(map(_same, a[2], b[2]))
    return a == b  # type: ignore[no-any-return]


def build(template: Any, made: list[Tensor], tensors: Sequence[Tensor]) -> Any:
    """What a followed call returned, with the tensors of this one."""
    kind = template[0]
    if kind == "made":
        return made[template[1]]
    if kind == "argument":
        return tensors[template[1]]
    if kind == "object":
        return template[1]
    values = [build(v, made, tensors) for v in template[2]]
    if kind == "dict":
        return dict(zip(template[1], values, strict=True))
    cls = template[1]
    return values if cls is list else tuple(values) if cls is tuple else cls(*values) if hasattr(cls, "_fields") else cls(values)


class DataTest:
    """A step that fails on some data (a position out of range): what it has to be asked before each launch."""

    def __init__(self, step: Step, number: dict[Any, int], written: Collection[Any], bound: Sequence[Tensor]):
        self.check, self.attrs = step.op.check, step.attrs
        self.specs: list[Any] = []
        checks = step.checks[1:] if step.kind == "inplace" else step.checks
        for slot, meta in checks:
            if slot is None:
                self.specs.append(as_spec(meta() if isinstance(meta, type) else meta.value))
            else:
                self.specs.append((meta or (slot.meta if isinstance(slot, Step) else bound[number[slot]]._meta)).spec)  # type: ignore[union-attr]
        on_device = any(s.device is not CPU for s in self.specs)  # a look at a device's data would wait for all that was launched
        positions = () if on_device else self.check.operands(self.specs, self.attrs)
        # (input, number of the outside tensor, views of it); no tensor where it is a number or computed by the path
        self.operands = [(k, *_outside(checks[k][0], number, written)) for k in positions]
        self.passed: list[Any] = []

    def passes(self, sources: Sequence[Tensor]) -> bool:
        """False where the step would raise with these outside tensors. What was asked of the same data before is not asked again."""
        tensors = [sources[i] for _, i, _ in self.operands if i is not None]
        if len(self.passed) == len(tensors) and all(
            seen() is t and t._store.version == version and not t._store.exported
            for (seen, version), t in zip(self.passed, tensors, strict=True)
        ):
            return True
        values = list(self.specs)
        for (k, _, views), t in zip(self.operands, tensors, strict=True):
            array: Any = t._np
            for step in views:
                array = autograd.compute(step.op, [array], step.attrs)
            values[k] = array
        try:
            if tensors:
                self.check.test(values, self.attrs)
        except Exception:  # whatever it is, following the call raises it where the user's code stands
            return False
        self.passed = [(weakref.ref(t), t._store.version) for t in tensors]
        return True


def _outside(slot: Any, number: dict[Any, int], written: Collection[Any]) -> tuple[int | None, list[Step]]:
    """(number of the outside tensor, the steps by which `slot` shows or copies it), (None, …) for what the path computes."""
    views: list[Step] = []
    while isinstance(slot, Step) and slot.kind == "op" and (slot.op.is_view or slot.op.name in ("cast", "clone", "clone_in_order")):
        if slot in written:
            return None, views
        views.insert(0, slot)
        slot = slot.checks[0][0]
    return None if slot in written else number.get(slot), views


class Plan:
    """How a call is done without Python. Raises in its constructor, as a reason, what stands against it."""

    __slots__ = (
        "last", "path", "program", "alive", "constants", "data", "advances", "optimizers", "asked", "values", "bound", "taken", "fixed",
        "metas", "stores", "tests", "grads", "leaves", "without", "added", "result",
    )

    def __init__(self, seen: list[Observation]):
        last = seen[-1]
        self.last, self.path, self.program, self.alive = last, last.path, last.program, last.alive
        self.constants = list(last.numbers)
        self.data: list[tuple[int, int]] = []  # (number of the path, number among the arguments)
        # an optimizer's own numbers are asked of it in every call
        steps = [(o, updates) for o, updates in last.optimizers if updates]
        self.asked = {i for _, updates in steps for s in updates for i in range(s.scalars_before, s.scalars_after)}
        advances = advances_of(steps, dict(zip(self.path.slots, last.sources, strict=True)))
        self.advances: list[Advance] = advances or []
        self.optimizers = [(o, updates, updates[0].scalars_before, updates[-1].scalars_after) for o, updates in steps if advances is None]
        if any([o for o, _ in x.optimizers] != [o for o, _ in last.optimizers] for x in seen):
            raise _Refused("which optimizers make a step")
        used = set()
        for i, value in enumerate(last.numbers):
            if i in self.asked or all(same_number(o.numbers[i], value) for o in seen):
                continue
            j = next((j for j in range(len(last.arguments)) if all(same_number(o.numbers[i], o.arguments[j]) for o in seen)), None)
            if j is None:
                raise _Refused(f"{last.where(i)}: the number {seen[-2].numbers[i]} → {value} changes from call to call and is no argument")
            self.data.append((i, j))
            used.add(j)
        self.values = [(j, v) for j, v in enumerate(last.arguments) if j not in used]  # these are facts
        for j, v in self.values:
            if not all(same_number(o.arguments[j], v) for o in seen):
                raise _Refused(f"argument number {j + 1} among the numbers changes, and does more than to enter computations")
        slots = self.path.slots
        self.bound = [(h, t) for h, t in zip(slots, last.sources, strict=True) if isinstance(t, Tensor)]
        self.taken = [(h, j) for h, j in zip(slots, last.sources, strict=True) if not isinstance(j, Tensor)]
        self.fixed = last.fixed
        self.metas = list(map(_get_meta, self.fixed))
        if self.path.written_outside:
            stores = {id(t._store) for t in self.fixed}
            self.stores: set[int] | None = stores if len(stores) == len(self.fixed) else set()
        else:
            self.stores = None
        self.tests, self.result = last.tests, last.result
        self.grads = [(last.sources[k], i) for k, i in last.grads]
        if any(not isinstance(t, Tensor) for t, _ in self.grads):
            raise _Refused("an argument receives a gradient")
        facts = [(t, w) for t, w in zip(last.sources, last.without, strict=True) if isinstance(t, Tensor) and t._meta.requires_grad]
        self.leaves, self.without = [t for t, _ in facts], [w for _, w in facts]
        if None in self.without or any(o.without != last.without for o in seen):
            raise _Refused("which tensors have a gradient when a call begins is not settled yet")
        # a gradient that is added to is read by the path: it has to be the leaf's own still
        own = {id(t) for t in self.fixed}
        self.added = [(t, t._grad) for t in self.fixed if t._grad is not None and id(t._grad) in own]

    def applies(self, tensors: Sequence[Tensor], numbers: list[Any]) -> bool:
        """True if the facts hold."""
        if list(map(_get_meta, self.fixed)) != self.metas or [t._grad is None for t in self.leaves] != self.without:
            return False
        for j, v in self.values:
            if not same_number(numbers[j], v):
                return False
        for t, g in self.added:
            if t._grad is not g:
                return False
        for t in tensors:
            if t._np is None or (t._meta.shared and t._store.exported):
                return False
        if self.stores is not None:
            stores = {id(tensors[j]._store) for _, j in self.taken}
            if len(stores) != len(self.taken) or not stores.isdisjoint(self.stores):
                return False
        return (not self.tests or self.passes(tensors)) and all(a.prepare(self.constants) for a in self.advances)

    def passes(self, tensors: Sequence[Tensor]) -> bool:
        """False where a step would fail on its data."""
        sources = [t if isinstance(t, Tensor) else tensors[t] for t in self.last.sources]
        return all(test.passes(sources) for test in self.tests)

    def run(self, ready: bool, tensors: Sequence[Tensor], numbers: list[Any]) -> Any:
        """Launch, and hand out what the function would have returned. `ready`: the slots still hold the tensors of this plan."""
        if not ready:
            for slot, t in self.bound:
                slot.t = t
        for slot, j in self.taken:
            slot.t = tensors[j]
        scalars = self.constants
        for i, j in self.data:
            scalars[i] = numbers[j]
        made = []
        for s in self.alive:
            t = s.t = new(Tensor)
            t._meta, t._store = self.path.turned.get(s) or s.meta, Storage()  # type: ignore[assignment]
            made.append(t)
        program = self.program
        before = [leaf._grad for leaf, _ in self.grads]
        for leaf, i in self.grads:  # the function dropped the old ones too; their memory is free for the new ones
            leaf._grad = made[i]
        try:
            if self.optimizers:
                self.ask()
            for advance in self.advances:
                advance.commit(scalars)
        except BaseException:
            for (leaf, _), g in zip(self.grads, before, strict=True):
                leaf._grad = g
            for h in (*self.alive, *self.path.slots):
                h.t = None
            raise
        del before
        try:
            if program.is_plain:
                program.launch(scalars)
            else:
                program.run(self.path.slots, list(scalars))
        except BaseException:
            for leaf, _ in self.grads:
                leaf._grad = None
            raise
        finally:
            for s in self.alive:
                s.t = None
            for slot, _ in self.taken:
                slot.t = None
        return build(self.result, made, tensors)

    def ask(self) -> None:
        """Make the steps of the optimizers that do not say their numbers. Raises _Refused where one would do something else."""
        counts = [(s, dict(s)) for optimizer, *_ in self.optimizers for s in optimizer.state.values() if isinstance(s, dict)]
        outer = STATE.run
        try:
            for optimizer, updates, first, end in self.optimizers:
                STATE.run = stub = _Numbers(updates)
                optimizer.step()
                if next(stub.expected, None) is not None or list(map(type, stub.numbers)) != list(map(type, self.constants[first:end])):
                    raise _Refused("the optimizer does something else than before")
                self.constants[first:end] = stub.numbers
        except _Refused:
            for s, before in counts:  # of the updates before the one that differs
                s.update(before)
            raise
        finally:
            STATE.run = outer


class _Refused(Exception):
    """Why a call cannot be done without Python."""


class Signature:
    """What is known of calls with one structure of arguments, which `key` tells."""

    __slots__ = ("calls", "check", "held", "key", "leaves", "optimizers", "plan", "reason", "replayed", "seen")

    def __init__(self, key: tuple[Any, ...], held: list[Any]):
        self.key = key
        self.calls = self.replayed = 0
        self.check = 4  # the number of the call that is followed next, once there is a plan
        self.plan: Plan | None = None
        self.seen: list[Observation] = []
        self.reason = "three calls have to do the same first"
        self.held = held  # objects that the key knows by id
        self.leaves: list[Tensor] = []
        self.optimizers: list[Any] = []


class Replayer:
    """The calls of one compiled function with replay=True.

    `ready` is what the last call replayed, if it did: its slots still hold its tensors, and `again`, the C twin of all this, does
    another such call. It returns NotImplemented, and has changed nothing, where it finds anything else, another compiled call
    around this one for example.
    """

    __slots__ = ("owner", "run", "table", "turn", "ready", "again")

    def __init__(self, owner: Any):
        self.again = _again()
        self.ready: Signature | None = None
        self.owner = owner
        self.run = WatchedRun(owner)
        self.table: dict[tuple[Any, ...], Signature] = {}
        self.turn = [True]  # empty while a thread walks here

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any], follow: Callable[..., Any]) -> Any:
        """Replay, or `follow(run or None, args, kwargs)`."""
        parts: list[Any] = [STATE.grad, dtypes.get_default_dtype()]
        tensors: list[Tensor] = []
        numbers: list[Any] = []
        held: list[Any] = []
        _flatten(args, parts, tensors, numbers, held)
        if kwargs:
            _flatten(kwargs, parts, tensors, numbers, held)
        try:
            turn = self.turn.pop()
        except IndexError:  # one thread at a time walks here; the others are followed elsewhere
            return follow(None, args, kwargs)
        try:
            key = tuple(parts)
            known = self.table.get(key)
            if known is None:
                if len(self.table) >= MAX_SIGNATURES:
                    del self.table[next(iter(self.table))]
                known = self.table[key] = Signature(key, held)
            known.calls += 1
            plan, ready, self.ready = known.plan, self.ready, None
            if plan is not None and known.calls != known.check:
                reason = "a fact changed; three calls have to do the same again"
                if plan.applies(tensors, numbers):
                    try:
                        result = plan.run(ready is known, tensors, numbers)
                    except _Refused as refused:
                        reason = f"{refused}; three calls have to do the same again"
                    else:
                        known.replayed += 1
                        self.ready = known
                        return result
                known.plan, known.seen, known.reason = None, [], reason
            return self._follow(known, tensors, numbers, args, kwargs, follow)
        finally:
            self.turn.append(turn)

    def _follow(
        self, known: Signature, tensors: list[Tensor], numbers: list[Any], args: Any, kwargs: Any, follow: Callable[..., Any]
    ) -> Any:
        run = self.run
        run.watch()
        without = {id(t): t._grad is None for t in known.leaves}
        before_call = [(o, _hyperparameters(o)) for o in known.optimizers]
        try:
            result = follow(run, args, kwargs)
        except BaseException:
            known.plan, known.seen, known.reason = None, [], "a call raised an exception"
            raise
        for optimizer, values in before_call:
            if not all(map(same_number, values, _hyperparameters(optimizer))):
                run.disturb("the call changes an optimizer's hyperparameters")
        known.optimizers = [o for o, _ in run.optimizers]
        seen = Observation(run, tensors, list(numbers), result, without)
        run.path = None
        run.made = run.bound = []
        plan, before = known.plan, known.seen[-1] if known.seen else None
        if plan is not None:
            known.check *= 2
            what = plan.last.differs(seen)
            if not what:
                data = dict(plan.data)
                others = [i for i in range(len(seen.numbers)) if i not in plan.asked and i not in data]
                wrong = next((i for i in others if not same_number(seen.numbers[i], plan.constants[i])), None)
                if wrong is not None:
                    what = f"{seen.where(wrong)}: the number {plan.constants[wrong]} → {seen.numbers[wrong]}"
            if what:
                known.plan, known.seen, known.reason = None, [], f"a followed call differed: {what}"
                raise CompileError(
                    f"compile(replay=True): call {known.calls} of {self.owner.name} did something else than the calls that were "
                    "replayed before it. "
                    f"First difference: {what}\nhelp: pass what changes as an argument, or compile without replay"
                )
            return result
        if seen.refused:
            known.seen, known.reason = [], seen.refused
            return result
        what = before.differs(seen) if before is not None else ""
        known.seen = [seen] if what else [*known.seen[-2:], seen]
        known.reason = what or "three calls have to do the same first"
        known.leaves = [t for t in seen.fixed if t._meta.requires_grad]
        if len(known.seen) == 3:
            try:
                known.plan = Plan(known.seen)
                known.reason = ""
                while known.check <= known.calls:
                    known.check *= 2
            except _Refused as refused:
                known.reason = str(refused)
        return result

    def describe(self) -> list[str]:
        """Lines for explain()."""
        out = []
        for known in self.table.values():
            state = (
                f"not replayed: {known.reason}"
                if known.plan is None
                else f"{known.replayed} replayed; call {known.check} is followed again"
            )
            out.append(f"replay: {known.calls} calls, {state}")
        return out


@lru_cache(maxsize=1)
def _again() -> Callable[..., Any] | None:
    """The C twin, where there is a C walk."""
    c = walk()
    if c is None:
        return None
    run_class()  # tells it of tensors and slots
    c.setup_replay(Replayer, Signature, Plan, Advance, Row, ASKED, _Refused, build)
    return c.again  # type: ignore[no-any-return]


def _flatten(x: Any, parts: list[Any], tensors: list[Tensor], numbers: list[Any], held: list[Any]) -> None:
    """The structure of arguments as a key; tensors and numbers aside."""
    for v in x.values() if x.__class__ is dict else x:
        cls = v.__class__
        if isinstance(v, Tensor):
            parts.append(v._meta)
            for k, t in enumerate(tensors):
                if t is v:
                    parts.append(k)
                    break
            tensors.append(v)
        elif cls in _NUMBERS:
            parts.append(cls)
            numbers.append(v)
        elif cls is tuple or cls is list or cls is dict:
            parts += (cls, tuple(v) if cls is dict else len(v))
            _flatten(v, parts, tensors, numbers, held)
        elif v is None or cls is str:
            parts.append(v)
        else:
            parts.append(id(v))
            held.append(v)
    if x.__class__ is dict:
        parts.append(tuple(x))

"""The step of an optimizer in a replayed call: what has to hold so that it does what it did, and its numbers, without its Python loops.

An optimizer whose `step` is `declared` does what its `_update(group, state)` says, and nothing else. What it does to tensors is in the
path; what can change between calls is looked at here, and `_update` is asked once for each update operator.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torchlet.compiler.trie import Slot, Step
from torchlet.op import STATE
from torchlet.tensor import Tensor


class _Asked:
    """Stands where a capture stands while an optimizer is asked for its numbers: where they depend on tensors, the call is followed."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("the numbers of an optimizer depend on tensors")


ASKED = _Asked()


class Row:
    """One update operator of a step: of parameters of a group whose states have the same numbers."""

    __slots__ = ("group", "states", "names", "op", "attrs", "first", "end", "before", "later", "next")

    def __init__(self, group: dict[str, Any], states: list[dict[str, Any]], names: tuple[str, ...], step: Step, before: Row | None):
        self.group, self.states = group, states
        self.names = names  # of the numbers in the states
        self.op, self.attrs = step.op, step.attrs[0]
        self.first, self.end = step.scalars_before, step.scalars_after  # among the numbers of the path
        self.before = before  # the row of the same group before it, whose parameters have made as many steps, or fewer
        self.later = before is not None and before.states[0]["step"] != states[0]["step"]
        self.next: Any = None  # what `_update` said

    def stands(self) -> bool:
        """True if the states still agree, and a `step` would still find these parameters together and in this order."""
        if any(not same_number(state.get(name), self.states[0].get(name)) for name in self.names for state in self.states):
            return False
        if self.before is None:
            return True
        earlier, mine = self.before.states[0]["step"], self.states[0]["step"]
        return earlier < mine if self.later else earlier == mine  # type: ignore[no-any-return]


class Advance:
    """One optimizer's step. `prepare` changes nothing that can be seen; `commit` makes the step's numbers and counts those of now."""

    __slots__ = ("optimizer", "step", "groups", "state", "entries", "lists", "idle", "rows")

    def __init__(self, optimizer: Any, updates: Sequence[Step], tensors: dict[Slot, Any]):
        self.optimizer, self.step = optimizer, optimizer.step.__func__
        self.groups, self.state = optimizer.param_groups, optimizer.state
        self.rows: list[Row] = []
        self.entries: list[tuple[dict[Any, Any], Any, Any]] = [(g, "params", g["params"]) for g in self.groups]  # (where, key, what)
        self.lists = [(self.groups, list(self.groups)), *[(g["params"], list(g["params"])) for g in self.groups]]  # and their items
        idle = {id(p): p for g in self.groups for p in g["params"]}
        for s in updates:
            self._enter(s, tensors, idle)
        self.idle = list(idle.values())  # without a gradient

    def _enter(self, s: Step, tensors: dict[Slot, Any], idle: dict[int, Tensor]) -> None:
        n = s.attrs[1][0]
        given = [tensors.get(slot) for slot, _ in s.checks[: sum(s.attrs[1])]]  # type: ignore[arg-type]
        params = given[:n]
        group = next(g for g in self.groups if any(p is params[0] for p in g["params"]))
        states = [self.state.get(p, {}) for p in params]
        before = next((row for row in reversed(self.rows) if row.group is group), None)
        _, names, _, _, after = self.optimizer._update(group, states[0])
        for k, name in enumerate(names, 2):
            self.entries += [(state, name, t) for state, t in zip(states, given[k * n : k * n + n], strict=True)]
        if names or after:
            self.entries += [(self.state, p, state) for p, state in zip(params, states, strict=True)]
        else:
            states = []
        for p in params:
            del idle[id(p)]
        self.rows.append(Row(group, states, tuple(after), s, before))

    def prepare(self, constants: list[Any]) -> bool:
        """False if the step would be another, or may be."""
        o = self.optimizer
        if (
            getattr(o.step, "__func__", None) is not self.step  # a hook on steps is an attribute of the optimizer
            or o.param_groups is not self.groups
            or o.state is not self.state
            or any(where.get(key) is not what for where, key, what in self.entries)
            or any(len(now) != len(items) or not all(map(operator.is_, now, items)) for now, items in self.lists)
            or any(p._grad is not None for p in self.idle)
        ):
            return False
        for row in self.rows:
            if not row.stands():
                return False
            outer, STATE.run = STATE.run, ASKED
            try:
                row.next = update = o._update(row.group, row.states[0] if row.states else {})
            except Exception:  # following the call raises it where the user's code stands
                return False
            finally:
                STATE.run = outer
            op, _, scalars, attrs, _ = update
            if op is not row.op or attrs != row.attrs or list(map(type, scalars)) != list(map(type, constants[row.first : row.end])):
                return False
        return True

    def commit(self, constants: list[Any]) -> None:
        """The numbers of the step that was prepared, into the path's."""
        for row in self.rows:
            constants[row.first : row.end] = row.next[2]
            for name, value in row.next[4].items():
                for state in row.states:
                    state[name] = value


def advances_of(steps: Sequence[tuple[Any, Sequence[Step]]], tensors: dict[Slot, Any]) -> list[Advance] | None:
    """All optimizers' steps of a call in this form; None where one does not say its numbers, or makes two steps."""
    if len({id(o) for o, _ in steps}) != len(steps):
        return None
    if not all(getattr(getattr(o.step, "__func__", None), "is_declared", False) for o, _ in steps):
        return None
    try:
        return [Advance(o, updates, tensors) for o, updates in steps]
    except Exception:  # it was changed in the middle of the call: its own step will tell
        return None


def same_number(a: Any, b: Any) -> bool:
    """True for equal numbers of one type, and for NaN and NaN."""
    return a is b or (a.__class__ is b.__class__ and (a == b or repr(a) == repr(b)))

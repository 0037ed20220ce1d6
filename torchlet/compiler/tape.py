"""The tape of a pending segment: for each of its steps that autograd follows the node that eager execution would have made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torchlet import autograd
from torchlet.autograd import Edge, OpNode, Overwritten, Saved
from torchlet.compiler.trie import Constant, Slot, Step, base_slot, chain_of, view_steps
from torchlet.op import OPS


class Tape:
    """Nodes are made in the order of the steps, all that are missing at once, so that depth costs no recursion.

    `nodes` says which step each node belongs to. `makers` says which node made what a slot denotes now: an in-place operation
    gives its target another one. A view's node is made again when its base has another maker, as in eager.
    """

    def __init__(self, run: Any):
        self.run = run
        self.nodes: dict[OpNode, Step] = {}
        self.makers: dict[Slot, OpNode] = {}
        self.seen: dict[Slot, OpNode | None] = {}  # the maker that the base of a view had when the view's node was made
        self.last: Step = run.root  # of the steps that have been looked at
        self.writes: dict[Slot, list[int]] = {}  # positions of the steps that overwrite a slot's memory
        self.released: set[int] = set()  # and of those whose backward pass has gone by

    def edge_of(self, slot: Slot) -> Edge:
        """Where the gradient of a pending tensor goes."""
        self._extend()
        return self._edge(slot)

    def _extend(self) -> None:
        steps: list[Step] = []
        s = here = self.run._here()
        while s is not self.last:
            steps.append(s)
            s = s.parent
        steps.reverse()
        self.last = here
        for s in steps:
            for w in s.writes:
                self.writes.setdefault(w, []).append(s.position)
            if s.kind == "event" and s.op == "release":
                self.released.update(s.attrs[0])
        for s in steps:
            if s.kind == "op" and s.meta is not None and s.meta.requires_grad:
                node = self.makers[s] = self._node(s, s, s.checks, s.scalars_before)
                if s.op.is_view:
                    self.seen[s] = self.makers.get(base_slot(s))
            elif s.recorded:
                target = s.checks[0][0]
                assert target is not None
                node = self._node(s, target, s.checks[1:], s.scalars_before)
                self._rebase(s, target, node)
            else:
                continue
            node.freed = s.position in self.released and any(isinstance(v, Saved | list) for v in (node.kept or {}).values())
            self._mark(s, node)

    def _node(self, s: Step, out: Slot, checks: tuple[Any, ...], index: int) -> OpNode:
        run = self.run
        inputs: list[Any] = []
        for slot, meta in checks:
            if slot is not None:
                inputs.append(slot.t)
            elif meta.__class__ is Constant:
                inputs.append(meta.value)
            else:
                inputs.append(run._weak_scalar(index))
                index += 1
        if out.t is None:
            run._place(out)
        edges = tuple([None if slot is None else self._edge(slot) for slot, _ in checks])
        node = OpNode(s.op, tuple(inputs), s.attrs, out.t, edges)
        self.nodes[node] = s
        return node

    def _edge(self, slot: Slot) -> Edge:
        if not isinstance(slot, Step):
            return autograd.edge_of(slot.t)
        node = self.makers.get(slot)
        if slot in self.seen:
            base = base_slot(slot)
            maker = self.makers.get(base)
            if maker is not self.seen[slot] and maker is not None and all(v.grad and v.op.vjp for v in view_steps(slot)):
                node = OpNode(OPS["view_chain"], (base.t,), (chain_of(slot),), slot.t, ((maker, 0),))
                self.nodes[node] = self.nodes[maker]
                self.makers[slot], self.seen[slot] = node, maker
        return None if node is None else (node, 0)

    def _rebase(self, s: Step, target: Slot, node: OpNode) -> None:
        """`node` makes what the target is from step `s` on; where that is a view, its base comes from a scatter of the new value."""
        base = base_slot(target)
        if base is target:
            self.makers[target] = node
            return
        before = self.makers.get(base)
        edges = (None if before is None else (before, 0), (node, 0))
        scatter = OpNode(OPS["view_scatter"], (base.t, target.t), (chain_of(target),), base.t, edges)
        self.nodes[scatter] = s
        self.makers[base] = scatter
        for v in view_steps(target):
            self.seen.setdefault(v, None)  # those that did not require grad before have no node yet

    def _mark(self, s: Step, node: OpNode) -> None:
        """What is kept and overwritten afterwards raises when it is used, as in eager."""
        slots = {id(slot.t): slot for slot, _ in s.checks if slot is not None}
        kept = node.kept
        assert kept is not None
        for name, value in kept.items():
            if isinstance(value, Saved):
                kept[name] = self._marked(s, value, slots, name == "out")
            elif isinstance(value, list):
                kept[name] = [self._marked(s, v, slots, False) if isinstance(v, Saved) else v for v in value]

    def _marked(self, s: Step, saved: Saved, slots: dict[int, Slot], is_out: bool) -> Saved:
        t = saved.tensor
        slot: Slot | None = t._step if t._np is None else slots.get(id(t))
        base = None if slot is None else base_slot(slot)
        positions = self.writes.get(base, []) if base is not None else []
        before = sum(p < s.position + is_out for p in positions)  # an operation's own result is the newest there is
        if base is None or before == len(positions):
            return saved
        version = base.t._store.version
        return Overwritten(saved, version + len(positions), version + before)

    def settle(self, scalars: list[Any]) -> None:
        """The segment is launched while a backward pass goes on: numbers kept by their place in it become plain numbers."""
        for node in self.nodes:
            kept = node.kept or {}
            for name, value in kept.items():
                if isinstance(value, Saved):
                    kept[name] = _settled(value, scalars)
                elif isinstance(value, list):
                    kept[name] = [_settled(v, scalars) if isinstance(v, Saved) else v for v in value]

    def outputs(self) -> Iterator[tuple[OpNode, Any]]:
        """The nodes that keep their results, and these."""
        for node, s in self.nodes.items():
            out = s.checks[0][0] if s.recorded else s
            if node.out_shadow is not None and out is not None and out.t is not None:
                yield node, out.t


def _settled(saved: Saved, scalars: list[Any]) -> Any:
    t = saved.tensor
    if t._meta.weak:
        return scalars[t._step.index]
    if not isinstance(saved, Overwritten):
        saved.version = t._store.version  # the launch has counted the writes before it was kept
    return saved


def _followed(path: Any) -> Iterator[tuple[Step, Slot, list[Slot], list[tuple[Slot, int]]]]:
    """(step, what it makes, inputs that gradients flow to, [(what is kept for them, up to which position it may be overwritten)])."""
    grad: set[Slot] = set()
    for s in path.steps:
        if s.recorded:
            target, checks = s.checks[0][0], s.checks[1:]
            assert target is not None
            made = {base_slot(target), *view_steps(target)}
        elif s.kind == "op" and s.meta.requires_grad:
            target, checks = s, s.checks
            made = {s}
        else:
            continue
        names = [s.op.input_name(i) for i in range(len(checks))]
        inputs, kept = [], []
        for (slot, _), name in zip(checks, names, strict=True):
            rule = s.op.vjp.get(name)
            if slot is None or rule is None or not (slot in grad if isinstance(slot, Step) else slot.t._meta.requires_grad):
                continue
            inputs.append(slot)
            if "out" in rule.names:
                kept.append((target, s.position))
            kept += [(x, s.position - 1) for (x, _), n in zip(checks, names, strict=True) if x is not None and n in rule.names]
        yield s, target, inputs, kept
        grad |= made


def saves_overwritten(path: Any) -> str:
    """In words: the first operation of a path whose gradient needs what a later step overwrites; empty if there is none."""
    last = {w: s.position for s in path.steps for w in s.writes}
    if last:
        for s, _, _, kept in _followed(path):
            if any(last.get(base_slot(x), -1) > until for x, until in kept):
                return f"{s.source}: the gradient of {s.op.name} needs what is overwritten later"
    return ""


def keeping(path: Any) -> dict[Slot, tuple[int, str]]:
    """What has gradients that need something kept: (position, operator) of the step nearest to it that keeps something."""
    found: dict[Slot, tuple[int, str]] = {}
    for s, target, inputs, kept in _followed(path):
        before = [found[x] for x in inputs if x in found]
        if kept or before:
            found[target] = found[base_slot(target)] = (s.position, s.op.name) if kept else max(before)
        elif s.recorded and target is base_slot(target):
            found.pop(target, None)
    return found


def kept_for(path: Any, outputs: Sequence[Slot]) -> list[dict[Slot, Step]]:
    """For each output: the memory that eager execution would keep for its gradient, and the last step that needs it."""
    steps: list[tuple[Step, list[int], list[Slot]]] = []
    maker: dict[Slot, list[int]] = {}
    for s, target, inputs, kept in _followed(path):
        before = [i for x in inputs for i in maker.get(x, ())]
        base = base_slot(target)
        maker[target] = [len(steps)]
        if s.recorded and base is not target:
            maker[base] = maker[target] = [*maker.get(base, ()), len(steps)]
        steps.append((s, before, [base_slot(x) for x, _ in kept]))
    found = []
    for output in outputs:
        reached, stack = set(), list({*maker.get(output, ()), *maker.get(base_slot(output), ())})
        while stack:
            i = stack.pop()
            if i not in reached:
                reached.add(i)
                stack.extend(steps[i][1])
        found.append({x: steps[i][0] for i in sorted(reached) for x in steps[i][2]})
    return found


def used_up(path: Any) -> dict[Slot, str]:
    """What has gradients that need what backward passes inside the segment have let go of, and of which operator."""
    found: dict[Slot, str] = {}
    for s, target, inputs, kept in _followed(path) if path.released else ():
        name = s.op.name if kept and s.position in path.released else next((found[x] for x in reversed(inputs) if x in found), "")
        if name:
            found[target] = found[base_slot(target)] = name
        elif s.recorded and target is base_slot(target):
            found.pop(target, None)
    return found

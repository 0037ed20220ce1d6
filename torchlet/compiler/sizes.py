"""What a compiled function knows of sizes that vary: the same graph at another size gets the same kernels, with sizes as parameters.

A *family* is the graphs of one function that differ in sizes only. Its first member is compiled as it is. From the second size on
(or from the first, where sizes are expected to vary) its kernels are shared: see generalize.py. Every size still goes through the
whole compiler up to the C text, so nothing is assumed of a size that was not seen: a text that the shared one does not cover is
generalised further and compiled. Sizes 0 and 1 are apart, because broadcasting and loops treat them differently.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torchlet.compiler import generalize
from torchlet.compiler.codegen import cpu as codegen
from torchlet.compiler.fuse import Decisions
from torchlet.compiler.generalize import Text
from torchlet.compiler.graph import Builder, Graph, Node
from torchlet.compiler.load import Source, canonical, printed
from torchlet.compiler.loops import Kernel
from torchlet.compiler.recipe import key_of
from torchlet.spec import contiguous_strides

__all__ = ["Family", "Sizes", "resized"]

# attributes that hold sizes or positions; the others (dimensions, flags, formulas) say what is computed
_SIZES = frozenset(("shape", "size", "items", "count", "chain", "pads", "offset", "n", "k", "counts", "shifts", "step", "num_classes"))
MAX_FAMILIES = 1024  # of one function
MAX_PARAMETERS = 512  # of one kernel
MAX_KEYS = 64  # of one function: more graphs come in another order each time, and what was kept of them would not be found


@dataclass
class _Known:
    """A text that kernels of a family have, and the C source that is compiled for it."""

    text: Text
    source: str


class Family:
    """The graphs of one function that differ in sizes only."""

    def __init__(self, sizes: Hashable):
        self.first = sizes  # of the first member
        self.decisions: Decisions | None = None
        self.examples: list[Kernel] = []  # of the first member
        self._known: dict[tuple[str, ...], list[_Known]] = {}
        self._at: dict[int, _Known] = {}  # by position of the kernel
        self._lock = threading.Lock()

    def sources(self, kernels: Sequence[Kernel]) -> list[Source]:
        """What to compile for each kernel of a member, and the values of its parameters."""
        with self._lock:
            for i, example in enumerate(self.examples):
                self._enter(_Known(generalize.of(_text(example)), printed(example)), i)
            self.examples = []
            return [self._source(i, kernel) for i, kernel in enumerate(kernels)]

    def _source(self, i: int, kernel: Kernel) -> Source:
        texts: list[Text] = []
        for together in (None, True, False):  # as it is best, then as it may have been best at another size
            texts.append(generalize.of(_text(kernel, together)))
            for k in self._candidates(i, texts[-1]):
                values = generalize.match(k.text, texts[-1])
                if values is not None:
                    return Source(k.source, values)
        for text in texts:
            for k in self._candidates(i, text):
                general = generalize.unify(k.text, text)
                if general is not None and len(general.reals) <= MAX_PARAMETERS:
                    values = generalize.match(general, text)
                    assert values is not None, "a generalisation covers what it was made of"
                    new = self._enter(_Known(general, generalize.render(general, len(kernel.scalars))), i)
                    return Source(new.source, values, _note(generalize.differences(k.text, text)))
        new = self._enter(_Known(texts[0], generalize.render(texts[0], 0)), i)
        return Source(new.source, (), "its loops are not those of any other size")

    def _candidates(self, i: int, text: Text) -> list[_Known]:
        """What has the words of a text: what stood in its place last, then the newest."""
        known = self._known.get(text.words, [])
        here = self._at.get(i)
        return [here, *known[::-1]] if here is not None and here.text.words == text.words else known[::-1]

    def _enter(self, known: _Known, i: int) -> _Known:
        self._known.setdefault(known.text.words, []).append(known)
        self._at[i] = known
        return known


def _text(kernel: Kernel, together: bool | None = None) -> str:
    return codegen.emit(canonical(kernel), shared=True, together=together)


def _note(differences: Mapping[tuple[str, str], int]) -> str:
    shown = [f"{a} → {b}" + (f" ({n} times)" if n > 1 else "") for (a, b), n in itertools.islice(differences.items(), 4)]
    return "; ".join(shown) + ("; …" if len(differences) > 4 else "")


class Sizes:
    """The families of one compiled function. `dynamic`: True from the first size on, False never, None from the second."""

    def __init__(self, dynamic: bool | None = None):
        self.dynamic = dynamic
        self.lock = threading.RLock()
        self.past: str | None = ""  # the key of what was compiled last, and with it of all before; None where something has no key
        self.keys = 0  # so many
        self.waiting: list[Callable[[], object]] = []  # what was found on disk is not entered yet: calls that compile it, in order
        self._families: dict[Hashable, Family] = {}
        self._cuts: dict[Hashable, tuple[int, ...]] = {}

    def key(self, graph: Graph, *more: Hashable) -> str | None:
        """The key under which on disk is what compiling the graph now comes to: what was compiled before decides what is shared."""
        self.keys += 1
        self.past = None if self.past is None or self.keys > MAX_KEYS else key_of(graph, self.dynamic, self.past, *more)
        return self.past

    def catch_up(self) -> None:
        """Compile what waits."""
        with self.lock:
            while self.waiting:
                self.waiting.pop(0)()

    def enter(self, graph: Graph) -> tuple[Family | None, bool]:
        """The family of a simplified graph (None: its sizes do not vary), and whether the graph is a further member of it."""
        if self.dynamic is False:
            return None, False
        structure, sizes = _signature(graph)
        family = self._families.get(structure)
        if family is None:
            if len(self._families) >= MAX_FAMILIES:
                self._families.clear()
            family = self._families[structure] = Family(sizes)
            return family, False
        return family, family.first != sizes and family.decisions is not None

    def cut(self, joint: Graph) -> tuple[int, ...] | None:
        """What the forward half keeps for the backward half, as it was decided at another size (positions of nodes)."""
        return None if self.dynamic is False else self._cuts.get(_signature(joint)[0])

    def note_cut(self, joint: Graph, kept: Sequence[Node]) -> None:
        """Remember a cut."""
        if self.dynamic is not False:
            order = {n: i for i, n in enumerate(joint.nodes())}
            if len(self._cuts) >= MAX_FAMILIES:
                self._cuts.clear()
            self._cuts[_signature(joint)[0]] = tuple(order[n] for n in kept)


def _signature(graph: Graph) -> tuple[Hashable, Hashable]:
    """(what is computed, by which lines, of which tensors; all sizes and numbers in it)."""
    sizes: list[Any] = []
    parts: list[Hashable] = [graph.targets]

    def blind(x: Any) -> Hashable:
        if isinstance(x, tuple):
            return tuple([blind(y) for y in x])
        if isinstance(x, bool) or not isinstance(x, int | float) or x in (0, 1, -1):
            return type(x), x
        sizes.append(x)
        return "a number", isinstance(x, int)

    number: dict[Node, int] = {}
    for n in (*graph.inputs, *graph.scalars, *graph.nodes()):
        if n in number:
            continue
        number[n] = len(number)
        inputs = tuple([number[x] if isinstance(x, Node) else (blind(x),) for x in n.inputs])
        if n.op is None:
            attrs: Hashable = blind(n.attrs[1:])
        else:
            attrs = tuple([blind(a) if name in _SIZES else a for name, a in zip(n.op.attrs, n.attrs, strict=False)])
        parts.append((n.kind, n.op, inputs, attrs, blind(n.spec.shape), n.spec.dtype, n.spec.device, n.spec.weak, n.source, n.name))
    parts.append(tuple([number[n] for n in graph.outputs]))
    return tuple(parts), tuple(sizes)


# ------------------------------------------------------------------------------------------------ expected to vary


def resized(graph: Graph, marked: Mapping[int, Sequence[int]]) -> Graph | None:
    """The graph at sizes of our own invention, as a second example before a second size is met; None where that cannot be.

    `marked`: for each input that is data, the dimensions that are expected to vary. Those of one size vary together, and where the
    operators do not allow that, with all data dimensions of this size. Only a guess: what it is used for is verified otherwise.
    """
    out: Graph | None = None
    for size in sorted({graph.inputs[k].spec.shape[d] for k, dims in marked.items() for d in dims}):
        if size < 2:
            continue
        alike = [(k, d) for k in marked for d, n in enumerate(graph.inputs[k].spec.shape) if n == size]
        alone = [(k, d) for k, dims in marked.items() for d in dims if graph.inputs[k].spec.shape[d] == size]
        for chosen in (alone, alike):
            changed = _replaced(out or graph, chosen, size)
            if changed is not None:
                out = changed
                break
    return out


def _replaced(graph: Graph, chosen: Sequence[tuple[int, int]], size: int) -> Graph | None:
    taken = {n for node in graph.nodes() for n in node.spec.shape}
    new = next(n for n in itertools.count(size + size // 2 + 2) if n not in taken and all(n % p for p in (2, 3, 5, 7)))
    b = Builder()
    values: dict[Node, Any] = {}
    for k, n in enumerate(graph.inputs):
        shape = tuple(new if (k, d) in chosen else s for d, s in enumerate(n.spec.shape))
        strides = n.attrs[1]
        if shape != n.spec.shape:
            if strides != contiguous_strides(n.spec.shape):
                return None
            strides = contiguous_strides(shape)
        values[n] = b.input(n.spec.replace(shape=shape), strides, n.name, n.source)
    for n in graph.scalars:
        values[n] = b.scalar(n.spec.dtype, n.name)
    for n in graph.nodes():
        if n in values:
            continue
        assert n.op is not None
        inputs = tuple([values[x] if isinstance(x, Node) else x for x in n.inputs])
        for attrs in _attributes(n, size, new):
            try:
                values[n] = b.node(n.op, inputs, attrs, n.source)
                break
            except Exception:  # shapes that do not fit
                continue
        else:
            return None
    ends = zip(graph.outputs, graph.targets, strict=True)
    if any(t is not None and values[o].spec.shape != values[graph.inputs[t]].spec.shape for o, t in ends):
        return None
    return replace(
        graph, inputs=tuple([values[n] for n in graph.inputs]), scalars=tuple([values[n] for n in graph.scalars]),
        outputs=tuple([values[n] for n in graph.outputs]),
    )


def _attributes(n: Node, size: int, new: int) -> Iterator[tuple[Any, ...]]:
    """The node's attributes with multiples of `size` replaced: all, none, then each alone."""
    assert n.op is not None
    places: list[tuple[Any, ...]] = []

    def find(x: Any, at: tuple[int, ...]) -> None:
        if isinstance(x, tuple):
            for i, y in enumerate(x):
                find(y, (*at, i))
        elif isinstance(x, int) and not isinstance(x, bool) and x >= size and x % size == 0:
            places.append(at)

    for i, (name, a) in enumerate(zip(n.op.attrs, n.attrs, strict=False)):
        if name in _SIZES:
            find(a, (i,))

    def put(x: Any, at: tuple[int, ...], chosen: Sequence[tuple[int, ...]]) -> Any:
        if isinstance(x, tuple):
            return tuple([put(y, (*at, i), chosen) for i, y in enumerate(x)])
        return x // size * new if at in chosen else x

    yield put(n.attrs, (), places)
    if places:
        yield n.attrs
    if len(places) > 1:
        for place in places:
            yield put(n.attrs, (), [place])

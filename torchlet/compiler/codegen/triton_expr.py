"""Prints scalar expressions, addresses and stores of the loop IR as Triton text: values in blocks, each computed once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torchlet import dtypes
from torchlet.compiler.loops import Kernel, Store
from torchlet.compiler.tile import Tile, axes_of, index_axes, nodes
from torchlet.dtypes import dtype
from torchlet.expr import Expr, const_value
from torchlet.index import Axis, FloorDiv, Index, Mod
from torchlet.runtime.cuda import TensorMap

ALIGNED = 16  # of what Triton is told that a number is a multiple
_INTEGERS = ("int8", "int16", "int32", "int64", "uint8")
# what a register holds of each dtype: 16-bit floats are computed in 32 bits
REGISTER = {"float16": "tl.float32", "bfloat16": "tl.float32", "float32": "tl.float32", "float64": "tl.float64", "bool": "tl.int1"}
REGISTER |= {name: f"tl.{name}" for name in _INTEGERS}
MEMORY = {**REGISTER, "float16": "tl.float16", "bfloat16": "tl.bfloat16", "bool": "tl.uint8"}
ARGUMENT = {"float64": "tl.float64", "float32": "tl.float64", "int64": "tl.int64", "bool": "tl.int32"}
INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "and": "&", "or": "|", "xor": "^", "lshift": "<<", "rshift": ">>"}
INFIX |= {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
CALLS = {name: f"tl.{name}({{0}})" for name in ("abs", "exp", "log", "log2", "rsqrt", "sin", "cos", "erf", "floor", "ceil")}
CALLS |= {"neg": "(-{0})", "isnan": "({0} != {0})", "isinf": "(tl.abs({0}) == float('inf'))", "reciprocal": "(1.0 / {0})"}
CALLS |= {"where": "tl.where({0}, {1}, {2})", "fmod": "({0} % {1})"}
# functions of kernels.device_math
_SAME = ("sqrt", "sign", "trunc", "expm1", "log1p", "sigmoid", "tanh", "sinh", "cosh", "tan", "asin", "acos", "atan", "atan2")
HELPERS = {n: n for n in (*_SAME, "maximum", "minimum")}
HELPERS |= {"round": "round_even", "mod": "modulo", "pow": "power", "floordiv": "floor_divide"}
INTEGER_HELPERS = {**HELPERS, "pow": "integer_power", "floordiv": "floor_quotient"}
INTEGER_IDENTITY = frozenset(("floor", "ceil", "round", "trunc"))


@dataclass(frozen=True)
class Dim:
    """A tile dimension as a block sees it: the variable's text, its mask, its place in the tile's shape, its length's text."""

    text: str
    mask: str | None = None
    position: int | None = None
    length: str = "1"


# ---- blocks and their lines ------------------------------------------------------------------------------------------------------


class Block:
    """A place where lines go: the function's body (no parent) or the body of a loop."""

    def __init__(
        self, dims: dict[Axis, Dim], rank: int = 0, parent: Block | None = None, lines: list[str] | None = None, fill: bool = False
    ):
        self.dims: dict[Axis, Dim] = {**parent.dims, **dims} if parent else dims
        self.rank: int = parent.rank if parent else rank
        self.parent = parent
        self.lines: list[str] = [] if lines is None else lines
        self.memo: dict[object, str] = {}
        self.fill = fill  # masked loads give 0

    def shape(self, axes: Iterable[Axis]) -> str:
        """The block shape that spans the axes: length 1 where the tile has other dimensions."""
        lengths = ["1"] * self.rank
        for d in (self.dims[a] for a in axes):
            if d.position is not None:
                lengths[d.position] = d.length
        return f"[{', '.join(lengths)}]"

    def mask(self, axes: Iterable[Axis], *more: str) -> str | None:
        """The condition that every axis is inside its range."""
        parts = [d.mask for a, d in self.dims.items() if a in axes and d.mask] + list(more)
        return " & ".join(parts) or None


class Writer:
    """Prints values into blocks. Every value has a name or is a short text used once."""

    def __init__(self, kernel: Kernel, tile: Tile, dims: dict[Axis, Dim], rank: int = 0, grid_axes: frozenset[Axis] | None = None):
        self.kernel, self.tile = kernel, tile
        self.root = Block(dims, rank)
        self.grid_axes = frozenset(dims) if grid_axes is None else grid_axes
        self.prologue: list[str] = []
        self.helpers: set[str] = set()
        self.count = 0
        self.axes: dict[Expr, frozenset[Axis]] = {}
        self.buffers = {b.name: b for b in kernel.buffers}
        self.pointers = identifiers((b.name for b in kernel.buffers), "_ptr")
        self.scalars = identifiers((s.name for s in kernel.scalars), "_arg")
        self.maps: dict[str, tuple[TensorMap, str, tuple[int, ...]]] = {}  # name -> the map, the name of its dtype, its block
        self.sizes: dict[str, int] = {}
        # strides and starts that have been printed as arguments; None: they are printed as numbers
        self.steps: dict[int, str] | None = None
        self.starts: dict[int, str] | None = {}
        self.scalar_dtypes = {s.name: s.dtype for s in kernel.scalars}
        self.wide = wide(kernel)
        self.int = "tl.int64" if self.wide else "tl.int32"
        self.uses: dict[Expr, int] = {}
        roots = list(kernel.roots())
        for e in nodes(kernel):
            if e.op == "value":
                self.axes[e] = self.grid_axes
            for a in e.args:
                self.uses[a] = self.uses.get(a, 0) + 1
        for e in roots:
            self.uses[e] = self.uses.get(e, 0) + 1

    # -- names --

    def name(self, block: Block, hint: str, text: str) -> str:
        """A new variable for `text`."""
        found = f"{identifier(hint)}_{self.count}"
        self.count += 1
        block.lines.append(f"{found} = {bare(text)}")
        return found

    def helper(self, function: str) -> str:
        """A device function, copied into the source."""
        self.helpers.add(function)
        return function

    # -- values --

    def deps(self, e: Expr) -> frozenset[Axis]:
        """The tile dimensions that the expression varies along; results of reductions vary along the grid's."""
        return axes_of(e, self.axes)

    def home(self, axes: frozenset[Axis], block: Block) -> Block:
        """The outermost block that knows the axes."""
        while block.parent is not None and axes <= block.parent.dims.keys():
            block = block.parent
        return block

    def value(self, e: Expr, block: Block) -> str:
        """The text of an expression: a name, a literal, or a short expression in parentheses."""
        stack = [e]
        while stack:
            node = stack[-1]
            home = self.home(self.deps(node), block)
            waiting = [] if node in home.memo else [a for a in node.args if a not in self.home(self.deps(a), block).memo]
            stack += reversed(waiting)
            if not waiting:
                stack.pop()
                if node not in home.memo:
                    home.memo[node] = self.node(node, home)
        return self.home(self.deps(e), block).memo[e]

    def node(self, e: Expr, block: Block) -> str:
        if e.op == "const":
            return literal(e)
        if e.op == "value":
            raise KeyError(f"{self.kernel.name}: value '{e.attr}' is used before the reduction that makes it")
        args = [self.value(a, block) for a in e.args]
        if e.op == "load":
            return self.name(block, e.attr[0], widen(self.load(e, block), e.dtype))  # type: ignore[index]
        text = self.compute(e, args, block)
        if self.uses.get(e, 0) <= 1 and len(text) <= 48 and e.op != "philox":
            return text
        return self.name(block, e.op, text)

    def compute(self, e: Expr, args: list[str], block: Block) -> str:
        op, kind = e.op, e.args[0].dtype if e.args else e.dtype
        if op == "index":
            text = self.index(e.attr, block)  # type: ignore[arg-type]
            if not e.attr.terms:  # type: ignore[attr-defined]
                return f"tl.full([], {text}, tl.int64)"
            return f"({text})" if self.wide else f"({text}).to(tl.int64)"
        if op == "scalar":
            return convert(self.scalars[e.attr], self.scalar_dtypes[e.attr], e.dtype, stored=True)  # type: ignore[index]
        if op == "philox":
            return self.philox(e, args, block)
        if op in INFIX and e.dtype is dtypes.bool_ and not self.wide and all(map(_small_position, e.args)):
            # positions compare in 32 bits; all values being known numbers, one must still be a Triton value
            known = all(not a.attr.terms for a in e.args if a.op == "index")  # type: ignore[attr-defined]
            args = [f"({self.index(a.attr, block)})" if a.op == "index" else t for a, t in zip(e.args, args, strict=True)]  # type: ignore[arg-type]
            return f"({f'tl.full([], {args[0]}, tl.int64)' if known else args[0]} {INFIX[op]} {args[1]})"
        operands = e.args[1:] if op == "where" else e.args
        if all(a.op == "const" for a in operands) or op == "where" or (op in HELPERS and op not in ("maximum", "minimum")):
            args = [typed_literal(t, a) if a.op == "const" else t for a, t in zip(e.args, args, strict=True)]
        if op == "cast":
            return convert(args[0], kind, e.dtype)
        if op == "not":
            return f"(~{args[0]})" if kind is dtypes.bool_ else f"({args[0]} == 0)"
        if not kind.is_floating_point and op in INTEGER_IDENTITY:
            return args[0]
        if kind is dtypes.bool_ and op in ("maximum", "minimum", "mul", "add"):
            return f"({args[0]} {'|' if op in ('maximum', 'add') else '&'} {args[1]})"
        if op in INFIX:
            return f"({args[0]} {INFIX[op]} {args[1]})"
        if op in HELPERS:
            args = [bare(t) for t in args]
            if op in ("maximum", "minimum") and not kind.is_floating_point:
                return f"tl.{op}({', '.join(args)})"
            return f"{self.helper((HELPERS if kind.is_floating_point else INTEGER_HELPERS)[op])}({', '.join(args)})"
        if op == "isinf" and not kind.is_floating_point:
            return f"({args[0]} != {args[0]})"
        return CALLS[op].format(*(map(bare, args) if CALLS[op].startswith("tl.") else args))

    def philox(self, e: Expr, args: list[str], block: Block) -> str:
        """One lane of Philox4x32-10 with key = seed and counter = (index, offset); the four lanes are computed once."""
        key = ("philox", e.args)
        if key not in block.memo:
            seed, offset, index = (typed_literal(t, a) if a.op == "const" else t for a, t in zip(e.args, args, strict=True))
            words = [f"({t}).to(tl.uint32)" for x in (index, offset) for t in (x, f"{x} >> 32")]
            lanes = [f"random_{self.count}_{i}" for i in range(4)]
            self.count += 1
            block.lines.append(f"{', '.join(lanes)} = tl.philox({seed}, {', '.join(words)})")
            block.memo[key] = " ".join(lanes)
        return f"{block.memo[key].split()[e.attr]}.to(tl.int64)"  # type: ignore[call-overload]

    # -- memory --

    def index(self, index: Index, block: Block) -> str:
        """The text of an address; a sum is not in parentheses."""
        text = ""
        for term, c in index.terms:
            part = self.term(term, block)
            if abs(c) != 1:
                step: int | str = abs(c)
                if self.steps is not None and isinstance(term, Axis) and abs(c) < 2**31:
                    step = self.steps.setdefault(abs(c), f"step{len(self.steps)}")
                part = f"{part} * {step}"
            text = (f"{text} - {part}" if c < 0 else f"{text} + {part}") if text else f"-{part}" if c < 0 else part
        if index.const or not text:
            text = f"{text} {'-' if index.const < 0 else '+'} {abs(index.const)}" if text else str(index.const)
        return text

    def term(self, term: object, block: Block) -> str:
        if isinstance(term, Axis):
            return block.dims[term].text
        if isinstance(term, FloorDiv | Mod):
            return f"(({self.index(term.index, block)}) {'//' if isinstance(term, FloorDiv) else '%'} {term.divisor})"
        assert isinstance(term, Expr)
        text = self.value(term, block)
        text = typed_literal(text, term) if term.op == "const" else text
        return text if REGISTER[term.dtype.name] == self.int else f"{text}.to({self.int})"

    def address(self, buffer: str, index: Index, axes: frozenset[Axis], block: Block) -> str:
        """Pointers to `buffer[index]`, one for each point of the axes."""
        start = index.const
        if self.starts is not None and start % ALIGNED == 0 and 0 < start < 2**31:  # parts of one tensor share a binary
            text = f"{self.index(index - start, block)} + {self.starts.setdefault(start, f'start{len(self.starts)}')}"
        else:
            text = self.index(index, block)
        have = index_axes(index, self.axes)
        if have != axes and block.shape(axes) != block.shape(have):
            text = f"{text} + tl.zeros({block.shape(axes)}, {self.int})"
        return f"{self.pointers[buffer]} + {f'({text})' if '-' in text else text}"

    def load(self, e: Expr, block: Block) -> str:
        """The load as memory holds it (16-bit floats, bytes for bool)."""
        buffer, index = e.attr[0], e.attr[1]  # type: ignore[index]
        axes = self.deps(e)
        conditions = [self.value(e.args[0], block)] if e.args else []
        mask = block.mask(axes, *conditions)
        other = ""
        if len(e.args) > 1:
            other = f", other={self.value(e.args[1], block)}"
        elif (e.args or block.fill) and mask:
            other = ", other=0.0" if e.dtype.is_floating_point else ", other=0"
        return f"tl.load({self.address(buffer, index, axes, block)}{f', mask={mask}' if mask else ''}{other})"

    def stores(
        self, stores: Iterable[Store], block: Block, axes: frozenset[Axis], other: Callable[[Store, str], str | None] | None = None
    ) -> None:
        """Evaluate all the values, then store them, so that a store cannot change what another one reads. `axes`: the tile's dimensions.

        `other` may give another line that stores a value.
        """
        ready = [(s, self.value(s.value, block)) for s in stores]
        for s, text in ready:
            if other is not None and (line := other(s, text)):
                block.lines.append(line)
                continue
            if s.mode == "add":
                self.add(s, text, block, axes)
                continue
            spans = index_axes(s.index, self.axes) | self.deps(s.value)
            mask = block.mask(spans)
            block.lines.append(f"tl.store({self.address(s.buffer, s.index, spans, block)}, {bare(text)}{f', mask={mask}' if mask else ''})")

    def add(self, s: Store, text: str, block: Block, axes: frozenset[Axis]) -> None:
        """A store that every point of the tile adds to; points that all meet in one cell are summed before."""
        kind = MEMORY[self.buffers[s.buffer].dtype.name]
        shape, mask = block.shape(axes), block.mask(axes)
        text = f"tl.full({shape}, {text}, {REGISTER[s.value.dtype.name]})" if s.value.op == "const" else text
        if s.value.op != "const" and self.deps(s.value) != axes and shape != "[]":
            text = f"tl.broadcast_to({text}, {shape})"
        if not index_axes(s.index, self.axes) and shape != "[]":
            text = f"tl.sum({f'tl.where({mask}, {text}, 0)' if mask else text})"
            axes, mask = frozenset(), None
        masked = f", mask={mask}" if mask else ""
        block.lines.append(f'tl.atomic_add({self.address(s.buffer, s.index, axes, block)}, {text}.to({kind}){masked}, sem="relaxed")')


# ---- texts -----------------------------------------------------------------------------------------------------------------------


def _small_position(e: Expr) -> bool:
    return e.op == "index" or (e.op == "const" and abs(const_value(e)) < 2**31)


def wide(kernel: Kernel) -> bool:
    """True when positions need 64 bits (tiles may reach a little beyond the last element)."""
    limit = 2**31 - 2**20
    if kernel.points >= limit or any(b.size >= limit for b in kernel.buffers):
        return True
    bounds = [e.attr.bounds() for e in nodes(kernel) if e.op == "index"]  # type: ignore[attr-defined]
    return any(b is not None and max(-b[0], b[1]) >= limit for b in bounds)


def literal(e: Expr) -> str:
    value = const_value(e)
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return f"float('{value}')"
    text = repr(value)
    return f"({text})" if text.startswith("-") else text


def typed_literal(text: str, e: Expr) -> str:
    """A number as a Triton value of its dtype."""
    return f"tl.full([], {text}, {REGISTER[e.dtype.name]})"


def convert(text: str, source: dtype, to: dtype, stored: bool = False) -> str:
    """A cast between register values; 16-bit floats are rounded and kept in 32 bits. `stored`: a scalar argument, float64 or int64."""
    if to is dtypes.bool_:
        return f"({text} != 0)"
    have = ARGUMENT[source.name] if stored else REGISTER[source.name]
    want = REGISTER[to.name]
    if to in (dtypes.float16, dtypes.bfloat16):
        return f"{text}{'' if have == 'tl.float32' else '.to(tl.float32)'}.to({MEMORY[to.name]}).to(tl.float32)"
    if have == want:
        return text
    if source.is_floating_point and to in (dtypes.int8, dtypes.int16, dtypes.uint8):
        return f"{text}.to(tl.int32).to({want})"  # straight to 8 bits is undefined beyond their range
    return f"{text}.to({want})"


def widen(text: str, kind: dtype) -> str:
    """A loaded value as registers hold it."""
    if kind in (dtypes.float16, dtypes.bfloat16):
        return f"{text}.to(tl.float32)"
    return f"{text} != 0" if kind is dtypes.bool_ else text


def identifier(name: str) -> str:
    """A Python identifier made from any name."""
    text = re.sub(r"\W", "_", name, flags=re.ASCII)
    return text if text and not text[0].isdigit() else f"_{text}"


def identifiers(names: Iterable[str], suffix: str) -> dict[str, str]:
    """Distinct identifiers for the names, in order."""
    found: dict[str, str] = {}
    for name in names:
        text = identifier(name) + suffix
        while text in found.values():
            text = f"_{text}"
        found[name] = text
    return found


def bare(text: str) -> str:
    """The text without parentheses around all of it."""
    if not (text.startswith("(") and text.endswith(")")):
        return text
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0 and i < len(text) - 1:
            return text
    return text[1:-1] if "," not in text else text

"""Prints attention as one call of the runtime's `tl_attention.c`, which gets sizes and strides and finds the matrices by itself."""

from __future__ import annotations

from collections.abc import Sequence

from torchlet import dtypes
from torchlet.compiler.attention import Attention, Operand
from torchlet.compiler.codegen import c_expr
from torchlet.compiler.generalize import SIZES
from torchlet.compiler.loops import Buffer, Kernel

__all__ = ["emit_attention"]

_FIELDS = {"dv": "dv_"}  # in C, where dv is the width of values


def emit_attention(kernel: Kernel, body: Attention, shared: bool) -> list[str]:
    """The lines of the C function. `shared`: sizes may become parameters of it."""
    mask = next((kernel.buffers[o.buffer].dtype for o in body.operands if o.name == "mask"), None)
    kind = 0 if mask is None else 1 if mask is dtypes.bool_ else 2
    return [
        f"void {kernel.name}(char *const *restrict b, const int64_t *restrict s, int tid, int nth) {{",
        *([f"    {SIZES}"] if shared else []),
        "    (void)s;",
        "    const tl_attention a = {",
        f"        .n_stack = {len(body.stack)}, .stack = {_list(body.stack)},",
        f"        .rows = {body.rows}, .columns = {body.columns}, .d = {body.d}, .dv = {body.dv}, .group = {body.group},",
        f"        .causal = {int(body.causal)}, .mask_kind = {kind}, .scale = {c_expr.constant(body.scale, dtypes.float32)},",
        *(f"        .{_FIELDS.get(o.name, o.name)} = {_matrices(o, kernel.buffers)}," for o in body.operands),
        "    };",
        f"    tl_attention_{'forward' if body.part == 'forward' else 'backward'}(&a, tid, nth);",
        "}",
    ]


def _matrices(o: Operand, buffers: Sequence[Buffer]) -> str:
    kind = c_expr.MEMORY[buffers[o.buffer].dtype]
    return f"{{({kind} *)b[{o.buffer}] + {o.start}, {_list(o.stack)}, {o.row}, {o.column}}}"


def _list(numbers: Sequence[int]) -> str:
    return f"{{{', '.join(map(str, numbers)) or '0'}}}"

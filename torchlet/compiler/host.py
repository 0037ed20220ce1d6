"""The launch of a program: addresses in, one native call, arrays out; by the C walk, or as straight-line Python without loops.

The Python is the specification of what the C walk does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

from torchlet.compiler.execute import Executable
from torchlet.runtime.cpu import arena
from torchlet.runtime.walk import walk
from torchlet.tensor import Storage, Tensor


def emit_launch(
    executable: Executable,
    inputs: int,
    pools: list[bool],
    scalars: list[int],
    written: list[tuple[str, int]],
    bound: list[tuple[int, bool]],
    returns: bool,
) -> str:
    """The text of `launch(numbers)`.

    `inputs`: how many outside tensors (slots i0, i1, …). `pools[k]`: output k has fresh memory (entries n_k, else it is written
    into an input). `scalars`: which of the call's numbers are used. `written`: (slot, how often it is overwritten). `bound`: (output,
    its backward was used up) of each visible tensor (slots d0, d1, …). `returns`: give back the entries instead of nothing.
    """
    lines = ["def launch(numbers):"]
    lines += [f"    a{i} = i{i}.t._ptr or address(i{i}.t)" for i in range(inputs)]
    for k, fresh in enumerate(pools):
        if fresh:
            lines += [f"    e{k} = n{k}[0]", f"    if refcount(e{k}[0]) != unheld:", f"        e{k} = take{k}()"]
    addresses = [f"a{i}" for i in range(inputs)] + [f"e{k}[1]" if fresh else "0" for k, fresh in enumerate(pools)]
    values = [f"numbers[{i}]" for i in scalars]
    if executable.is_single:
        if executable.arena_bytes:
            lines += [
                f"    if arena({executable.arena_bytes}) != executable._base:",
                f"        executable._move(arena({executable.arena_bytes}))",
            ]
        lines += [f"    pack_pointers(pointers, 0, {', '.join(addresses)})"]
        if values:
            lines += [f"    pack_scalars(scalars, 0, {', '.join(values)})"]
        lines += ["    if native(argument):", "        fail()"]
    else:
        lines += [f"    run([{', '.join(addresses[:inputs])}], [{', '.join(addresses[inputs:])}], [{', '.join(values)}])"]
    lines += [f"    {name}.t._store.version += {n}" for name, n in written]
    for j, (k, released) in enumerate(bound):
        lines += [f"    t = d{j}.t", f"    t._np, t._ptr = e{k}", f"    d{j}.t = None"]
        if released:
            lines += [f"    t._node, t._out = u{j}, 0"]
    if returns:
        lines += [f"    return [{', '.join(f'e{k}' if fresh else 'nothing' for k, fresh in enumerate(pools))}]"]
    return "\n".join(lines) + "\n"


def bind_launch(source: str, executable: Executable, names: dict[str, Any]) -> Callable[[Any], Any]:
    """The function of an emitted launch."""
    scope = dict(names, arena=arena, executable=executable, run=executable.run)
    if executable.is_single:
        program = executable.programs[0]
        scope |= dict(
            pack_pointers=executable._pack_pointers, pack_scalars=executable._pack_scalars, pointers=memoryview(program.pointers).cast("B"),
            scalars=memoryview(program.scalars).cast("B"), native=program.native, argument=program.argument, fail=program.fail,
        )
    exec(compile(source, "<launch>", "exec"), scope)
    return scope["launch"]  # type: ignore[no-any-return]


def c_launch(
    executable: Executable, inputs: list[Any], pools: list[Any], scalars: list[int], written: list[tuple[str, int]],
    bound: list[tuple[Any, int, Any]], returns: bool, names: dict[str, Any],
) -> Callable[[Any], Any] | None:
    """`launch(numbers)` in C; None where there is no C walk, or where a run is more than one native call.

    As in `emit_launch`, but with the slots themselves in `inputs`, the pools in `pools`, and in `bound` (slot, output, tape node or None).
    """
    c = walk()
    if c is None or not executable.is_single:
        return None
    c.know(Tensor, Storage)
    program = executable.programs[0]
    nbytes = executable.arena_bytes
    return c.Launch(  # type: ignore[no-any-return]
        inputs=inputs, pools=[None if p is None else (p.entries, p.take) for p in pools], indices=tuple(scalars),
        kinds=executable._kinds, written=[(names[name], n) for name, n in written], bound=bound, returns=returns, address=names["address"],
        arena=partial(arena, nbytes) if nbytes else None, move=executable._move, nothing=names["nothing"],
        pack=partial(executable._pack_scalars, memoryview(program.scalars).cast("B"), 0), fail=program.fail, owner=(executable, program),
        pointers=ctypes.addressof(program.pointers), scalars=ctypes.addressof(program.scalars),
        argument=ctypes.addressof(program._program), function=ctypes.cast(program.native, ctypes.c_void_p).value, brief=program.is_brief,
    )

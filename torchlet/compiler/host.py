"""The launch of a program as straight-line Python: addresses in, one native call, arrays out, without loops over what is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchlet.compiler.execute import Executable
from torchlet.runtime.cpu import arena


def emit_launch(
    executable: Executable,
    inputs: int,
    pools: list[bool],
    scalars: list[int],
    written: list[tuple[int, int]],
    bound: list[tuple[int, bool]],
    returns: bool,
) -> str:
    """The text of `launch(numbers)`.

    `inputs`: how many outside tensors (slots i0, i1, …). `pools[k]`: output k has fresh memory (entries n_k, else it is written
    into an input). `scalars`: which of the call's numbers are used. `written`: (input, how often it is overwritten). `bound`: (output,
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
        if executable.plan.arena_bytes:
            lines += [
                f"    if arena({executable.plan.arena_bytes}) != executable._base:",
                f"        executable._move(arena({executable.plan.arena_bytes}))",
            ]
        lines += [f"    pack_pointers(pointers, 0, {', '.join(addresses)})"]
        if values:
            lines += [f"    pack_scalars(scalars, 0, {', '.join(values)})"]
        lines += ["    if native(argument):", "        fail()"]
    else:
        lines += [f"    run([{', '.join(addresses[:inputs])}], [{', '.join(addresses[inputs:])}], [{', '.join(values)}])"]
    lines += [f"    i{i}.t._store.version += {n}" for i, n in written]
    for j, (k, released) in enumerate(bound):
        lines += [f"    t = d{j}.t", f"    t._np, t._ptr = e{k}", f"    d{j}.t = None"]
        if released:
            lines += ["    t._node, t._out = used_up, 0"]
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

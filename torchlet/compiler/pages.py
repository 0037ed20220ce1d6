"""The pages of the debug dump: one function for each file of a compiled segment's folder."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import linecache
import os
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torchlet.compiler import tile
from torchlet.compiler.codegen import cpu as c_codegen
from torchlet.compiler.codegen import triton as triton_codegen
from torchlet.compiler.execute import Executable
from torchlet.compiler.graph import Graph, Names, identifier, to_text
from torchlet.compiler.launch import CudaExecutable
from torchlet.compiler.loop_text import PRELUDE, readable, to_python
from torchlet.compiler.loop_text import to_text as loops_to_text
from torchlet.compiler.loops import Kernel, data_terms
from torchlet.compiler.offline import compile_kernel
from torchlet.compiler.schedule import Extern, KernelLaunch, Plan, Slot
from torchlet.expr import walk
from torchlet.index import of

__all__ = ["CPU_BANDWIDTH", "CPU_FLOPS", "Entry", "Half", "LabelledKernel", "cpu_roofline_us", "index_limits", "pages", "places", "short"]

CPU_BANDWIDTH = 22e9  # bytes/s of memory of the machine that the kernels were first measured on
CPU_FLOPS = 130e9  # float32 operations a second of one of its cores
TARGET = "cuda:90"


def cpu_roofline_us(kernel: Kernel) -> float:
    """The least time of a run in microseconds that memory and one core's arithmetic allow: a scale for comparisons, not a measurement."""
    return max(tile.bytes_moved(kernel) / CPU_BANDWIDTH, tile.flops(kernel) / CPU_FLOPS) * 1e6


def short(text: str) -> str:
    """Paths below the working folder as relative ones."""
    return text.replace(os.getcwd() + os.sep, "")


def places(origin: Iterable[str]) -> str:
    """The user's lines in short: `train.py:12,14 model.py:7`."""
    files: dict[str, list[str]] = {}
    for place in origin:
        file, _, line = short(place).rpartition(":")
        files.setdefault(file, []).append(line)
    return " ".join(f"{file}:{','.join(sorted(set(numbers), key=lambda n: (len(n), n)))}" for file, numbers in files.items())


# ------------------------------------------------------------------------------------------------ what is dumped


@dataclass(frozen=True)
class LabelledKernel:
    """A launch with its number in the folder."""

    label: str  # k01_softmax_3f2a
    launch: KernelLaunch
    half: Half

    @property
    def kernel(self) -> Kernel:
        """The loop nest, with short paths and axes that do not depend on what was compiled before."""
        k = readable(self.launch.kernel)
        return replace(k, origin=tuple(short(o) for o in k.origin))

    @property
    def in_c(self) -> bool:
        """True where C is made of it: always but for kernels written by hand on a GPU."""
        return self.kernel.body is None or not isinstance(self.half.exe, CudaExecutable)


@dataclass(frozen=True)
class Half:
    """One executable of a segment: "forward" (also where there is no backward pass outside) or "backward"."""

    title: str
    exe: Executable
    first: int  # number of its first kernel

    @cached_property
    def kernels(self) -> list[LabelledKernel]:
        """Its launches."""
        launches = [s for s in self.exe.plan.steps if isinstance(s, KernelLaunch)]
        return [LabelledKernel(f"k{i:02}_{s.kernel.name}", s, self) for i, s in enumerate(launches, self.first)]


@dataclass
class Entry:
    """A program that was compiled, as the dump sees it."""

    function: Any
    path: Any
    program: Any
    scalars: Sequence[float | int | bool]
    folder: str = ""
    watched: list[Any] = field(default_factory=list)  # executables that tell when their tiles have changed

    @property
    def name(self) -> str:
        """The compiled function's name."""
        return str(self.function.name)

    @property
    def halves(self) -> list[Half]:
        """What was compiled so far."""
        found: list[Half] = []
        backward = self.program.backward
        for title, exe in (("forward", self.program.executable), ("backward", backward.executable if backward is not None else None)):
            if exe is not None:
                found.append(Half(title, exe, 1 + sum(len(h.kernels) for h in found)))
        return found

    @property
    def kernels(self) -> list[LabelledKernel]:
        """All launches."""
        return [k for h in self.halves for k in h.kernels]


def pages(entry: Entry, ptx: bool) -> dict[str, str]:
    """Every file of the entry's folder: relative path -> text. `ptx`: also what Triton compiles the kernels to (slow)."""
    program = entry.program
    out = {"0_source.py": source(entry), "paths.txt": paths(entry), "times.json": times(entry)}
    if program.stepwise:
        out["1_graph.py"] = f"# not compiled, run step by step: {program.stepwise}\n"
        return out
    backward = program.backward
    note = "" if backward is not None else "# no gradient is wanted outside of this segment: there is no 2_joint.py and no 3_backward.py\n"
    out["1_graph.py"] = note + graph(program.segment.graph)
    if backward is not None:
        out["2_joint.py"] = kept(backward) + graph(backward.joint)
    for half in entry.halves:
        simplified = graph(half.exe.stages["simplified"])
        out[f"3_{half.title}.py"] = "# composite operators are opened, algebra is simplified: this is what is fused\n" + simplified
    if backward is not None and backward.executable is None:
        out["3_backward.py"] = "# compiled when the first backward pass asks for it; before simplification:\n" + graph(backward.graph)
    out["4_fused.txt"] = "\n".join(fused(h) for h in entry.halves)
    out["5_memory.txt"] = "\n".join(memory(h) for h in entry.halves)
    for k in entry.kernels:
        base = f"6_kernels/{k.label}"
        if k.in_c:
            out[f"{base}.c"] = c_source(k.kernel)
        out.update({f"{base}{end}": text for end, text in triton_source(k.kernel, ptx).items()})
        out[f"{base}_run.py"] = kernel_script(entry, k)
    if any("shared" in h.exe.stages for h in entry.halves):
        out["6_kernels/sizes.txt"] = "\n".join(sizes(h) for h in entry.halves if "shared" in h.exe.stages)
    if chosen := "".join(f"{c.untimed}\n" for h in entry.halves for c in h.exe.choices()):
        out["6_kernels/tiles.txt"] = "# which tile each kernel has, why, and the candidates; what was timed: times.json\n" + chosen
    out["7_host.py"] = "\n\n".join(host(h) for h in entry.halves)
    out["repro.py"] = repro(entry)
    return out


# ------------------------------------------------------------------------------------------------ 0 source


def source(entry: Entry) -> str:
    """The user's functions with line numbers, and beside each line the kernels that it went to."""
    table: dict[tuple[str, int], list[str]] = {}
    for k in entry.kernels:
        for place in k.launch.kernel.origin:
            file, _, line = place.rpartition(":")
            table.setdefault((file, int(line) if line.isdigit() else 0), []).append(k.label.split("_")[0])
    blocks: dict[tuple[str, int, int], None] = {}
    if (own := _own_lines(entry.function.function)) is not None:
        blocks[own] = None
    for file, number in sorted(table):
        if not any(f == file and first <= number <= last for f, first, last in blocks):
            blocks[_enclosing(file, number)] = None
    lines = [f"# {entry.name}: right of each line its number and the kernels that compute it (6_kernels/)"]
    for file, first, last in blocks:
        lines += ["", f"# {short(file)}"]
        text = textwrap.dedent("".join(linecache.getline(file, n) or "\n" for n in range(first, last + 1))).splitlines()
        width = min(max(map(len, text), default=0), 100)
        for number, code in enumerate(text, first):
            who = " ".join(dict.fromkeys(table.get((file, number), ())))
            lines.append(f"{code.ljust(width)}  # {number:4}  {who}".rstrip())
    return "\n".join(lines) + "\n"


def _own_lines(function: Any) -> tuple[str, int, int] | None:
    """File, first and last line of the compiled function; of a module's forward."""
    owner = getattr(function, "__self__", None)
    if owner is not None and hasattr(owner, "forward") and hasattr(owner, "named_parameters"):
        function = owner.forward
    try:
        function = inspect.unwrap(function)
        text, first = inspect.getsourcelines(function)
        return inspect.getsourcefile(function) or "", first, first + len(text) - 1
    except (OSError, TypeError):
        return None


def _enclosing(file: str, line: int) -> tuple[str, int, int]:
    """The innermost function around a line, or the line alone."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return file, line, line
    found = (file, line, line)
    for node in ast.walk(tree):  # outer functions come before inner ones
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            last = node.end_lineno or node.lineno
            if node.lineno <= line <= last:
                found = (file, node.lineno, last)
    return found


# ------------------------------------------------------------------------------------------------ 1 to 3 graphs


def graph(g: Graph) -> str:
    """A graph as typed Python, with short paths."""
    return short(to_text(g))


def kept(backward: Any) -> str:
    """What the forward pass keeps for the backward pass."""
    g = backward.joint
    names = Names.of_graph(g)
    for n in g.nodes():
        names.of(n)
    lines = ["# forward and backward in one graph; kept from one for the other (a minimum cut by bytes: cheap operations are done again):"]
    for n in backward.kept_nodes:
        what = "an input, costs nothing" if n.kind == "input" else "stored by the forward pass"
        lines.append(f"#   {names.of(n)}: {n.spec}, {n.spec.numel * n.spec.dtype.itemsize} bytes, {what}")
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------ 4 fused


def fused(half: Half) -> str:
    """The kernels and what flows between them, the loop nests, and why fusions were refused."""
    nx = importlib.import_module("networkx")  # half of what it takes to load the compiler, for a dump alone

    steps = half.exe.plan.steps
    labels = {id(k.launch): k.label for k in half.kernels}
    natives = getattr(half.exe, "natives", [])

    def outside(step: KernelLaunch | Extern) -> str:
        assert isinstance(step, Extern) and step.node.op is not None
        return f"{'native' if step.node in natives else 'extern'} {step.node.op.name}"

    names = [labels.get(id(s)) or f"{outside(s)} (step {i})" for i, s in enumerate(steps)]
    dag = nx.DiGraph()
    dag.add_nodes_from(names)
    writer: dict[Slot, str] = {}
    for name, step in zip(names, steps, strict=True):
        reads, writes = _touched(step)
        dag.add_edges_from((writer[s], name) for s in reads if s in writer and writer[s] != name)
        writer.update(dict.fromkeys(writes, name))
    lines = [f"{half.title}: {len(half.kernels)} kernels, {len(half.exe.externs)} extern calls", "", *nx.generate_network_text(dag), ""]
    for k in half.kernels:
        lines.append(f"{k.label}: {facts(k.kernel)}")
        lines.append(textwrap.indent(loops_to_text(k.kernel), "    "))
    for n in natives:
        lines.append(f"native {n.op.name if n.op else n.kind}: a function of the C runtime  {short(n.source)}")
    for n in half.exe.externs:
        lines.append(f"extern {n.op.name if n.op else n.kind}: its operator has no loops, it runs as NumPy  {short(n.source)}")
    refused = half.exe.stages["fused"].refused
    lines.append("fusions that were refused" if refused else "no fusion was refused")
    lines += [f"    {a} with {b}: {why}" for a, b, why in refused]
    return "\n".join(lines) + "\n"


def facts(k: Kernel) -> str:
    """Bytes, operations and bounds of a kernel in one line."""
    cost = f"{_amount(tile.bytes_moved(k), 'B')} moved, {_amount(tile.flops(k), 'FLOP')}"
    return f"{cost}, at least {cpu_roofline_us(k):.3g} us on one core, {tile.roofline_us(k, TARGET):.3g} us on {TARGET}"


def _amount(n: float, unit: str) -> str:
    prefixes = iter(("", "k", "M", "G", "T"))
    prefix = next(prefixes)
    while n >= 1000 and prefix != "T":
        n, prefix = n / 1000, next(prefixes)
    return f"{n:.4g} {prefix}{unit}"


def _touched(step: KernelLaunch | Extern) -> tuple[list[Slot], list[Slot]]:
    """Places that a step reads, and those that it writes."""
    if isinstance(step, Extern):
        return [p[0] for p in step.inputs if p is not None], [step.output]
    pairs = list(zip(step.kernel.buffers, step.slots, strict=True))
    return [s for b, s in pairs if b.role != "output"], [s for b, s in pairs if b.role != "input"]


# ------------------------------------------------------------------------------------------------ 5 memory


def memory(half: Half) -> str:
    """Buffers with their lifetimes drawn over the steps, reuse, and the peak."""
    plan = half.exe.plan
    lines = [f"{half.title}: {len(plan.steps)} steps"]
    for title, nodes in (("inputs", plan.graph.inputs), ("outputs", plan.graph.outputs)):
        lines.append(f"{title}: {sum(n.spec.numel * n.spec.dtype.itemsize for n in nodes)} bytes in {len(nodes)} tensors")
    lines.append(f"arena: {plan.arena_bytes} bytes at the peak, {sum(b.nbytes for b in plan.lifetimes)} bytes if no memory were used twice")
    width = max((len(b.name) for b in plan.lifetimes), default=0)
    for b in sorted(plan.lifetimes, key=lambda b: (b.first, b.slot.number)):
        bar = "".join("#" if b.first <= i <= b.last else "." for i in range(len(plan.steps)))
        reuse = f"  in place of {b.reuses}" if b.reuses else ""
        lines.append(f"    {b.name.ljust(width)} {b.nbytes:>10} bytes at {b.slot.number:>8}  {bar}{reuse}")
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------ 6 kernels


def _header(kernel: Kernel, comment: str) -> str:
    lines = [", ".join(kernel.origin) or "no line of yours", facts(kernel)]
    lines += [f"{b.name}: {b.dtype.name}[{b.size}], {b.role}" for b in kernel.buffers]
    lines += [f"{s.name}: a number ({s.dtype.name})" for s in kernel.scalars]
    return "".join(f"{comment} {line}\n" for line in lines)


def c_source(kernel: Kernel) -> str:
    """The C that runs, under the user's names."""
    return _header(kernel, "//") + c_codegen.emit(replace(kernel, origin=()))


def sizes(half: Half) -> str:
    """Which kernels serve all sizes, with what numbers they are called here, and the C of those that were not there before."""
    lines = [f"{half.title}: the sizes of this segment differ from those that were met before, so its kernels are shared with them"]
    for k, s in zip(half.kernels, half.exe.stages["shared"], strict=True):
        how = f"with {', '.join(f'size{i} = {v}' for i, v in enumerate(s.values))}" if s.values else "the same at every size"
        lines.append(f"\n{k.label}: {how if not s.note or s.values else 'alone'}" + (f"; new, because {s.note}" if s.note else ""))
        if s.note:
            lines.append(textwrap.indent(s.text, "    "))
    return "\n".join(lines) + "\n"


def triton_source(kernel: Kernel, ptx: bool) -> dict[str, str]:
    """File ending -> text: the Triton kernel, and on request its PTX, TTIR and resources."""
    header = _header(kernel, "#")
    try:
        emitted = triton_codegen.emit(kernel, TARGET)
    except Exception as error:  # a dump shows problems, it does not make any
        return {".py": f"{header}# no Triton kernel: {type(error).__name__}: {error}\n"}
    out: dict[str, str] = {}
    header += f"# for {TARGET}: grid {emitted.grid}, {emitted.num_warps} warps, {emitted.num_stages} stages, {dict(emitted.constexprs)}\n"
    if ptx:
        try:
            built = compile_kernel(emitted, TARGET)
            header += f"# {built.registers} registers, {built.spill_bytes} bytes spilled, {built.shared_bytes} bytes of shared memory\n"
            out |= {".ptx": built.ptx or "", ".ttir": built.ttir}
        except Exception as error:  # whatever Triton says about its input is what the reader wants to see
            header += f"# Triton could not compile it: {type(error).__name__}: {str(error).splitlines()[0]}\n"
    return {".py": header + emitted.source, **out}


def index_limits(kernel: Kernel) -> dict[str, int]:
    """For each integer buffer whose elements are used as positions: how many values stay inside the memory that they point into."""
    sizes = {b.name: b.size for b in kernel.buffers}
    accesses: list[Any] = [e.attr for e in walk(*kernel.roots()) if e.op == "load"]
    accesses += [(s.buffer, s.index) for p in kernel.phases for s in p.stores]
    found: dict[str, int] = {}
    for name, index in accesses:
        for term in data_terms(index):
            c = index.coefficient(term)
            rest = (index - of(term) * c).bounds()
            room = sizes[name] - 1 - (rest[1] if rest else 0)
            for e in walk(term):
                if e.op == "load" and not e.dtype.is_floating_point:
                    found[e.attr[0]] = max(1, min(found.get(e.attr[0], room // abs(c) + 1), room // abs(c) + 1))  # type: ignore[index]
    return found


def kernel_script(entry: Entry, k: LabelledKernel) -> str:
    """A program that runs the kernel alone."""
    numbers = {s.name: entry.scalars[i] for s, i in zip(k.kernel.scalars, k.launch.scalars, strict=True) if i < len(entry.scalars)}
    arguments = f"limits={index_limits(k.kernel)!r}, numbers={numbers!r}" + ("" if k.in_c else ", in_c=False")
    return (
        f'"""{k.label} of {entry.name}, alone. Options: --check, --time, --triton, --source FILE."""\n\n'
        "import sys\nfrom math import inf, nan  # numbers may be\n\n"
        f"from torchlet.compiler.rerun import kernel_script\n{PRELUDE}\n{to_python(k.kernel)}\n"
        f'if __name__ == "__main__":\n    sys.exit(kernel_script(kernel, {arguments}))\n'
    )


# ------------------------------------------------------------------------------------------------ 7 host


def host(half: Half) -> str:
    """The launch plan as Python: what is called in which order on which memory."""
    plan = half.exe.plan
    label = {id(k.launch): k.label for k in half.kernels}
    fixed = _outside_names(plan)
    ends = {b.reuses: b.last for b in plan.lifetimes}

    def name(slot: Slot, step: int) -> str:
        """What lies there before the step; a value that the step makes there only where nothing else does."""
        if slot in fixed:
            return fixed[slot]
        alive = [b for b in plan.lifetimes if b.slot == slot and b.first <= step <= b.last]
        return next((b.name for b in alive if not (b.reuses and b.first == step)), alive[0].name if alive else str(slot))

    numbers = [f"number_{i}" for i in range(len(plan.graph.scalars))]
    inputs = [fixed[Slot("input", j)] for j in range(len(plan.graph.inputs))]
    outputs = [fixed[Slot("output", k)] for k, t in enumerate(plan.graph.targets) if t is None]
    lines = [f"def {identifier(plan.name)}({', '.join([*inputs, *numbers])}, *, out, arena):"]
    lines.append(f"    ({', '.join(outputs)},) = out" if outputs else "    # no output but those that are overwritten")
    for i, step in enumerate(plan.steps):
        fresh = [b for b in plan.lifetimes if b.first == i and not b.reuses]
        lines += [f"    {b.name} = arena[{b.slot.number}:{b.slot.number + b.nbytes}]" for b in fresh]
        if isinstance(step, KernelLaunch):
            arguments = [name(s, i) for s in step.slots] + [numbers[k] for k in step.scalars]
            writes = [name(s, i) for b, s in zip(step.kernel.buffers, step.slots, strict=True) if b.role != "input"]
            lines.append(f"    {label[id(step)]}({', '.join(arguments)})  # writes {', '.join(dict.fromkeys(writes))}")
        else:
            op = step.node.op
            assert op is not None
            given = [name(p[0], i) if p is not None else repr(x) for x, p in zip(step.node.inputs, step.inputs, strict=True)]
            given += [f"{a}={v!r}" for a, v in zip(op.attrs, step.node.attrs, strict=False)]
            lines.append(f"    {name(step.output, i)}[...] = numpy_{op.name}({', '.join(given)})  # an extern call")
        lines += [f"    {b.name} = {b.reuses}  # was overwritten with it" for b in plan.lifetimes if b.first == i and b.reuses]
        over = [b.name for b in plan.lifetimes if b.last == i and b.name not in ends]
        lines += [f"    del {', '.join(over)}"] if over else []
    targets = [inputs[t] for t in plan.graph.targets if t is not None]
    lines.append(f"    return {', '.join(outputs) or None}" + (f"  # overwritten: {', '.join(targets)}" if targets else ""))
    return f"# arena: {plan.arena_bytes} bytes\n" + "\n".join(lines) + "\n"


def _outside_names(plan: Plan) -> dict[Slot, str]:
    """Names of the inputs' and outputs' memory."""
    graph_names = Names.of_graph(plan.graph)
    names = {Slot("input", j): graph_names.of(n) for j, n in enumerate(plan.graph.inputs)}
    for step in plan.steps:
        if isinstance(step, KernelLaunch):
            for b, s in zip(step.kernel.buffers, step.slots, strict=True):
                if s.kind == "output":
                    names.setdefault(s, b.name)
    for k, n in enumerate(plan.graph.outputs):
        names.setdefault(Slot("output", k), graph_names.of(n))
    return names


# ------------------------------------------------------------------------------------------------ repro, paths, times


def repro(entry: Entry) -> str:
    """A program that runs the segment's graphs as plain calls, compiled against eager."""
    lines = [
        f'"""{entry.name} as plain torchlet calls on seeded inputs, compiled against eager: python repro.py"""', "",
        "import sys", "from math import inf, nan  # numbers may be", "",
        "import torchlet as torch", "from torchlet.compiler.rerun import graph_script, ops", "",
    ]
    rows = []
    for half in entry.halves:
        g: Graph = half.exe.stages["graph"]
        lines += ["", graph(g)]
        limits = _input_limits(half.exe.plan)
        tensors = [f"({tuple(n.spec.shape)!r}, torch.{n.spec.dtype.name}, {limits.get(j, 2)})" for j, n in enumerate(g.inputs)]
        numbers = [entry.scalars[i] if i < len(entry.scalars) else 0.5 for i in range(len(g.scalars))]
        names = [(g.output_names[k] if g.output_names else "") or f"output {k}" for k in range(len(g.outputs))]
        rows.append(f"    ({identifier(g.name)}, [{', '.join(tensors)}], {numbers!r}, {names!r}),")
    lines += ["", 'if __name__ == "__main__":', "    sys.exit(graph_script(["]
    lines.append("        # function, (shape, dtype, limit of integers) of each tensor, numbers, names of the results")
    lines += [f"    {row}" for row in rows] + ["    ]))"]
    return "\n".join(lines) + "\n"


def _input_limits(plan: Plan) -> dict[int, int]:
    """For integer inputs of the graph: the values that are legal positions."""
    found: dict[int, int] = {}
    for step in plan.steps:
        if isinstance(step, KernelLaunch):
            limits = index_limits(step.kernel)
            for b, slot in zip(step.kernel.buffers, step.slots, strict=True):
                if slot.kind == "input" and b.name in limits:
                    found[slot.number] = min(found.get(slot.number, limits[b.name]), limits[b.name])
    return found


def paths(entry: Entry) -> str:
    """The function's paths so far: how the call was followed, and where and why each segment ended."""
    lines = []
    for i, (path, place) in enumerate(entry.function.paths, 1):
        here = "  <- this folder" if path is entry.path else ""
        why = ", ".join(r or "launched" for r in path.reasons)
        lines.append(f"path {i}: {len(path.steps)} steps, ended at {short(place) or 'the end'}: {why}{here}")
        for s in path.steps:
            what = s.op if s.kind == "event" else f"{s.op.name}_" if s.kind == "inplace" else s.op.name
            mode = f"({', '.join(map(repr, s.attrs))})" if s.kind == "event" and s.op != "release" else ""
            spec = f"-> {s.meta.spec}" if s.meta is not None else mode
            lines.append(f"    {s.position:4}  {s.kind:8}{what} {spec}".ljust(56) + f"  {short(s.source)}".rstrip())
    return "\n".join(line.rstrip() for line in lines) + "\n"


def times(entry: Entry) -> str:
    """Milliseconds of each stage, number of kernels, and how many of them the cache had. The only page that differs between runs."""
    found = {
        h.title: {"ms": h.exe.stages.get("ms", {}), "kernels": len(h.kernels), "cached_kernels": h.exe.stages.get("cached", 0)}
        for h in entry.halves
    }
    for h in entry.halves:
        if timed := {c.kernel: dict(c.candidates) for c in h.exe.choices() if c.candidates[0][1] is not None}:
            found[h.title]["tiles"] = timed
    return json.dumps(found, indent=2, sort_keys=True) + "\n"

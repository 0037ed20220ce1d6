"""The house stands: no import cycles, imports point down, heavy packages are imported late."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parent.parent / "torchlet"
LAYERS = [  # from the ground up; a module may import from its own layer and those below
    "absent errors config dtypes record spec expr index storage window",
    "tensor printing types overrides",
    "op",
    "autograd",
    "ops einops_backend",
    (
        "random nn optim data checkpoint serialize cuda compiler kernels runtime fft linalg special functional testing "
        "fx jit profiler multiprocessing version backends distributed cpu futures hub library masked signal"
    ),
    "utils accelerator amp distributions serialization",
    "func settings",
    "gradients compat",
]
FORBIDDEN = [("compiler", "nn optim data"), ("kernels", "nn optim data"), ("nn", "optim data compiler"), ("runtime", "ops nn optim data")]
LAZY = {  # the lazy roots: what is imported by name when it is first used; they alone may point up
    "torchlet": {"torchlet.absent", "torchlet.compiler.debug", "torchlet."},
    "torchlet.autograd": {"torchlet.gradients"},  # names of torch.autograd that few programs use
    "torchlet.compat": {"torchlet.compat"},  # run as a script, it goes on as the imported module
    "torchlet.cpu": {"torchlet.amp"},
    "torchlet.cuda": {"torchlet.amp"},
    "torchlet.utils": {"torchlet.utils."},
    "torchlet.storage": {"torchlet.compiler.eager", "torchlet.runtime.cuda"},  # only where there is a GPU
}
PATHS = sorted(ROOT.rglob("*.py"))
FILES = {".".join(p.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): p for p in PATHS}


@cache
def parsed(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text())


@cache
def imports(module: str, late: bool = False) -> set[str]:
    """The modules that a module imports by name, inside functions too; with `late`, only those inside functions."""
    tree = parsed(module)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)]
    found = set()
    for node in (n for f in functions for n in ast.walk(f)) if late else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            found |= {whole if (whole := f"{node.module}.{alias.name}") in FILES else str(node.module) for alias in node.names}
    return found


def lazy(module: str) -> set[str]:
    """The modules of torchlet that a module imports by `import_module`."""
    calls = (n for n in ast.walk(parsed(module)) if isinstance(n, ast.Call))
    calls = [n for n in calls if "import_module" in ast.unparse(n.func)]
    constants = {n.value for call in calls for a in call.args for n in ast.walk(a) if isinstance(n, ast.Constant)}
    return {c for c in constants if isinstance(c, str) and c.startswith("torchlet")}


def part(module: str) -> str:
    """The file or package below torchlet that a module belongs to."""
    return module.split(".")[1]


GRAPH = nx.DiGraph([(m, i) for m in FILES for i in imports(m) if i in FILES])


def test_there_is_no_import_cycle() -> None:
    assert [sorted(c) for c in nx.strongly_connected_components(GRAPH) if len(c) > 1] == []
    assert list(nx.selfloop_edges(GRAPH)) == []


def test_imports_point_down() -> None:
    layer = {name: depth for depth, names in enumerate(LAYERS) for name in names.split()}
    inner = [m for m in FILES if m != "torchlet"]
    assert {part(m) for m in inner} - set(layer) == set(), "give these a layer"
    below = [(m, i) for m in inner for i in imports(m) if i in FILES]
    assert [(m, i) for m, i in below if i == "torchlet" or layer[part(i)] > layer[part(m)]] == []
    assert [(m, i) for m, i in below for upper, lower in FORBIDDEN if part(m) == upper and part(i) in lower.split()] == []


def test_nothing_imports_another_framework() -> None:
    assert [(m, i) for m in FILES for i in imports(m) if i.split(".")[0] in ("torch", "jax", "tensorflow", "sklearn")] == []


def test_imports_inside_functions_are_the_lazy_roots() -> None:
    assert {m: sorted(found) for m in FILES if (found := imports(m, late=True))} == {}
    assert {m: found for m in FILES if (found := lazy(m))} == LAZY


HEAVY = ["networkx", "triton", "torchlet.compiler", "torchlet.nn", "torchlet.optim", "scipy", "numpy.fft", "concurrent.futures.process"]


@pytest.mark.parametrize("heavy", HEAVY)
def test_import_torchlet_does_not_import(heavy: str) -> None:
    code = f"import sys, torchlet; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, timeout=900).returncode == 0


def test_every_module_says_its_job_in_its_first_line() -> None:
    first = {m: (ast.get_docstring(parsed(m)) or "").split("\n")[0] for m, p in FILES.items() if p.stat().st_size}
    assert [m for m, line in first.items() if not line.endswith((".", ":"))] == []

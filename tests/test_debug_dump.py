"""The debug dump: every stage is there, readable, the same each time, and its scripts run and can fail."""

import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchlet as torch
from torchlet import nn
from torchlet.compiler import rerun
from torchlet.compiler.function import executables
from torchlet.compiler.interpret import interpret_kernel
from torchlet.compiler.loop_text import PRELUDE, readable, to_python

ROOT = Path(__file__).parent.parent
PROGRAM = '''
import sys
import torchlet as torch
from torchlet import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

@torch.compile(dump=sys.argv[1] if len(sys.argv) > 1 else None)
def train_step(x, y):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss

def predict(x):
    return model(x).argmax(-1)

for _ in range(2):
    train_step(torch.randn(6, 12), torch.randint(0, 10, (6,)))
'''


def python(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with torchlet on its path."""
    full = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), **environment}
    return subprocess.run([sys.executable, *map(str, arguments)], env=full, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dump of a training step."""
    folder = tmp_path_factory.mktemp("dump")
    (folder / "train.py").write_text(PROGRAM)
    done = python(folder / "train.py", folder / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "out"


@pytest.fixture
def step(dumped: Path) -> Path:
    """The folder of its only function."""
    return dumped / "001_train_step"


@pytest.fixture(autouse=True)
def switched_off() -> Iterator[None]:
    """No test leaves the dump on."""
    before = torch.config.debug
    yield
    torch.config.debug = before


def files(folder: Path) -> dict[str, str]:
    """Relative path -> text."""
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


# ------------------------------------------------------------------------------------------------ what is in it


def test_a_training_step_has_every_page_and_for_each_kernel_c_triton_and_a_script(dumped: Path, step: Path) -> None:
    names = set(files(step))
    assert {"0_source.py", "1_graph.py", "3_forward.py", "4_fused.txt", "5_memory.txt", "7_host.py"} <= names
    assert {"repro.py", "paths.txt", "times.json"} <= names
    kernels = [k["label"] for k in json.loads((dumped / "index.json").read_text())["functions"][0]["kernels"]]
    assert kernels and kernels == sorted(kernels)
    expected = {f"6_kernels/{k}{end}" for k in kernels for end in (".c", ".py", "_run.py")}
    assert {n for n in names if n.startswith("6_kernels/")} == expected


def test_the_source_page_shows_beside_each_line_the_kernels_it_went_to(step: Path) -> None:
    page = (step / "0_source.py").read_text().splitlines()
    lines = {line.split("#")[0].strip(): line.split("#")[-1].split() for line in page if "#" in line}
    assert any(k.startswith("k") for k in lines["optimizer.step()"][1:])
    assert lines["loss = nn.functional.cross_entropy(model(x), y)"][1] == "k01"
    assert lines["return loss"][1:] == []


def test_graph_pages_are_python_with_the_names_of_the_user(step: Path) -> None:
    text = (step / "1_graph.py").read_text()
    compile(text, "1_graph.py", "exec")
    assert "model_0_weight: 'float32[16, 12]'" in text and "grad_model_2_bias = " in text
    assert "# written into model_0_weight" in text and "train.py:" in text
    for page in ("0_source.py", "3_forward.py", "7_host.py", "repro.py"):
        compile((step / page).read_text(), page, "exec")


class Searching(types.ModuleType):
    """A package that takes long to say that it lacks a name."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"asked for {name}")


def test_names_for_tensors_are_not_sought_in_packages(tmp_path: Path) -> None:
    package, weight = Searching("package"), torch.ones(3)
    with torch.debug.dump(tmp_path):
        torch.compile(lambda x: x * weight + len(package.__name__))(torch.ones(3)).tolist()
    (page,) = tmp_path.glob("*/1_graph.py")
    assert "weight" in page.read_text()


def test_the_host_page_launches_every_kernel_once_in_order(step: Path) -> None:
    launched = re.findall(r"^    (k\d\d)_", (step / "7_host.py").read_text(), re.MULTILINE)
    assert launched == sorted(launched) and len(launched) == len(list((step / "6_kernels").glob("*.c")))


def test_fused_page_says_why_fusions_were_refused_and_what_each_kernel_costs(step: Path) -> None:
    text = (step / "4_fused.txt").read_text()
    assert re.search(r"fusions that were refused\n    \w+ with \w+: ", text)
    assert re.search(r"^k01_\w+: [\d.]+ k?B moved, [\d.]+ k?FLOP, at least ", text, re.MULTILINE)
    assert "dot " in text and "for i < " in text


def test_the_first_comment_of_a_kernel_is_the_line_of_the_user(step: Path) -> None:
    first = next((step / "6_kernels").glob("k01_*.c")).read_text().splitlines()
    assert re.fullmatch(r"// .*train\.py:\d+", first[0])
    assert any(re.match(r"// model_0_weight: float32\[192\], input", line) for line in first)


def test_report_is_one_page_without_network_and_with_escaped_text(dumped: Path) -> None:
    text = (dumped / "report.html").read_text()
    assert "http" not in text and "<script" not in text and "&lt;" in text
    for link in re.findall(r'href="([^"#]+)"', text):
        assert (dumped / link).exists(), link


def test_times_have_each_stage(step: Path) -> None:
    times = json.loads((step / "times.json").read_text())["forward"]
    assert set(times["ms"]) == {"simplify", "schedule", "load"} and times["kernels"] == len(list((step / "6_kernels").glob("*.c")))


# ------------------------------------------------------------------------------------------------ the same each time


def test_two_dumps_of_one_program_differ_in_their_times_only(dumped: Path) -> None:
    again = dumped.parent / "again"
    assert python(dumped.parent / "train.py", again, PYTHONHASHSEED="7").returncode == 0
    first, second = files(dumped), files(again)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name] and not name.endswith("times.json")] == []


def test_folders_of_an_earlier_process_go_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "007_old").mkdir()
    (tmp_path / "008_mine").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "index.json").write_text(json.dumps({"functions": [{"folder": "007_old"}, {"folder": "../x"}]}))
    torch.compile(lambda x: x + 1, dump=str(tmp_path))(torch.ones(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["001_lambda", "008_mine", "index.json", "notes.txt", "report.html"]


# ------------------------------------------------------------------------------------------------ scripts


def test_repro_of_a_training_step_runs_and_agrees(step: Path) -> None:
    done = python(step / "repro.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "grad_model.0.weight" in done.stdout and "WRONG" not in done.stdout


def test_a_kernel_script_checks_c_and_triton_and_tells_the_time(step: Path) -> None:
    script = next((step / "6_kernels").glob("k01_*_run.py"))
    done = python(script, "--check", "--triton", "--time")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok    C, normal inputs" in done.stdout and "ok    Triton" in done.stdout and "GB/s" in done.stdout


def test_a_kernel_that_was_edited_wrongly_fails_its_script(step: Path, tmp_path: Path) -> None:
    script = next((step / "6_kernels").glob("k*_sum_mul_sub_*_run.py"))
    text = script.with_name(script.name.replace("_run.py", ".c")).read_text()
    (tmp_path / "right.c").write_text(text)
    (tmp_path / "wrong.c").write_text(text.replace(" = 0.0f;", " = 1.0f;"))
    assert " = 0.0f;" in text
    assert python(script, "--source", tmp_path / "right.c").returncode == 0
    wrong = python(script, "--source", tmp_path / "wrong.c")
    assert wrong.returncode == 1 and "WRONG C" in wrong.stdout


def test_the_python_text_of_a_kernel_makes_the_same_kernel() -> None:
    table, x = torch.randn(7, 5), torch.randn(4, 6, requires_grad=True)

    @torch.compile
    def f(i, s):
        infinite = torch.full((2,), float("-inf"))
        return torch.softmax(x.t() @ table[i][:, :1], 0).sum() * s, torch.cat([x, x.tril()]).argmax(1), torch.rand(3), torch.exp(infinite)

    f(torch.tensor([0, 3, 6, 3]), 0.5)
    kernels = [k for p in f.programs for exe in executables(p) for k in exe.kernels]
    assert len(kernels) > 3
    for k in kernels:
        names: dict[str, object] = {}
        exec(PRELUDE + to_python(k), names)
        assert names["kernel"] == readable(k)


def test_cancellation_is_no_disagreement_and_a_wrong_value_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = [torch.float32]
    expected, moved = [np.zeros(3, np.float32)], [np.full(3, 1e-4, np.float32)]  # one rounding of the inputs moves the result by 1e-4
    for error, good in ((5e-4, True), (5e-3, False)):
        assert rerun._compare("sum", ["x"], [expected[0] + np.float32(error)], expected, kinds, lambda: moved) is good
    assert not rerun._compare("nan", ["x"], [np.full(3, np.nan, np.float32)], expected, kinds, lambda: moved)
    assert capsys.readouterr().out.count("WRONG") == 2


def test_a_big_kernel_is_checked_in_parts_that_together_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    f = torch.compile(lambda x, w: torch.relu(x @ w).sum(0))
    f(torch.ones(9, 5), torch.ones(5, 7))
    kernels = [k for p in f.programs for exe in executables(p) for k in exe.kernels]
    monkeypatch.setattr(rerun, "NEST", 40)
    for k in kernels:
        rng = np.random.default_rng(0)
        whole = [rerun.draw(b.size, b.dtype, rng) for b in k.buffers]
        parts = [a.copy() for a in whole]
        interpret_kernel(k, whole)
        pieces = list(rerun._parts(k))
        for piece in pieces:
            interpret_kernel(piece, parts)
        assert len(pieces) > 1 and all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))


# ------------------------------------------------------------------------------------------------ when it is written


def test_the_backward_half_is_written_when_it_is_compiled(tmp_path: Path) -> None:
    layer = nn.Linear(4, 3)

    @torch.compile(dump=str(tmp_path))
    def forward(x):
        return torch.tanh(layer(x))

    out = forward(torch.randn(5, 4))
    folder = tmp_path / "001_forward"
    assert "kept_" in (folder / "2_joint.py").read_text() or "# forward and backward in one graph" in (folder / "2_joint.py").read_text()
    assert (folder / "3_backward.py").read_text().startswith("# compiled when the first backward pass asks for it")
    before = len(list((folder / "6_kernels").glob("*.c")))
    out.sum().backward()
    assert (folder / "3_backward.py").read_text().startswith("# composite operators are opened")
    assert len(list((folder / "6_kernels").glob("*.c"))) > before
    assert python(folder / "repro.py").returncode == 0
    lines = (folder / "0_source.py").read_text()
    line = next(line for line in lines.splitlines() if "tanh" in line)
    assert len(re.findall(r"k\d\d", line)) > before  # gradients count to the line they belong to


def test_dump_works_as_a_call_and_as_a_block(tmp_path: Path) -> None:
    with torch.debug.dump(tmp_path / "block"):
        torch.compile(lambda x: x * 2)(torch.ones(3))
    torch.compile(lambda x: x * 3)(torch.ones(3))
    assert [f["name"] for f in json.loads((tmp_path / "block" / "index.json").read_text())["functions"]] == ["lambda"]
    torch.debug.dump(tmp_path / "call")
    torch.compile(lambda x: x * 4)(torch.ones(3))
    assert (tmp_path / "call" / "001_lambda" / "1_graph.py").exists()


@pytest.mark.parametrize(("value", "folder"), [("here", "here"), ("1", "torchlet_debug"), ("0", None)])
def test_the_environment_switches_it_on(tmp_path: Path, value: str, folder: str | None) -> None:
    (tmp_path / "f.py").write_text("import torchlet as torch\ntorch.compile(lambda x: x + 1)(torch.ones(3))\n")
    full = {**os.environ, "PYTHONPATH": str(ROOT), "TORCHLET_DEBUG": value}
    subprocess.run([sys.executable, "f.py"], cwd=tmp_path, env=full, check=True, timeout=900)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ([folder] if folder else [])


def test_ptx_on_request(tmp_path: Path) -> None:
    with torch.debug.dump(tmp_path, ptx=True):
        torch.compile(lambda x: torch.softmax(x, -1))(torch.randn(8, 16))
    kernels = tmp_path / "001_lambda" / "6_kernels"
    (source,) = [p for p in kernels.glob("k01_*.py") if not p.stem.endswith("_run")]
    assert re.search(r"# \d+ registers, 0 bytes spilled, \d+ bytes of shared memory", source.read_text())
    assert ".entry" in source.with_suffix(".ptx").read_text() and "tt.func" in source.with_suffix(".ttir").read_text()


def test_each_segment_has_its_folder_and_its_reason(tmp_path: Path) -> None:
    @torch.compile(dump=str(tmp_path))
    def branch(x):
        y = x * 2
        return y + 1 if y.sum() > 0 else torch.sort(y)[0]

    branch(torch.ones(3))
    branch(-torch.ones(3))
    index = json.loads((tmp_path / "index.json").read_text())["functions"]
    assert [f["folder"] for f in index] == ["001_branch", "002_branch", "003_branch"]
    assert index[0]["ended_because"] == ["a value was read"] and re.search(r"test_debug_dump\.py:\d+$", index[0]["ended_at"])
    assert index[2]["externs"] == ["argsort"] and "it runs as NumPy" in (tmp_path / "003_branch" / "4_fused.txt").read_text()


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(RuntimeWarning, match="debug dump"):
        out = torch.compile(lambda x: x + 1, dump=str(tmp_path / "file"))(torch.ones(3))
    assert out.tolist() == [2, 2, 2]

"""Training scripts as people write them for PyTorch run on torchlet by its other name, and print what they print there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAMS = ROOT / "tests" / "programs"
NAMES = sorted(p.stem for p in PROGRAMS.glob("*.py") if p.stem != "fill")
SLOW_TO_COMPILE = {
    "ddpm", "dcgan", "flows", "functions", "graphs", "llama", "lstm_lm", "metric", "mixtures", "nanogpt", "resnet", "transformer", "vit",
}
NOT_COMPILED = {"loading", "seq2seq", "training"}  # no step in them asks for it


def printed(*arguments: str | Path, folder: Path = ROOT) -> str:
    """What a program prints when it runs with `torch` being torchlet."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "torchlet.compat", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "the compiler failed" not in done.stderr, done.stderr
    return done.stdout


def agree(a: str, b: str) -> bool:
    """True for equal words, and for numbers that differ by rounding only."""
    try:
        x, y = float(a.strip("[](),")), float(b.strip("[](),"))
    except ValueError:
        return a == b
    return abs(x - y) <= 1e-4 * max(abs(x), 0.1)


def compare(text: str, expected: str) -> None:
    """The same lines of the same words."""
    lines, wanted = text.splitlines(), expected.splitlines()
    assert len(lines) == len(wanted), text
    for line, want in zip(lines, wanted, strict=True):
        assert len(line.split()) == len(want.split()) and all(map(agree, line.split(), want.split())), f"{line}\n{want}"


@pytest.mark.parametrize("name", NAMES)
def test_a_program_prints_what_it_prints_with_pytorch(name: str, tmp_path: Path) -> None:
    compare(printed(PROGRAMS / f"{name}.py", folder=tmp_path), (PROGRAMS / f"{name}.txt").read_text())


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW_TO_COMPILE else n for n in NAMES if n not in NOT_COMPILED]
)
def test_a_compiled_program_prints_what_it_prints_with_pytorch(name: str, tmp_path: Path) -> None:
    compare(printed(PROGRAMS / f"{name}.py", "--compile", folder=tmp_path), (PROGRAMS / f"{name}.txt").read_text())


def aliased(path: Path) -> str:
    """An example as a program that says `import torch`."""
    text = path.read_text().replace("import torchlet as torch", "import torch")
    return text.replace("from torchlet", "from torch").replace("import torchlet.", "import torch.")


EXAMPLES = {
    "linear_regression": ["--epochs", "50"],
    "mlp": ["--epochs", "1"],
    "inspect_kernels": ["--dir", "dump"],
    "char_gpt": ["--steps", "5", "--context", "16", "--width", "16", "--layers", "1"],
    "cnn_digits": ["--epochs", "1"],
    "lstm_text": ["--epochs", "1", "--width", "32", "--batches", "5"],
    "vit_digits": ["--epochs", "1", "--layers", "1"],
    "quantize": ["--epochs", "5"],
    "distill": ["--epochs", "1"],
}
QUICK = {"inspect_kernels", "lstm_text"}


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] * (p.stem not in QUICK)) for p in sorted((ROOT / "examples").glob("*.py"))]
)
def test_an_example_runs_when_it_says_import_torch(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    script = tmp_path / path.name
    script.write_text(aliased(path))
    assert "torchlet" not in "".join(line for line in script.read_text().splitlines() if "import" in line)
    assert printed(script, *EXAMPLES[path.stem], folder=tmp_path)

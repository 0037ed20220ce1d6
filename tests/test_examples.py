"""The examples run as a user runs them, with few epochs, and print what they promise."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, folder: Path, *arguments: str) -> str:
    """The printed text of an example that was run in `folder`."""
    pytest.importorskip("sklearn")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, EXAMPLES / name, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def number(pattern: str, text: str) -> float:
    """The number that stands where the pattern has its group."""
    found = re.search(pattern, text)
    assert found, text
    return float(found[1])


@pytest.mark.slow
def test_linear_regression_fits_the_line_and_the_patients(tmp_path: Path) -> None:
    text = run("linear_regression.py", tmp_path, "--epochs", "1000")
    assert abs(number(r"y\(15\) = ([\d.]+)", text) - 31) < 0.5
    assert number(r"explained variance: ([\d.]+)", text) > 0.5
    assert {p.name for p in tmp_path.glob("*.png")} == {"linear_regression_line.png", "linear_regression_diabetes.png"}
    assert len(re.findall(r"largest relative difference of the losses: [\d.e+-]+", text)) == 2
    assert text.count("first compiled call: ") == 2 and text.count("x faster") == 2


@pytest.mark.slow
def test_mlp_learns_to_read_digits_and_compiled_follows_eager(tmp_path: Path) -> None:
    text = run("mlp.py", tmp_path, "--epochs", "4")
    assert number(r"test accuracy: ([\d.]+)", text) > 0.9
    assert number(r"largest relative difference of the losses: ([\d.e+-]+)", text) <= 1e-4
    assert (tmp_path / "mlp_loss.png").stat().st_size > 1000
    assert re.fullmatch(r"test accuracy: \d\.\d{4}\ncompiled/eager: [\d.]+x faster", "\n".join(text.splitlines()[-2:]))


@pytest.mark.slow
def test_mlp_reaches_97_percent(tmp_path: Path) -> None:
    assert number(r"test accuracy: ([\d.]+)", run("mlp.py", tmp_path)) >= 0.97


def test_inspect_kernels_shows_a_kernel_of_the_dump(tmp_path: Path) -> None:
    text = run("inspect_kernels.py", tmp_path, "--dir", "dump")
    assert f"the dump is in {tmp_path / 'dump'}" in text
    assert re.search(r"001_\w+/6_kernels/k01_\w+\.c", text)
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", text)]
    assert losses == sorted(losses, reverse=True) and len(losses) == 3
    assert "for (" in text.split("one kernel,")[1]


@pytest.mark.slow
def test_char_gpt_learns_the_letters_of_source_code(tmp_path: Path) -> None:
    text = run("char_gpt.py", tmp_path, "--steps", "60", "--context", "32", "--width", "32", "--layers", "1")
    losses = [float(x) for x in re.findall(r"loss ([\d.]+),", text)]
    assert losses[0] > 4 and losses[-1] < 3.3


@pytest.mark.slow
def test_cnn_reads_digits_and_compiled_follows_eager(tmp_path: Path) -> None:
    text = run("cnn_digits.py", tmp_path, "--epochs", "2")
    assert number(r"test accuracy: ([\d.]+)", text) > 0.85
    assert number(r"largest relative difference of the first losses: ([\d.e+-]+)", text) <= 1e-3


@pytest.mark.slow
def test_lstm_learns_the_letters_of_source_code(tmp_path: Path) -> None:
    text = run("lstm_text.py", tmp_path, "--epochs", "2", "--width", "64", "--batches", "20")
    losses = [float(x) for x in re.findall(r"loss ([\d.]+),", text)]
    assert losses[1] < losses[0] and losses[1] < 3.2


@pytest.mark.slow
def test_vit_reads_digits_better_than_by_chance_after_three_epochs(tmp_path: Path) -> None:
    assert number(r"test accuracy: ([\d.]+)", run("vit_digits.py", tmp_path, "--epochs", "3", "--layers", "1")) > 0.3


@pytest.mark.slow
def test_quantized_network_is_smaller_and_reads_as_well(tmp_path: Path) -> None:
    text = run("quantize.py", tmp_path, "--epochs", "60")
    assert number(r"bytes, ([\d.]+)x smaller", text) > 3.5
    assert abs(number(r"accuracy float32: ([\d.]+)", text) - number(r"accuracy int8: ([\d.]+)", text)) < 0.02
    assert number(r"accuracy int8: ([\d.]+)", text) > 0.9


@pytest.mark.slow
def test_a_student_learns_from_its_teacher(tmp_path: Path) -> None:
    text = run("distill.py", tmp_path, "--epochs", "10")
    assert number(r"student taught: .* accuracy ([\d.]+)", text) > 0.85


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_shorter_than_100_lines_and_has_a_main(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 100
    assert "def main():" in lines


@pytest.mark.slow
def test_benchmark_rows_give_what_numpy_gives(tmp_path: Path) -> None:
    rows = "linreg,tiny,mlp_sgd,chain_1e5,softmax,import"
    command = [sys.executable, EXAMPLES.parent / "benchmarks" / "peers.py", "--peers", "torchlet,numpy", "--rows", rows]
    command += ["--rounds", "1", "--seconds", "0.01", "--json", "out.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert sorted(found) == sorted(rows.split(",")) and all(set(row) == {"torchlet", "numpy"} for row in found.values())
    assert done.stdout.count("agree to") == 5 and "differ" not in done.stdout

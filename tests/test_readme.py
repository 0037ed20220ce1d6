"""What README says is true: its code runs, its commands are the ones CI runs, its files exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CODE = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def run(code: str, folder: Path) -> str:
    """The printed text of a piece of README, run as a file in `folder`."""
    file = folder / "readme.py"
    file.write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-W", "error", file], cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_the_use_example_learns_the_line_in_twenty_lines(tmp_path: Path) -> None:
    assert len([line for line in CODE[0].splitlines() if line.strip()]) <= 20
    loss, prediction = map(float, run(CODE[0], tmp_path).split())
    assert loss < 0.02 and abs(prediction - 31) < 0.3


def test_the_dump_example_writes_the_files_that_readme_lists(tmp_path: Path) -> None:
    run(CODE[1], tmp_path)
    listed = README.split("torchlet_debug/001_f/")[1].split("```")[0]
    for name in re.findall(r"^  (\d_\w+(?:\.\w+|/))", listed, re.MULTILINE):
        if "joint" not in name:  # the example has no backward
            assert (tmp_path / "torchlet_debug" / "001_f" / name).exists(), name
    assert list((tmp_path / "torchlet_debug" / "001_f" / "6_kernels").glob("k01_*.c"))


def test_readme_has_no_other_code() -> None:
    assert len(CODE) == 2, "add a test above for the new example"


@pytest.mark.parametrize("name", ["train", "test"])
def test_ci_finds_the_commands_in_readme(name: str) -> None:
    found = re.search(rf"^<!-- ci: {name} -->\n```sh\n(.+)\n```$", README, re.MULTILINE)
    assert found and found[1].startswith("pip install -e ")
    assert f"run {name}" in (ROOT / ".ci" / "run").read_text()


def test_the_files_that_readme_names_exist() -> None:
    folder = "torchlet"
    for path in re.findall(r"`((?:torchlet|examples|benchmarks)/[\w./]+|\w+\.py)`", README):
        full = ROOT / path if "/" in path else ROOT / folder / path
        assert full.exists(), path
        folder = str(full.parent)

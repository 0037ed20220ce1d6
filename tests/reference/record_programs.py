"""Records what the programs in tests/programs print under PyTorch 2.13: `python tests/reference/record_programs.py [name …]`."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAMS = Path(__file__).parent.parent / "programs"


def main(names: list[str]) -> None:
    """Write the printed text of the named programs, or of all, to tests/programs/NAME.txt."""
    for path in sorted(PROGRAMS.glob("*.py")):
        if path.stem == "fill" or (names and path.stem not in names):
            continue
        environment = {**os.environ, "PYTHONPATH": ""}
        done = subprocess.run([sys.executable, "-W", "ignore", path], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        path.with_suffix(".txt").write_text(done.stdout)
        print(path.stem, len(done.stdout.splitlines()), "lines")


if __name__ == "__main__":
    main(sys.argv[1:])

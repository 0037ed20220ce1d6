#!/bin/sh
# Proves and measures torchlet on a CUDA device in at most eight minutes, and writes one JSON and one Markdown file.
#   benchmarks/gpu_check.sh [--out DIR] [--minutes N] [--sections correct,checks,tables,products,steps,host] [--dry]
#   benchmarks/gpu_check.sh --adopt RESULT.json     enters what alternates won there into torchlet/compiler/winners.json
# --dry runs everything on the stand-in device of the tests, with tiny sizes: no GPU, no times that mean anything.
cd "$(dirname "$0")/.." || exit 1
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" benchmarks/gpu_check.py "$@"

"""What the machine can do, measured as a peer is: a sum of two long vectors for memory, a matrix product for arithmetic."""

import os
import threading

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the two threads are ours: those of BLAS wait for each other when others use the machine

import numpy as np

VERSIONS = {"numpy": np.__version__}


def wait(result):
    """Nothing is left running after a call."""


def number(result):
    return 0.0


def halves(work):
    """One call runs `work(0)` and `work(1)` side by side."""
    start, done = threading.Barrier(2), threading.Barrier(2)

    def other():
        while True:
            start.wait()
            work(1)
            done.wait()

    threading.Thread(target=other, daemon=True).start()

    def step():
        start.wait()
        work(0)
        done.wait()

    return step


def memory():
    """a = b + c with 10 million numbers each: 12 bytes a number."""
    a, b, c = np.ones((3, 2, 5 * 10**6), np.float32)
    return halves(lambda i: np.add(b[i], c[i], out=a[i]))


def arithmetic():
    """A product of matrices of 1024 x 1024 numbers by NumPy's BLAS."""
    a, b, c = np.random.default_rng(0).standard_normal((3, 1024, 1024), np.float32)
    return halves(lambda i: np.matmul(a[512 * i :][:512], b, out=c[512 * i :][:512]))

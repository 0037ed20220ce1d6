"""Which version this is; there is no CUDA toolkit and no HIP in it."""

__version__ = "0.1.0"
cuda = None
hip = None
git_version = None
debug = False

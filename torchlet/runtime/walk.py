"""The C walk: an extension module of this very Python, compiled on first use; where it cannot be had, the Python it stands for serves."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
from functools import lru_cache
from typing import Any

from torchlet.config import config
from torchlet.errors import CompileError
from torchlet.runtime import cc, cpu

__all__ = ["missing", "walk"]

_NAME = "torchlet_walk"


def walk() -> Any:
    """The module, or None where known paths are followed in Python; decided once."""
    return _decided()[0]


def missing() -> str:
    """Why there is no C walk; empty where there is one."""
    return _decided()[1]


@lru_cache(maxsize=1)
def _decided() -> tuple[Any, str]:
    if not config.c_walk:
        return None, "the switch c_walk is off"
    include = sysconfig.get_path("include")
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return None, "it is written for CPython with its lock"
    if not os.path.exists(os.path.join(include, "Python.h")):
        return None, f"there is no Python.h in {include}"
    try:
        return _load(include), ""
    except (CompileError, ImportError) as error:
        return None, f"{type(error).__name__}: {error}"


def _load(include: str) -> Any:
    parts = [p.read_text() for p in sorted(cc.CSRC.glob("walk*.c"))]
    key = "walk-" + hashlib.sha256("\0".join([cc.fingerprint(), sys.version, include, *parts]).encode()).hexdigest()[:40]
    cpu.build_ahead()  # where one is not there, the other is likely not there either
    path, _ = cc.library(key, '#include "walk.c"', include)
    loader = importlib.machinery.ExtensionFileLoader(_NAME, str(path))
    spec = importlib.util.spec_from_file_location(_NAME, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module

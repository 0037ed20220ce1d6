"""torchlet.hub: files from the network into a cache folder, with the hash in their name checked. Code of others is not run."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from torchlet.serialize import load

__all__ = ["HASH_REGEX", "download_url_to_file", "get_dir", "load_state_dict_from_url", "set_dir", "urlparse"]

HASH_REGEX = re.compile(r"-([a-f0-9]*)\.")
_folder: str | None = None


def _get_torch_home() -> str:
    """TORCH_HOME, or torch in the user's cache folder."""
    cache = os.getenv("XDG_CACHE_HOME", "~/.cache")
    return os.path.expanduser(os.getenv("TORCH_HOME", os.path.join(cache, "torch")))


def get_dir() -> str:
    """Where files are kept."""
    return _folder if _folder is not None else os.path.join(_get_torch_home(), "hub")


def set_dir(d: Any) -> None:
    """Keep files elsewhere."""
    global _folder
    _folder = os.path.expanduser(d)


def download_url_to_file(url: str, dst: str, hash_prefix: str | None = None, progress: bool = True) -> None:
    """Get a file whole, or not at all. Raises RuntimeError where its SHA-256 does not begin with `hash_prefix`."""
    target = Path(dst).expanduser()
    request = urllib.request.Request(url, headers={"User-Agent": "torchlet.hub"})
    sha = hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False, suffix=".partial") as part:
        try:
            with urllib.request.urlopen(request) as source:
                while chunk := source.read(1 << 17):
                    part.write(chunk)
                    sha.update(chunk)
            part.close()
            if hash_prefix is not None and not sha.hexdigest().startswith(hash_prefix):
                raise RuntimeError(f'invalid hash value (expected "{hash_prefix}", got "{sha.hexdigest()}")')
            os.replace(part.name, target)
        finally:
            if os.path.exists(part.name):
                os.unlink(part.name)


def load_state_dict_from_url(
    url: str,
    model_dir: str | None = None,
    map_location: Any = None,
    progress: bool = True,
    check_hash: bool = False,
    file_name: str | None = None,
    weights_only: bool = True,
) -> dict[str, Any]:
    """Load a checkpoint from the network, once: the file is kept in `model_dir` (get_dir()/checkpoints by default)."""
    folder = Path(model_dir or os.path.join(get_dir(), "checkpoints"))
    folder.mkdir(parents=True, exist_ok=True)
    name = file_name or os.path.basename(urlparse(url).path)
    path = folder / name
    if not path.exists():
        found = HASH_REGEX.search(name) if check_hash else None
        download_url_to_file(url, str(path), found.group(1) if found else None, progress)
    return load(str(path), map_location=map_location)  # type: ignore[no-any-return]

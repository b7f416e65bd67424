"""Kernels compiled beforehand, for a machine whose minutes are few.

``pack`` makes one file of what Triton's cache needs to find them: machine code, its description and
the launchers. ``unpack`` lays it into a cache folder anywhere. Triton looks them up by what made
them: sources, types, options, and its own build, of which ``key`` is the digest.
"""

import hashlib
import io
import json
import tarfile
from pathlib import Path

KEPT = (".cubin", ".json", ".so")
ABOUT = "about.json"


def key() -> str:
    """A digest of this Triton, compiler included: others make, and look up, other entries."""
    from triton.runtime.cache import triton_key

    return hashlib.sha256(triton_key().encode()).hexdigest()[:16]


def environment(folder: Path) -> dict[str, str]:
    """For processes that use a cache: without line information code is a third as large."""
    return {
        "TRITON_CACHE_DIR": str(folder),
        "TRITON_DISABLE_LINE_INFO": "1",
        "TRITON_STORE_BINARY_ONLY": "1",
    }


def pack(folder: Path, file: Path, capability: str) -> int:
    """The number of kernels in ``file``; choices of tuners are not among what is kept."""
    kernels = 0
    with tarfile.open(file, "w:xz", preset=3) as tar:
        about = json.dumps({"key": key(), "capability": capability}).encode()
        entry = tarfile.TarInfo(ABOUT)
        entry.size = len(about)
        tar.addfile(entry, io.BytesIO(about))
        for path in sorted(folder.glob("*/*")):
            if path.suffix in KEPT and not path.name.endswith(".autotune.json"):
                tar.add(path, path.relative_to(folder).as_posix())
                kernels += path.suffix == ".cubin"
    return kernels


def unpack(file: Path, folder: Path) -> dict[str, str]:
    """Fills a cache folder; the key of the Triton that made the kernels, and their capability."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "r:xz") as tar:
        tar.extractall(folder, filter="data")
    for group in folder.glob("*/__grp__*.json"):
        # A group names its files by where they lay when they were made, those too that were left.
        names = json.loads(group.read_text())["child_paths"]
        paths = {name: group.parent / name for name in names}
        there = {name: str(path) for name, path in paths.items() if path.exists()}
        group.write_text(json.dumps({"child_paths": there}))
    return json.loads((folder / ABOUT).read_text())

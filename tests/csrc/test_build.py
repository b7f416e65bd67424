"""Installing where the extension cannot be built."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="needs the source tree")

REASON = """
import sys
# An editable install of the sources would find their extension for this copy.
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
sys.path.insert(0, {!r})
from fastseq import _extension
import fastseq
assert fastseq.__file__.startswith({!r}), fastseq.__file__
assert not _extension.load()
print(_extension.reason())
"""


def build_py(tmp_path: Path, **environment: str) -> Path:
    """The built package of a copy of the sources, under an environment."""
    source, built = tmp_path / "source", tmp_path / "built"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("fastseq", "kernels", "benchmarks", "csrc"):
        skipped = shutil.ignore_patterns("*.so", "_build.json", "__pycache__", "results")
        shutil.copytree(ROOT / name, source / name, ignore=skipped)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-lib", str(built)],
        cwd=source,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "installing without CPU kernels" in done.stderr
    return built


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PATH": "/nonexistent", "CXX": ""}, "no C++ compiler found"),
        ({"CXX": "false"}, "failed"),
        ({"FASTSEQ_BUILD_EXT": "0"}, "FASTSEQ_BUILD_EXT=0"),
    ],
)
def test_install_succeeds_and_says_why(tmp_path: Path, environment: dict, expected: str) -> None:
    built = build_py(tmp_path, **environment)
    assert (built / "fastseq" / "kernels").is_dir()
    assert expected in json.loads((built / "fastseq" / "_build.json").read_text())["error"]
    done = subprocess.run(
        [sys.executable, "-c", REASON.format(str(built), str(built))],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout

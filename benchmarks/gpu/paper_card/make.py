"""``python make.py HEADERS``: puts a paper card (card.c) under this environment's PyTorch.

PyTorch's CUDA build needs some fifteen libraries of NVIDIA's, gigabytes that could do nothing here.
Each is made anew: what card.c has acts as on a card, every other function that PyTorch names
returns 0. They lie beside PyTorch's own libraries, where the loader looks for them.
HEADERS: a folder with cuda.h and driver_types.h of PyTorch's CUDA; what they include is Triton's.
"""

import importlib.util
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

# Whose a function is that PyTorch asks for without naming the library.
PREFIXES = {
    "cusparseLt": "libcusparseLt.so.0", "cuFile": "libcufile.so.0", "nccl": "libnccl.so.2",
    "nvshmem": "libnvshmem_host.so.3", "cu": "libcuda.so.1",
}  # fmt: skip
RUNTIME, DRIVER = "libcudart.so.13", "libcuda.so.1"


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def wanted(libraries: Path) -> dict[str, set[tuple[str, str]]]:
    """What must be there: (function, its version or "") by library."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    present = {path.name for path in libraries.iterdir()}
    for path in sorted(libraries.glob("lib*.so")):
        needed = re.findall(r"NEEDED.*\[(.*)\]", "\n".join(_lines("readelf", "-d", str(path))))
        missing = [n for n in needed if re.match(r"lib(cu|nv|nccl)", n) and n not in present]
        for name in missing:
            found[name]  # also where nothing of it is called
        for line in _lines("nm", "-D", "--undefined-only", str(path)):
            name, _, version = line.split()[-1].partition("@")
            library = version if version in missing else None
            if library is None and re.match(r"(cu|nccl|nvshmem)[A-Za-z_]", name):
                by_name = next((v for k, v in PREFIXES.items() if name.startswith(k)), "")
                # Some give their functions a version that is not the library's name.
                library = by_name if by_name in missing else None
            if library:
                found[library].add((name, version))
    return found


def build(libraries: Path, headers: list[Path], source: Path) -> None:
    made = libraries / "paper_card.txt"  # an earlier card's libraries, which are made anew
    if made.exists():
        for name in made.read_text().split():
            (libraries / name).unlink(missing_ok=True)
    needed = wanted(libraries)
    needed[DRIVER]  # by Triton, and by torch once it runs
    made.write_text("\n".join(needed))
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        acting = here / "card.o"
        compiler = ["cc", "-O1", "-fPIC", "-w", *(f"-I{folder}" for folder in headers)]
        subprocess.run([*compiler, "-c", str(source), "-o", str(acting)], check=True)
        acts = {line.split()[-1] for line in _lines("nm", "--defined-only", "-g", str(acting))}
        for library, functions in needed.items():
            own = library in (RUNTIME, DRIVER)
            names = sorted(n for n, _ in functions if not (own and n in acts))
            called = [n for n in names if n in acts]  # of another library: pass on
            lines = [f"long {n}(void) {{ return 0; }}" for n in names if n not in acts]
            (here / "rest.c").write_text("\n".join(lines) + "\n")
            versions: dict[str, list[str]] = defaultdict(list)
            for name, version in sorted(functions):
                versions[version].append(name)
            script = "".join(
                f"{version} {{ global: {'; '.join(of)}; }};\n"
                for version, of in versions.items()
                if version
            )
            (here / "versions").write_text(script)
            command = [*compiler, "-shared", str(here / "rest.c"), f"-Wl,-soname,{library}"]
            if own or called:
                command.append(str(acting))
            if script:
                command.append(f"-Wl,--version-script={here / 'versions'}")
            command += ["-o", str(libraries / library), "-ldl", "-lpthread"]
            subprocess.run(command, check=True)
            print(f"{library}: {len(functions)} functions")


def _installed(package: str) -> Path:
    """Its folder; torch itself cannot be imported before its libraries are there."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"{package} is not installed"
    return Path(spec.submodule_search_locations[0])


def main() -> int:
    headers = [Path(sys.argv[1]), _installed("triton") / "backends" / "nvidia" / "include"]
    build(_installed("torch") / "lib", headers, Path(__file__).with_name("card.c"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

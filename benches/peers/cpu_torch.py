"""Let the torch wheel for Linux x86-64 load without the CUDA libraries it is linked against.

The wheel links NVIDIA libraries of more than 2 GB that a CPU run never calls. In their place this writes small stand-ins:
one shared object for each library that is missing, with the symbols torch asks for, all of them answering 100
(`cudaErrorNoDevice`). They are put beside torch's own libraries, inside the virtual environment that runs this script.

usage: cpu_torch.py        needs a C compiler and binutils (`cc`, `readelf`, `nm`)
"""

import importlib.util
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

LIBRARY = re.compile(r"lib(cu|nccl|nv)\w*\.so\.\d+")
SYMBOL = re.compile(r"(__)?(cu|nccl|nv)\w+")


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def wanted(libraries):
    """What torch asks of NVIDIA's libraries: {library: {version: {symbol, ...}}}. Symbols without a version go to libcudart."""
    asked, loose, defined = defaultdict(lambda: defaultdict(set)), set(), set()
    for path in libraries:
        owner = {}
        for need in re.findall(r"NEEDED.*\[(.+)\]", output("readelf", "-dW", path)):
            if LIBRARY.fullmatch(need):
                asked[need]
        for line in output("readelf", "-VW", path).splitlines():
            if found := re.search(r"File: (\S+)", line):
                library = found[1]
            elif (found := re.search(r"Name: (\S+)\s+Flags:", line)) and LIBRARY.fullmatch(library):
                owner[found[1]] = library
                asked[library][found[1]]
        for line in output("nm", "-D", path).splitlines():
            kind, symbol = line.split()[-2:]
            name, _, version = symbol.replace("@@", "@").partition("@")
            if kind not in "Uwv":
                defined.add(name)
            elif version in owner:
                asked[owner[version]][version].add(name)
            elif not version and SYMBOL.fullmatch(name):
                loose.add(name)
    for library in asked:
        if library.startswith("libcudart"):
            asked[library][library] |= loose - defined
    return asked


def write_stand_in(path, versions):
    with tempfile.TemporaryDirectory() as work:
        source, script = Path(work) / "stub.c", Path(work) / "stub.map"
        names = sorted(set().union(*versions.values()))
        source.write_text("".join(f"long {name}(void) {{ return 100; }}\n" for name in names))
        script.write_text("".join(f"{v} {{ global: {'; '.join([*sorted(s), ''])} }};\n" for v, s in versions.items()))
        flags = [f"-Wl,-soname,{path.name}"] + ([f"-Wl,--version-script={script}"] if versions else [])
        output("cc", "-shared", "-fPIC", "-fno-builtin", "-w", *flags, "-o", path, source)
    print(f"stand-in for {path.name}: {len(names)} symbols", file=sys.stderr)


def main():
    folder = Path(importlib.util.find_spec("torch").submodule_search_locations[0]) / "lib"
    for library, versions in wanted(p for p in folder.glob("lib*.so")).items():
        if not (folder / library).exists():
            write_stand_in(folder / library, versions)


if __name__ == "__main__":
    main()

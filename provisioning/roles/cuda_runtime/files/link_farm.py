#!/usr/bin/env python3
"""link_farm.py ENVIRONMENT FOLDER: make FOLDER hold links to all CUDA libraries of the wheels.

For each nvidia/*/lib/libX.so.N.M of the environment: libX.so.N.M, libX.so.N and libX.so. Links of
libraries that are gone are removed. Prints JSON: changed, libraries.
"""

import json
import os
import re
import sys
from pathlib import Path


def wanted(environment):
    """Name of each link → the library that it leads to."""
    links = {}
    for library in sorted(environment.glob("lib/python3.*/site-packages/nvidia/*/lib/*.so*")):
        match = re.fullmatch(r"(lib.+?\.so)((?:\.\d+)*)", library.name)
        if not match:
            continue
        parts = [part for part in match.group(2).split(".") if part]
        for count in range(len(parts) + 1):
            links[".".join([match.group(1), *parts[:count]])] = str(library)
    return links


def main(environment, folder):
    """Bring the folder into the wanted state."""
    links = wanted(environment)
    if not links:
        sys.exit(f"{environment} holds no NVIDIA libraries: is its lock one for cards?")
    folder.mkdir(parents=True, exist_ok=True)
    changed = False
    for old in folder.iterdir():
        if old.name not in links or not old.is_symlink() or os.readlink(old) != links[old.name]:
            old.unlink()
            changed = True
    for name, library in links.items():
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(library)
            changed = True
    print(json.dumps({"changed": changed, "libraries": len(links)}))


if __name__ == "__main__":
    main(Path(os.path.realpath(sys.argv[1])), Path(sys.argv[2]))

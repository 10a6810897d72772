"""Mutation tests of the kernels: inserts one fault at a time (a swapped operand, an edge off by one, a wrong swizzle bit) and
checks that the tests fail.

python3 tests/mutations/run.py [NAME...]

Works on a copy of the tracked files inside the build folder given by --target. A fault of faults.json replaces one text in one
file. It must make each of its tests fail; without faults all tests must pass. Has the requirements of the tests. A fault takes
about a minute.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def copy(folder):
    """Copies the tracked files and the untracked files that git does not ignore, in their current state."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, check=True, capture_output=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)


def results(folder, target, tests):
    """Runs tests and returns the result (`ok` or `FAILED`) of each by name."""
    names = sorted(set(tests))
    command = ["cargo", "test", "--release", "--no-fail-fast", "--target-dir", str(target), "--test", "ops"]
    run = subprocess.run(command + ["--", *names], cwd=folder, capture_output=True, text=True)
    found = dict(re.findall(r"^test (\S+) \.\.\. (ok|FAILED)$", run.stdout, re.M))
    missing = [name for name in names if name not in found]
    if missing:
        sys.exit(f"no result for {', '.join(missing)}:\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="names of the faults to test, all by default")
    parser.add_argument("--target", type=Path, default=ROOT / "target/mutations", help="build folder of the copy")
    settings = parser.parse_args()
    table = json.loads((Path(__file__).parent / "faults.json").read_text())
    chosen = [fault for fault in table["faults"] if not settings.names or fault["name"] in settings.names]
    folder = settings.target / "source"
    shutil.rmtree(folder, ignore_errors=True)
    copy(folder)
    tests = table["tests"]
    broken = [name for name, result in results(folder, settings.target, tests).items() if result != "ok"]
    if broken:
        sys.exit(f"tests that fail without a fault: {', '.join(broken)}")
    survived = []
    for fault in chosen:
        path = folder / fault["file"]
        text = path.read_text()
        if text.count(fault["old"]) != 1:
            sys.exit(f"{fault['name']}: its text occurs {text.count(fault['old'])} times in {fault['file']}, expected once")
        path.write_text(text.replace(fault["old"], fault["new"]))
        for name, result in results(folder, settings.target, fault.get("tests", tests)).items():
            caught = result == "FAILED"
            print(f"{fault['name']:<24} {name:<64} {'caught' if caught else 'SURVIVED'}", flush=True)
            if not caught:
                survived.append((fault["name"], name))
        path.write_text(text)
    print(f"{len(chosen)} faults, {len(survived)} survived")
    sys.exit(1 if survived else 0)


main()

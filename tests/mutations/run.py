"""Mutation tests of the kernels: inserts one fault at a time (a swapped operand, an edge off by one, a wrong swizzle bit) and
checks that the tests fail.

python3 tests/mutations/run.py [NAME...]

A fault of faults.json replaces one text in one file. It must make each of its tests fail; the same tests must pass without it.
Faults of kernels need no rebuild: the test program is built once and loads the changed kernel files through MAPL_KERNELS. A fault
of Rust code is built in a copy of the tracked files. Has the requirements of the tests. All faults take about an hour of
processor time; --jobs runs several at once.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels"
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)


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


def build(folder, target):
    """Builds the test program of a checkout and returns its path."""
    command = ["cargo", "test", "--release", "--no-run", "--message-format=json", "--target-dir", str(target), "--test", "ops"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    found = [line["executable"] for line in lines if line.get("executable") and line["target"]["name"] == "ops"]
    if run.returncode != 0 or not found:
        errors = [line["message"]["rendered"] for line in lines if line.get("reason") == "compiler-message"]
        sys.exit(f"the test program cannot be built:\n{''.join(errors)[-3000:]}\n{run.stderr[-3000:]}")
    return found[-1]


def results(program, folder, tests, kernels, threads):
    """Runs tests and returns the result (`ok` or `FAILED`) of each by name. A test whose process a signal ends has failed. A kernel
    that does not compile ends the script: it would fail every test and show nothing."""
    names = sorted(set(tests))
    environment = {**os.environ, "MAPL_REQUIRE_EMULATOR": "1", "CARGO_MANIFEST_DIR": str(folder / "tests")}
    if kernels:
        environment |= {"MAPL_KERNELS": str(kernels), "MAPL_CACHE_DIR": str(kernels / "cache")}

    def run_of(names):
        command = [program, f"--test-threads={threads}", *names]
        run = subprocess.run(command, cwd=folder / "tests", env=environment, capture_output=True, text=True)
        return run, dict(re.findall(r"^test (\S+) \.\.\. (ok|FAILED)$", run.stdout, re.M))

    run, found = run_of(names)
    if kernels and ("does not compile" in run.stdout + run.stderr or "note: kernels of MAPL_KERNELS" not in run.stdout + run.stderr):
        sys.exit(f"the kernels of {kernels} were not used:\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}")
    # A process that died reports nothing about its unfinished tests, so each of them runs in a separate
    # process.
    for name in [name for name in names if name not in found and run.returncode < 0]:
        alone, its = run_of([name])
        found |= its
        if name not in its and alone.returncode < 0:
            found[name] = "FAILED"
    missing = [name for name in names if name not in found]
    if missing:
        sys.exit(f"no result for {', '.join(missing)}:\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}")
    return found


def includes(path, seen):
    """Adds the file's name and those of all headers that it includes."""
    name = path.relative_to(KERNELS).as_posix()
    if name in seen:
        return seen
    seen.add(name)
    for header in INCLUDE.findall(path.read_text()):
        for place in (path.parent / header, KERNELS / header):
            if place.is_file():
                includes(place.resolve(), seen)
                break
    return seen


def kernel_folder(folder, name):
    """A folder with all headers and with the kernel files that hold `name`, a path relative to kernels/."""
    shutil.rmtree(folder, ignore_errors=True)
    used = [path for path in KERNELS.glob("*.cu") if name in includes(path, set())]
    headers = [path for path in KERNELS.rglob("*") if path.is_file() and path.suffix != ".cu" and path.parent != KERNELS]
    for path in [*used, *headers, *KERNELS.glob("*.cuh")]:
        target = folder / path.relative_to(KERNELS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    return folder


def insert(path, fault):
    """Replaces the text of a fault and returns the text without it."""
    text = path.read_text()
    if text.count(fault["old"]) != 1:
        sys.exit(f"{fault['name']}: its text occurs {text.count(fault['old'])} times in {fault['file']}, expected once")
    path.write_text(text.replace(fault["old"], fault["new"]))
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="names of the faults to test, all by default")
    parser.add_argument("--target", type=Path, default=ROOT / "target/mutations", help="build folder")
    program_help = "path of this checkout's test program `ops`, if it is already built"
    parser.add_argument("--program", type=Path, help=program_help)
    parser.add_argument("--jobs", type=int, default=1, help="number of kernel faults that run in parallel")
    settings = parser.parse_args()
    # The tests run in a different folder, so this path must be absolute.
    settings.target = settings.target.resolve()
    table = json.loads((Path(__file__).parent / "faults.json").read_text())
    unknown = set(settings.names) - {fault["name"] for fault in table["faults"]}
    if unknown:
        parser.error(f"faults.json has no fault {', '.join(sorted(unknown))}")
    chosen = [fault for fault in table["faults"] if not settings.names or fault["name"] in settings.names]
    tests = table["tests"]
    program = settings.program.resolve() if settings.program else build(ROOT, settings.target)

    # Baseline: each unchanged kernel file must pass the tests that its faults must fail.
    of_file = {}
    for fault in chosen:
        of_file.setdefault(fault["file"], set()).update(fault.get("tests", tests))

    def kernels_of(file, label):
        return kernel_folder(settings.target / "kernels" / label, file.removeprefix("kernels/"))

    def sound(file):
        kernels = kernels_of(file, re.sub(r"\W", "_", file)) if file.startswith("kernels/") else None
        found = results(program, ROOT, of_file[file], kernels, 2)
        return [f"{file}: {name}" for name, result in found.items() if result != "ok"]

    with ThreadPoolExecutor(settings.jobs) as pool:
        broken = sum(pool.map(sound, of_file), [])
    if broken:
        sys.exit(f"tests that fail without a fault: {', '.join(broken)}")

    def tried(fault):
        wanted = fault.get("tests", tests)
        if fault["file"].startswith("kernels/"):
            kernels = kernels_of(fault["file"], re.sub(r"\W", "_", fault["name"]))
            insert(kernels / fault["file"].removeprefix("kernels/"), fault)
            found = results(program, ROOT, wanted, kernels, 2)
            shutil.rmtree(kernels)
        else:
            source = settings.target / "source"
            copy(source)
            text = insert(source / fault["file"], fault)
            found = results(build(source, settings.target / "changed"), source, wanted, None, 2)
            (source / fault["file"]).write_text(text)
        for name in sorted(set(wanted)):
            print(f"{fault['name']:<24} {name:<64} {'caught' if found[name] == 'FAILED' else 'SURVIVED'}", flush=True)
        return [(fault["name"], name) for name in set(wanted) if found[name] != "FAILED"]

    in_kernels = [fault for fault in chosen if fault["file"].startswith("kernels/")]
    with ThreadPoolExecutor(settings.jobs) as pool:
        survived = sum(pool.map(tried, in_kernels), [])
    survived += sum((tried(fault) for fault in chosen if fault not in in_kernels), [])
    print(f"{len(chosen)} faults, {len(survived)} survived")
    sys.exit(1 if survived else 0)


main()

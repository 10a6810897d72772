"""Packs the GPU suite for a machine without Rust into target/gpu-suite: the stripped release binary and device tests, run.py and
the scripts that benchmark other libraries; at most 60 MiB in total.

python3 tests/gpu/pack.py

Requires the build's dependencies, nvcc and strip.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "target" / "gpu-suite"
MOST = 60 << 20


def output(*command):
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def executables(*command):
    """Runs a cargo command and returns the paths of its executables by target name."""
    built = subprocess.run([*command, "--message-format=json"], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                           env={**os.environ, "MAPL_REQUIRE_NVCC": "1", "MAPL_LINEINFO": "1"})
    if built.returncode != 0:
        sys.exit(f"{' '.join(command)} failed")
    messages = [json.loads(line) for line in built.stdout.splitlines() if line.startswith("{")]
    return {m["target"]["name"]: m["executable"] for m in messages if m.get("executable")}


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    found = executables("cargo", "build", "--release", "--locked")
    found |= executables("cargo", "test", "--release", "--locked", "--no-run", "--test", "ops")
    for name in ["mapl", "ops"]:
        shutil.copy2(found[name], FOLDER / name)
        subprocess.run(["strip", FOLDER / name], check=True)
    # Copies all scripts except run.py, which alternates `mapl bench` with ops.py; the suite has a separate
    # run.py.
    scripts = [path for path in sorted((ROOT / "benches/peers").glob("*.py")) if path.name != "run.py"]
    for script in [ROOT / "tests/gpu/run.py", *scripts]:
        shutil.copy2(script, FOLDER)
    source = {
        "commit": output("git", "rev-parse", "--short", "HEAD").strip(),
        "changed": bool(output("git", "status", "--porcelain").strip()),
    }
    (FOLDER / "source.json").write_text(json.dumps(source) + "\n")
    size = sum(path.stat().st_size for path in FOLDER.iterdir())
    print(f"{FOLDER}: {size / (1 << 20):.1f} MiB, commit {source['commit']}")
    if size > MOST:
        sys.exit(f"more than {MOST >> 20} MiB; the files by size: {sorted((p.stat().st_size, p.name) for p in FOLDER.iterdir())}")


if __name__ == "__main__":
    main()

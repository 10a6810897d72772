"""Alternates `mapl bench` and the peers on the same shapes and prints how they compare.

Each round runs both sides once, in alternating order. A ratio is the peer's median time over mapl's within a round, so above 1 is
in favour of mapl. The table shows the median of the ratios over all rounds.
"""

import argparse
import csv
import pathlib
import statistics
import subprocess
import sys

KEY = ("dtype", "op", "model", "layer", "shape")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mapl", default="target/release/mapl", help="path of the mapl binary")
    parser.add_argument("--python", required=True, help="Python with the packages of requirements.txt")
    parser.add_argument("--work", required=True, type=pathlib.Path, help="folder for the rows of every round")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of one run per side")
    parser.add_argument("--output", type=pathlib.Path, help="CSV file for the last round's rows of both sides")
    parser.add_argument("--peer-flag", action="append", default=[], help="flag for ops.py, such as --no-compile; can be repeated")
    parser.add_argument("bench", nargs="*", help="flags of mapl bench, after --")
    return parser.parse_args()


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main():
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    here = pathlib.Path(__file__).parent
    ratios, times, notes, load = {}, {}, {}, 0.0
    for turn in range(args.rounds):
        ours, theirs = args.work / f"mapl-{turn}.csv", args.work / f"peers-{turn}.csv"
        bench = [args.mapl, "bench", "--device", args.device, "--output", str(ours), *args.bench]
        shapes = ours if turn % 2 == 0 else args.work / f"mapl-{turn - 1}.csv"
        peers = [args.python, "-B", str(here / "ops.py"), "--rows", str(shapes), "--output", str(theirs), "--device", args.device, *args.peer_flag]
        for command in (bench, peers) if turn % 2 == 0 else (peers, bench):
            print(f"round {turn + 1} of {args.rounds}: {' '.join(command)}", file=sys.stderr)
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        mine = {tuple(row[k] for k in KEY): row for row in read(ours) if row["variant"] == "mapl" and row["status"] == "measured"}
        load = max([load, *(float(row["others"]) for row in mine.values() if row["others"])])
        for row in read(theirs):
            key = tuple(row[k] for k in KEY)
            if row["status"] != "measured":
                notes[key, row["variant"]] = f"{row['status']}: {row['note']}"
            elif key in mine:
                one, other = float(mine[key]["median_us"]), float(row["median_us"])
                ratios.setdefault((key, row["variant"]), []).append(other / one)
                times[key, row["variant"]] = (one, other)
        if args.output and turn == args.rounds - 1:
            rows = read(ours) + read(theirs)
            with open(args.output, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    print(f"{'op':<18} {'dtype':<5} {'peer':<26} {'mapl us':>12} {'peer us':>12} {'ratio':>7} {'min':>6} {'max':>6}  shape")
    for (key, variant), found in ratios.items():
        one, other = times[key, variant]
        middle = statistics.median(found)
        print(f"{key[1]:<18} {key[0]:<5} {variant:<26} {one:>12.1f} {other:>12.1f} {middle:>6.2f}x {min(found):>6.2f} {max(found):>6.2f}  {key[2]} {key[3]} {key[4]}")
    if load > 0.1 and args.device == "cpu":
        print(f"warning: other programs used up to {load:.1f} CPU cores; repeat on an idle machine")
    best = {}
    for (key, variant), found in ratios.items():
        best[key] = min(best.get(key, float("inf")), statistics.median(found))
    if best:
        print(f"geometric mean against the best peer of each row, {len(best)} rows: {statistics.geometric_mean(best.values()):.2f}x")
    for (key, variant), note in notes.items():
        print(f"{key[1]} {variant} {key[4]}: {note}")


if __name__ == "__main__":
    main()

"""Checks with transformers a model folder that mapl wrote. Run by hand:

    python tests/golden/check_saved.py FOLDER EXPECTED.json [--tolerance 2e-5] [--reward-tolerance 2e-4]

EXPECTED.json has the format of the cases in this folder: `sequences`, each with `prompt` and `response` ids and any of
`logps` (per response token), `logp` (their sum) or `reward`; optionally `logits`, each with `sequence`, `position` and
`values`. Log-probabilities and logits are compared relative to their magnitude (at least 1), rewards absolutely. The
folder is loaded without remote code, and loading must not report missing, unexpected or wrongly shaped weights. Works
with transformers 4 and 5. Exits with 1 if anything differs.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification


def load(folder):
    architecture = AutoConfig.from_pretrained(folder).architectures[0]
    reward = architecture.endswith("ForSequenceClassification")
    auto = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    model, info = auto.from_pretrained(
        folder, torch_dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    problems = {key: sorted(map(str, found)) for key, found in info.items() if found}
    if problems:
        sys.exit(f"{folder}: loading reports {problems}")
    if type(model).__name__ != architecture:
        sys.exit(f"{folder}: loaded as {type(model).__name__}, config.json says {architecture}")
    return model.eval(), reward


class Comparison:
    """Largest difference of each kind of value."""

    def __init__(self):
        self.worst = {}
        self.failed = False

    def add(self, kind, got, expected, tolerance, relative):
        got = torch.as_tensor(got, dtype=torch.float64).flatten()
        expected = torch.as_tensor(expected, dtype=torch.float64).flatten()
        if got.shape != expected.shape:
            sys.exit(f"{kind}: {got.numel()} values, expected {expected.numel()}")
        scale = expected.abs().clamp(min=1.0) if relative else torch.ones_like(expected)
        difference = ((got - expected).abs() / scale).max().item()
        count, worst = self.worst.get(kind, (0, 0.0))
        self.worst[kind] = (count + got.numel(), max(worst, difference))
        # Negated so that a NaN fails.
        self.failed |= not difference <= tolerance


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("expected", type=Path)
    parser.add_argument("--tolerance", type=float, default=2e-5)
    parser.add_argument("--reward-tolerance", type=float, default=2e-4)
    arguments = parser.parse_args()

    case = json.loads(arguments.expected.read_text())
    model, reward = load(arguments.folder)
    torch.set_num_threads(1)
    comparison = Comparison()
    all_logits = []
    with torch.no_grad():
        for sequence in case["sequences"]:
            prompt, response = sequence["prompt"], sequence["response"]
            logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0]
            all_logits.append(logits)
            if reward:
                comparison.add("reward", logits, [sequence["reward"]], arguments.reward_tolerance, False)
                continue
            rows = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
            logps = rows.gather(1, torch.tensor(response)[:, None])[:, 0].double()
            if "logps" in sequence:
                comparison.add("logps", logps, sequence["logps"], arguments.tolerance, True)
            if "logp" in sequence:
                comparison.add("logp", logps.sum(), sequence["logp"], arguments.tolerance, True)
    for row in case.get("logits", []):
        got = all_logits[row["sequence"]][row["position"]]
        comparison.add("logits", got, row["values"], arguments.tolerance, True)
    if not comparison.worst:
        sys.exit(f"{arguments.expected}: nothing to compare")
    print(f"{arguments.folder}: {type(model).__name__}, transformers {transformers.__version__}")
    for kind, (count, worst) in sorted(comparison.worst.items()):
        print(f"  {kind}: {count} values, largest difference {worst:.2e}")
    sys.exit("FAILED" if comparison.failed else 0)


if __name__ == "__main__":
    main()

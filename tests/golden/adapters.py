"""Generates the adapters of this folder: small LoRA folders of PEFT on the models of `models/`, and the log-probs and
rewards that PEFT computes with them. README.md describes the output. Run from any directory, after make.py:

    python tests/golden/adapters.py [OUTPUT_DIR]

    python tests/golden/adapters.py --check FOLDER [--base BASE] EXPECTED.json

The second form loads an adapter folder that mapl wrote in PEFT and compares it with a case of this folder. The same
package versions on the same kind of CPU give the same bytes. All arithmetic is float32 with eager attention.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

os.environ.update(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

HERE = Path(__file__).resolve().parent
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

# Name, base, head, and settings of LoraConfig.
CASES = [
    ("plain", "llama", "lm", {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}),
    ("rslora", "llama", "lm", {"r": 3, "lora_alpha": 6, "use_rslora": True, "target_modules": "all-linear"}),
    (
        "patterns",
        "llama",
        "lm",
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": r".*\.(q_proj|o_proj|down_proj)",
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 5},
            "alpha_pattern": {r"^model.layers.0.self_attn.q_proj": 3, "o_proj": 12},
        },
    ),
    (
        "layers",
        "qwen2",
        "lm",
        {
            "r": 2,
            "lora_alpha": 5,
            "target_modules": ["q_proj", "k_proj", "gate_proj"],
            "layers_to_transform": [1],
            "exclude_modules": ["k_proj"],
        },
    ),
    (
        "tables",
        "llama",
        "lm",
        {"r": 2, "lora_alpha": 4, "target_modules": ["embed_tokens", "up_proj"], "modules_to_save": ["lm_head"]},
    ),
    (
        "fused",
        "phi3",
        "lm",
        {"r": 3, "lora_alpha": 6, "target_modules": ["qkv_proj", "gate_up_proj", "down_proj", "o_proj"]},
    ),
    (
        "reward",
        "llama",
        "reward",
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["score"]},
    ),
]


def short(x):
    """The shortest decimal that is the same f32."""
    return float(str(np.float32(x)))


def load(base, head):
    auto = {"lm": AutoModelForCausalLM, "reward": AutoModelForSequenceClassification}[head]
    more = {"num_labels": 1} if head == "reward" else {}
    return auto.from_pretrained(base, dtype=torch.float32, attn_implementation="eager", **more).eval()


def randomise(model, seed):
    rng = np.random.default_rng(seed)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name or "modules_to_save" in name:
            noise = torch.from_numpy(rng.standard_normal(parameter.shape).astype(np.float32))
            with torch.no_grad():
                parameter.copy_(0.2 * noise)


def values_of(model, head, sequences):
    rows = []
    with torch.no_grad():
        for prompt, response in sequences:
            logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0]
            row = {"prompt": prompt, "response": response}
            if head == "reward":
                row["reward"] = short(logits[0].item())
            else:
                logps = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
                logps = logps.gather(1, torch.tensor(response)[:, None])[:, 0]
                row["logps"] = [short(x.item()) for x in logps]
                row["logp"] = short(logps.double().sum().item())
            rows.append(row)
    return rows


def make(out):
    for number, (name, base, head, settings) in enumerate(CASES):
        source = json.loads((HERE / f"{base}.json").read_text())
        sequences = [(row["prompt"], row["response"]) for row in source["sequences"][:4]]
        task = "SEQ_CLS" if head == "reward" else "CAUSAL_LM"
        model = get_peft_model(load(HERE / "models" / base, head), LoraConfig(task_type=task, **settings)).eval()
        randomise(model, 1000 + number)
        folder = out / "adapters" / name
        shutil.rmtree(folder, ignore_errors=True)
        # The path is relative to the adapter's folder, so that the fixture works in every checkout.
        model.peft_config["default"].base_model_name_or_path = f"../../models/{base}"
        model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)
        config = folder / "adapter_config.json"
        settings = json.loads(config.read_text())
        for key, value in settings.items():
            # PEFT writes a set in an order that differs from run to run.
            if key in ("target_modules", "exclude_modules") and isinstance(value, list):
                settings[key] = sorted(value)
        config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
        merged = values_of(model.merge_and_unload(), head, sequences) if name != "tables" else None
        again = PeftModel.from_pretrained(load(HERE / "models" / base, head), folder).eval()
        case = {"base": f"models/{base}", "adapter": f"adapters/{name}", "sequences": values_of(again, head, sequences)}
        if merged is not None:
            worst = max(
                abs(a.get("logp", a.get("reward")) - b.get("logp", b.get("reward")))
                for a, b in zip(merged, case["sequences"])
            )
            assert worst < 1e-4, (name, worst)
        (out / "adapters" / f"{name}.json").write_text(json.dumps(case, indent=1, sort_keys=True) + "\n")
        print(f"{name}: {case['sequences'][0].get('logp', case['sequences'][0].get('reward'))}")


def check(folder, base, expected):
    settings = json.loads((folder / "adapter_config.json").read_text())
    head = "reward" if settings["task_type"] == "SEQ_CLS" else "lm"
    case = json.loads(expected.read_text())
    model = PeftModel.from_pretrained(load(base or settings["base_model_name_or_path"], head), folder).eval()
    sequences = [(row["prompt"], row["response"]) for row in case["sequences"]]
    worst = 0.0
    for got, row in zip(values_of(model, head, sequences), case["sequences"]):
        key = "reward" if head == "reward" else "logp"
        worst = max(worst, abs(got[key] - row[key]) / max(1.0, abs(row[key])))
    print(f"{folder}: largest difference {worst:.2e}")
    sys.exit("FAILED" if not worst <= 2e-5 else 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, nargs="?", default=HERE)
    parser.add_argument("--check", type=Path)
    parser.add_argument("--base", type=Path)
    arguments = parser.parse_args()
    if arguments.check:
        check(arguments.check, arguments.base, arguments.output)
    else:
        make(arguments.output)


if __name__ == "__main__":
    main()

"""Generates the fixtures of low-rank adapters: adapters as PEFT saves them for models of `models/`, and three AdamW
steps of PEFT and torch from there. Run it after make.py, with peft installed:

    python tests/golden/lora.py [OUTPUT_DIR]

README.md in this folder describes every output.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from make import ADAMW, BETA, MAX_GRAD_NORM, PAD, STEPS, adamw_of, comparison_losses, comparisons_of, dpo_losses
from make import floats, make_pairs, response_logps, scores_of, sequences_of, short, write_json, write_tensors

import numpy as np
import peft
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

# Name, model, task, seed, settings of the adapter. Every case has targets in each layer, and all cases
# together have every kind of linear layer as a target.
CASES = [
    ("lora-qwen2", "qwen2", "CAUSAL_LM", 210, {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}),
    (
        "lora-llama",
        "llama",
        "CAUSAL_LM",
        220,
        {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ["q_proj", "v_proj", "o_proj", "up_proj"]},
    ),
    ("lora-phi3", "phi3", "CAUSAL_LM", 230, {"r": 8, "lora_alpha": 8, "target_modules": "all-linear"}),
    (
        "lora-qwen3-reward",
        "qwen3-reward",
        "SEQ_CLS",
        240,
        {"r": 8, "lora_alpha": 12, "target_modules": ["k_proj", "v_proj", "gate_proj", "down_proj"]},
    ),
]


def load(folder, task):
    auto = AutoModelForSequenceClassification if task == "SEQ_CLS" else AutoModelForCausalLM
    model = auto.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    model.config.pad_token_id = PAD
    return model


def adapter(folder, task, seed, settings):
    """Returns the model with an adapter of random A, B and, for reward models, score head."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(task_type=task, lora_dropout=0.0, bias="none", **settings)
    model = peft.get_peft_model(load(folder, task), config).eval()
    rng = np.random.default_rng(seed)
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            noise = torch.from_numpy(rng.standard_normal(parameter.shape).astype(np.float32))
            with torch.no_grad():
                parameter.copy_(0.15 * noise)
    return model


def saved_tensors(model):
    """Returns the tensors of the adapter as PEFT saves them."""
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        return load_file(Path(scratch) / "adapter_model.safetensors")


def steps_of(model, loss):
    """Takes AdamW steps on `loss()`; returns losses and gradient norms."""
    optimizer, _ = adamw_of(model)
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p.requires_grad]
    losses, norms = [], []
    trained = [p for p in model.parameters() if p.requires_grad]
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM))
        losses.append(value)
        optimizer.step()
    with torch.no_grad():
        after = loss()
    return floats(torch.stack(losses)), floats(torch.stack(norms)), short(after.item())


def case(out, models, name, base, task, seed, settings):
    model = adapter(models / base, task, seed, settings)
    folder = out / name
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    config = folder / "adapter_config.json"
    # The absolute path exists only on this machine, so it is replaced by a relative one.
    config.write_text(config.read_text().replace(str(models / base), f"../../models/{base}"))
    pairs = make_pairs(seed + 3)
    score = scores_of if task == "SEQ_CLS" else lambda *args: response_logps(*args).sum()
    with torch.no_grad():
        sequences = [{"prompt": p, "response": r, "score": short(score(model, p, r).item())} for p, r in sequences_of(pairs)]
    if task == "SEQ_CLS":
        base_pairs = comparisons_of(pairs)[: len(pairs)]

        def loss():
            scores = [scores_of(model, *sequence) for sequence in sequences_of(pairs)[: 2 * len(pairs)]]
            return torch.stack(comparison_losses(scores, base_pairs)).mean()
    else:
        with torch.no_grad(), model.disable_adapter():
            reference = [
                [response_logps(model, p["prompt_ids"], p[f"{side}_ids"]).sum() for side in ("chosen", "rejected")]
                for p in pairs
            ]
        loss = lambda: dpo_losses(model, pairs, reference).mean()
    losses, norms, after = steps_of(model, loss)
    write_tensors(out / f"{name}.after.safetensors", saved_tensors(model).items())
    value = {
        "adapter": f"lora/{name}",
        "model": f"models/{base}",
        "pairs": pairs,
        "sequences": sequences,
        "beta": BETA,
        "learning_rate": ADAMW["lr"],
        "weight_decay": ADAMW["weight_decay"],
        "max_grad_norm": MAX_GRAD_NORM,
        "losses": losses,
        "grad_norms": norms,
        "loss_after": after,
        "weights": f"lora/{name}.after.safetensors",
    }
    write_json(out / f"{name}.json", value)


def main():
    here = Path(__file__).parent.resolve()
    out = (Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else here) / "lora"
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    for row in CASES:
        case(out, here / "models", *row)
    print({"peft": peft.__version__})


if __name__ == "__main__":
    main()

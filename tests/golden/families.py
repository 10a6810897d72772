"""Generates further fixtures of every family, next to those of make.py: a small second model with the opposite setting of
tied embeddings, a reward model of Ministral, and three DPO steps of every language model. README.md describes the outputs.
Run from any directory, after make.py:

    python tests/golden/families.py [OUTPUT_DIR]

OUTPUT_DIR holds the output of make.py. All arithmetic is as in make.py.
"""

import sys
import tempfile
from pathlib import Path

import configs
import make
import torch
from configs import DYNAMIC, GRANITE, LONGROPE, VOCAB
from make import STEPS
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24}
# Every seventh element of a tensor is stored, which covers every row and column of these matrices.
STRIDE = 7

TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
# LongRoPE on half of each head, as in Phi-4-mini.
PARTIAL_LONGROPE = {**LONGROPE, "partial_rotary_factor": 0.5, "short_factor": [1.0, 1.5], "long_factor": [1.0, 4.0]}
# Models with the opposite setting of tied embeddings: name, class of the configuration, seed, keys.
SECOND = [
    ("qwen2-untied", configs.Qwen2Config, 310, UNTIED),
    ("mistral-tied", configs.MistralConfig, 320, {**TIED, "head_dim": 8, "sliding_window": 9}),
    ("ministral-untied", configs.MinistralConfig, 330, {**UNTIED, "head_dim": 12, "sliding_window": 128}),
    ("seed_oss-tied", configs.SeedOssConfig, 340, {**TIED, "head_dim": 8, "attention_out_bias": True, "mlp_bias": True}),
    ("smollm3-untied", configs.SmolLM3Config, 350, {**UNTIED, "no_rope_layers": [1, 0]}),
    ("phi3-tied", configs.Phi3Config, 360, {**TIED, "original_max_position_embeddings": 64, "rope_parameters": PARTIAL_LONGROPE}),
    ("granite-untied", configs.GraniteConfig, 370, {**UNTIED, **GRANITE, "attention_bias": True, "mlp_bias": True}),
    ("stablelm-tied", configs.StableLmConfig, 380, {**TIED, "use_parallel_residual": True}),
    ("gpt_neox-tied", configs.GPTNeoXConfig, 390, {**TIED, "use_parallel_residual": False, "rotary_pct": 0.5}),
    ("gpt2-untied", configs.GPT2Config, 400, {**UNTIED, "n_embd": 16, "n_head": 2, "n_inner": 24}),
    ("olmo2-untied", configs.Olmo2Config, 410, UNTIED),
    ("olmo3-tied", configs.Olmo3Config, 420, {**TIED, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}),
    ("gemma-untied", configs.GemmaConfig, 430, {**UNTIED, "head_dim": 8}),
]
MINISTRAL_REWARD = {**SMALL, "head_dim": 8, "sliding_window": 6, "rope_parameters": DYNAMIC, "tie_word_embeddings": False}

# The frozen reference of each model: another model of its family.
REFERENCES = {
    "llama-bf16-sharded": "llama",
    "llama_bias": "llama",
    "mistral-window": "mistral",
    "qwen2-window": "qwen2",
    "phi3-window": "phi3",
    "qwen3": "qwen3-window",
    "qwen3-window": "qwen3",
    "gemma2-untied": "gemma2",
    "gemma3-untied": "gemma3",
}
for _name, *_ in SECOND:
    _first = _name.split("-")[0]
    REFERENCES[_name] = _first
    if _first != "qwen2":
        REFERENCES[_first] = _name


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


def sampled(prefix, named):
    return [(f"{prefix}/{name}", value.detach().flatten()[::STRIDE].clone()) for name, value in named]


def steps_of(out, name, pairs):
    """Returns the DPO losses of three AdamW steps, and samples of the first gradient and of the update."""
    policy, reference = load(out / f"models/{name}"), load(out / f"models/{REFERENCES[name]}")
    with tempfile.TemporaryDirectory() as scratch:
        trl_loss = make.trl_dpo_loss(policy, reference, pairs, scratch)
    # The trainer wraps the forward of both models, so both are loaded again.
    policy, reference = load(out / f"models/{name}"), load(out / f"models/{REFERENCES[name]}")
    start = {key: value.detach().clone() for key, value in policy.named_parameters()}
    with torch.no_grad():
        frozen = [
            tuple(make.response_logps(reference, p["prompt_ids"], p[side]).double().sum() for side in ["chosen_ids", "rejected_ids"])
            for p in pairs
        ]
    frozen = [(chosen.float(), rejected.float()) for chosen, rejected in frozen]
    optimiser, decayed = make.adamw_of(policy)
    losses, norms, gradients = [], [], []
    for step in range(STEPS):
        optimiser.zero_grad()
        loss = make.dpo_losses(policy, pairs, frozen).mean()
        loss.backward()
        if step == 0:
            gradients = sampled(name, [(key, value.grad) for key, value in policy.named_parameters()])
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), make.MAX_GRAD_NORM, foreach=False)
        norms.append(make.short(norm.item()))
        optimiser.step()
        losses.append(make.short(loss.item()))
    with torch.no_grad():
        last = make.short(make.dpo_losses(policy, pairs, frozen).mean().item())
    updates = sampled(name, [(key, value - start[key]) for key, value in policy.named_parameters()])
    case = {
        "model": f"models/{name}",
        "reference": f"models/{REFERENCES[name]}",
        "trl_loss": make.short(trl_loss),
        "losses": losses,
        "loss_after": last,
        "grad_norms": norms,
        "decayed": decayed,
    }
    return case, gradients, updates


def main():
    out = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent).resolve()
    for name, config, seed, keys in SECOND:
        model = make.build(AutoModelForCausalLM, configs.small(config, **{**SMALL, **keys}), seed + 1)
        model = make.save(model, out / f"models/{name}", torch.bfloat16)
        case = make.language_model_case(out, name, model, None, make.make_pairs(seed + 3), False)
        make.write_json(out / f"{name}.json", case)
    config = configs.small(configs.MinistralConfig, num_labels=1, **MINISTRAL_REWARD)
    model = make.build(AutoModelForSequenceClassification, config, 335)
    model = make.save(model, out / "models/ministral-reward", torch.bfloat16)
    make.write_json(out / "ministral-reward.json", make.reward_case(out, "ministral-reward", model, make.make_pairs(337)))

    pairs = make.make_pairs(301)
    assert all(i < VOCAB for pair in pairs for ids in pair.values() for i in ids)
    cases, gradients, updates = [], [], []
    for name in sorted(REFERENCES):
        case, of_gradients, of_updates = steps_of(out, name, pairs)
        cases.append(case)
        gradients += of_gradients
        updates += of_updates
    make.write_tensors(out / "steps.gradients.safetensors", gradients)
    make.write_tensors(out / "steps.updates.safetensors", updates)
    table = {
        "beta": make.BETA,
        "learning_rate": make.ADAMW["lr"],
        "beta1": make.ADAMW["betas"][0],
        "beta2": make.ADAMW["betas"][1],
        "epsilon": make.ADAMW["eps"],
        "weight_decay": make.ADAMW["weight_decay"],
        "max_grad_norm": make.MAX_GRAD_NORM,
        "stride": STRIDE,
        "pairs": pairs,
        "cases": cases,
        "gradients": "steps.gradients.safetensors",
        "updates": "steps.updates.safetensors",
    }
    make.write_json(out / "steps.json", table)
    print(len(SECOND), "models,", len(cases), "cases of steps")


if __name__ == "__main__":
    main()

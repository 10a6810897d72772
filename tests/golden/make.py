"""Generates the golden fixtures: tiny random models of every supported family in Hugging Face folders, and the results
of transformers, torch and TRL for them. README.md in this folder describes every output. Run from any directory:

    python tests/golden/make.py [OUTPUT_DIR]

The same package versions on the same kind of CPU give the same bytes: one thread, fixed seeds, sorted keys. All
arithmetic is float32 with eager attention. losses.py, run after this, writes the losses of TRL.
"""

import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.update(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")

import numpy as np
import torch
import torch.nn.functional as F
import transformers
import trl
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer, models as tokenizer_models
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast, Trainer
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.granite.modeling_granite import GranitePreTrainedModel

from configs import BOS, EOS, FAMILIES, GraniteConfig, LLAMA3, PAD, TRAINED, VOCAB, llama, qwen2, small

BETA = 0.1
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
MAX_GRAD_NORM = 1.0
STEPS = 3

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

# ---------------------------------------------------------------------------------------------------------------------
# Models


class GraniteForSequenceClassification(GenericForSequenceClassification, GranitePreTrainedModel):
    """Granite has no such class in transformers; made as those of other families are."""


AutoModelForSequenceClassification.register(GraniteConfig, GraniteForSequenceClassification, exist_ok=True)


def randomise(model, seed, base=None):
    """Sets every parameter to a random value: norm weights near 1, others near 0. With `base`, adds small noise to the
    values of `base`, so the two models agree roughly, like a policy and its reference."""
    rng = np.random.default_rng(seed)
    origin = dict(base.named_parameters()) if base is not None else {}
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.from_numpy(rng.standard_normal(parameter.shape).astype(np.float32))
        if name.endswith("bias"):
            scale, middle = 0.3, 0.0
        elif "norm" in name or ".ln_" in name:
            # Gemma stores the difference of a norm weight from 1.
            scale, middle = 0.2, 0.0 if "Gemma" in type(model).__name__ else 1.0
        elif any(table in name for table in ["embed_tokens", "embed_in", "wte", "wpe"]):
            scale, middle = 0.5, 0.0
        else:
            scale, middle = 0.22, 0.0
        with torch.no_grad():
            if origin:
                parameter.copy_(origin[name] + 0.25 * scale * noise)
            else:
                parameter.copy_(middle + scale * noise)
    return model


def build(auto, config, seed, base=None):
    torch.manual_seed(seed)
    model = auto.from_config(config, attn_implementation="eager", dtype=torch.float32)
    return randomise(model, seed, base).eval()


def save(model, folder, dtype=torch.float32, shard="5GB"):
    """Writes the folder and returns the model loaded from it in float32."""
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    auto = AutoModelForSequenceClassification if hasattr(model, "score") else AutoModelForCausalLM
    return auto.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


# ---------------------------------------------------------------------------------------------------------------------
# Inputs


def make_pairs(seed):
    """Returns preference pairs of token ids: ordinary pairs, a one-token prompt, one-token responses, a response that
    starts with tokens of its prompt, and responses that share their first tokens."""
    rng = np.random.default_rng(seed)
    ids = lambda n: [int(i) for i in rng.integers(3, PAD, n)]
    pairs = []
    for prompt, chosen, rejected in [(9, 7, 5), (1, 4, 6), (14, 1, 1), (6, 18, 11)]:
        pairs.append(
            {
                "prompt_ids": [BOS] * (prompt == 1) + ids(prompt - (prompt == 1)),
                "chosen_ids": ids(chosen - 1) + [EOS],
                "rejected_ids": ids(rejected),
            }
        )
    shared = ids(3)
    pairs[0]["chosen_ids"] = shared + pairs[0]["chosen_ids"]
    pairs[0]["rejected_ids"] = shared + pairs[0]["rejected_ids"]
    pairs[3]["chosen_ids"] = pairs[3]["prompt_ids"][:4] + pairs[3]["chosen_ids"]
    return pairs


def sequences_of(pairs):
    """Returns distinct (prompt, response) sequences: chosen and rejected of each pair, then the responses of the first
    pair with a longer prompt, for comparisons across prompts."""
    out = []
    for pair in pairs:
        out.append((pair["prompt_ids"], pair["chosen_ids"]))
        out.append((pair["prompt_ids"], pair["rejected_ids"]))
    longer = pairs[0]["prompt_ids"][:5] + pairs[2]["prompt_ids"][:6] + pairs[0]["prompt_ids"][5:]
    out.append((longer, pairs[0]["chosen_ids"]))
    out.append((longer, pairs[0]["rejected_ids"]))
    return out


def comparisons_of(pairs):
    """Returns comparisons of signed sequences: the base pairs, then intra (one response, two prompts) and inter
    (difference of differences) comparisons of the first pair and its longer prompt."""
    base = [{"kind": "base", "terms": [[2 * i, 1], [2 * i + 1, -1]]} for i in range(len(pairs))]
    a, b = 2 * len(pairs), 2 * len(pairs) + 1
    return base + [
        {"kind": "intra", "terms": [[a, 1], [0, -1]]},
        {"kind": "intra", "terms": [[1, 1], [b, -1]]},
        {"kind": "inter", "terms": [[a, 1], [1, 1], [b, -1], [0, -1]]},
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Output of numbers


def short(x):
    """Returns a float32 as the shortest decimal that parses to the same float32."""
    return float(str(np.float32(x)))


def floats(tensor):
    return [short(x) for x in tensor.detach().double().flatten().tolist()]


def write_json(path, value):
    text = json.dumps(value, sort_keys=True, indent=1, separators=(",", ": ")) + "\n"
    # json writes one number per line; this joins a list of numbers into one line.
    path.write_text(re.sub(r"\[\s+([-\d.,eE\s]+?)\s+\]", lambda m: "[" + " ".join(m.group(1).split()) + "]", text))


def write_tensors(path, named):
    tensors = {name: value.detach().float().contiguous().clone() for name, value in sorted(named)}
    save_file(tensors, path, metadata={"format": "pt"})


# ---------------------------------------------------------------------------------------------------------------------
# Model results


def response_logps(model, prompt, response):
    """Returns the log-probability of each response token, one sequence at a time, without padding."""
    ids = torch.tensor([prompt + response])
    logits = model(input_ids=ids, use_cache=False).logits[0]
    rows = logits[len(prompt) - 1 : -1]
    return F.log_softmax(rows, dim=-1).gather(1, torch.tensor(response)[:, None])[:, 0]


def scores_of(model, prompt, response):
    return model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0, 0]


def comparison_losses(scores, comparisons):
    margins = [sum(sign * scores[s] for s, sign in c["terms"]) for c in comparisons]
    return [-F.logsigmoid(margin) for margin in margins]


def dpo_losses(model, pairs, reference):
    """Returns the sigmoid DPO loss of each pair; `reference` holds the frozen log-probabilities of chosen and rejected."""
    losses = []
    for pair, (ref_chosen, ref_rejected) in zip(pairs, reference):
        chosen = response_logps(model, pair["prompt_ids"], pair["chosen_ids"]).sum()
        rejected = response_logps(model, pair["prompt_ids"], pair["rejected_ids"]).sum()
        losses.append(-F.logsigmoid(BETA * ((chosen - ref_chosen) - (rejected - ref_rejected))))
    return torch.stack(losses)


def adamw_of(model):
    """Returns AdamW with the weight-decay exclusions of transformers' Trainer."""
    decayed = set(Trainer.get_decay_parameter_names(None, model)) & {n for n, _ in model.named_parameters()}
    groups = [
        {"params": [p for n, p in model.named_parameters() if n in decayed]},
        {"params": [p for n, p in model.named_parameters() if n not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, foreach=False, **ADAMW), sorted(decayed)


# ---------------------------------------------------------------------------------------------------------------------
# TRL


def dummy_tokenizer():
    vocab = {f"t{i}": i for i in range(VOCAB)}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(vocab, unk_token="t0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=f"t{PAD}", bos_token=f"t{BOS}", eos_token=f"t{EOS}"
    )


def trainer_arguments(folder, pairs):
    return {
        "output_dir": folder,
        "per_device_train_batch_size": len(pairs),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "gradient_checkpointing": False,
        "max_length": None,
        "dataloader_pin_memory": False,
    }


def trl_dpo(model, reference, pairs, folder, **options):
    # The trainer requires a text data set; the batches below are collated from ids instead.
    text = Dataset.from_list([{"prompt": "t3", "chosen": " t4", "rejected": " t5"}])
    arguments = trl.DPOConfig(beta=BETA, disable_dropout=True, **trainer_arguments(folder, pairs), **options)
    return trl.DPOTrainer(
        model=model, ref_model=reference, args=arguments, train_dataset=text, processing_class=dummy_tokenizer()
    )


def trl_dpo_loss(model, reference, pairs, folder):
    """Returns the loss of TRL's DPOTrainer on one padded batch of all pairs."""
    trainer = trl_dpo(model, reference, pairs, folder)
    batch = trainer.data_collator([dict(p) for p in pairs])
    with torch.no_grad():
        return trainer.compute_loss(trainer.model, batch).item()


def trl_reward_loss(model, pairs, folder):
    """Returns the loss of TRL's RewardTrainer on one padded batch of all pairs."""
    rows = [
        {"chosen_ids": p["prompt_ids"] + p["chosen_ids"], "rejected_ids": p["prompt_ids"] + p["rejected_ids"]}
        for p in pairs
    ]
    arguments = trl.RewardConfig(disable_dropout=True, **trainer_arguments(folder, pairs))
    trainer = trl.RewardTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=dummy_tokenizer()
    )
    batch = trainer.data_collator([dict(r) for r in rows])
    with torch.no_grad():
        return trainer.compute_loss(trainer.model, batch).item()


# ---------------------------------------------------------------------------------------------------------------------
# Cases


def inv_freq(model):
    rotary = getattr(model.base_model, "rotary_emb", None)
    if rotary is None:
        return []
    return floats(rotary.inv_freq if hasattr(rotary, "inv_freq") else rotary.full_attention_inv_freq)


def language_model_case(out, name, policy, reference, pairs, train):
    """Writes logits, log-probabilities and, with `train`, DPO loss, gradients and three AdamW steps."""
    sequences, comparisons = sequences_of(pairs), comparisons_of(pairs)
    case = {"model": f"models/{name}", "inv_freq": inv_freq(policy), "pairs": pairs, "sequences": [], "logits": []}
    with torch.no_grad():
        for number, (prompt, response) in enumerate(sequences):
            row = {"prompt": prompt, "response": response}
            for key, model in [("", policy), ("reference_", reference)]:
                if model is not None:
                    logps = response_logps(model, prompt, response)
                    row[key + "logps"], row[key + "logp"] = floats(logps), short(logps.double().sum().item())
            case["sequences"].append(row)
            if number in (0, 3, 8):
                logits = policy(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0]
                for position in sorted({0, len(prompt) - 1, len(prompt) + len(response) - 1}):
                    case["logits"].append(
                        {"sequence": number, "position": position, "values": floats(logits[position])}
                    )
    if not train:
        return case
    case["reference"] = f"models/{name}-reference"
    scores = [BETA * (s["logp"] - s["reference_logp"]) for s in case["sequences"]]
    losses = comparison_losses([torch.tensor(s, dtype=torch.float64) for s in scores], comparisons)
    case["comparisons"] = [{**c, "loss": short(loss.item())} for c, loss in zip(comparisons, losses)]

    with tempfile.TemporaryDirectory() as scratch:
        trl_loss = trl_dpo_loss(policy, reference, pairs, scratch)
    # The trainer wraps the forward of both models, so the loop below reloads them from the saved folders.
    policy = AutoModelForCausalLM.from_pretrained(
        out / case["model"], attn_implementation="eager", dtype=torch.float32
    ).eval()
    frozen = [
        (case["sequences"][2 * i]["reference_logp"], case["sequences"][2 * i + 1]["reference_logp"])
        for i in range(len(pairs))
    ]
    optimiser, decayed = adamw_of(policy)
    steps, norms = [], []
    for step in range(STEPS):
        optimiser.zero_grad()
        losses = dpo_losses(policy, pairs, frozen)
        losses.mean().backward()
        if step == 0:
            write_tensors(out / f"{name}.gradients.safetensors", [(n, p.grad) for n, p in policy.named_parameters()])
            case["dpo"] = {
                "beta": BETA,
                "losses": floats(losses),
                "loss": short(losses.mean().item()),
                "trl_loss": short(trl_loss),
                "gradients": f"{name}.gradients.safetensors",
            }
        norms.append(short(torch.nn.utils.clip_grad_norm_(policy.parameters(), MAX_GRAD_NORM, foreach=False).item()))
        optimiser.step()
        steps.append(short(losses.mean().item()))
    write_tensors(out / f"{name}.after.safetensors", policy.named_parameters())
    with torch.no_grad():
        last = short(dpo_losses(policy, pairs, frozen).mean().item())
    case["steps"] = {
        "learning_rate": ADAMW["lr"],
        "beta1": ADAMW["betas"][0],
        "beta2": ADAMW["betas"][1],
        "epsilon": ADAMW["eps"],
        "weight_decay": ADAMW["weight_decay"],
        "max_grad_norm": MAX_GRAD_NORM,
        "losses": steps,
        "loss_after": last,
        "grad_norms": norms,
        "decayed": decayed,
        "weights": f"{name}.after.safetensors",
    }
    return case


def reward_case(out, name, model, pairs):
    """Writes rewards, the Bradley-Terry loss and its gradients."""
    sequences, comparisons = sequences_of(pairs), comparisons_of(pairs)
    scores = torch.stack([scores_of(model, *s) for s in sequences])
    losses = torch.stack(comparison_losses(scores, comparisons))
    base = losses[: len(pairs)]
    base.mean().backward()
    write_tensors(out / f"{name}.gradients.safetensors", [(n, p.grad) for n, p in model.named_parameters()])
    with tempfile.TemporaryDirectory() as scratch:
        trl_loss = trl_reward_loss(model, pairs, scratch)
    return {
        "model": f"models/{name}",
        "inv_freq": inv_freq(model),
        "pairs": pairs,
        "sequences": [{"prompt": p, "response": r, "reward": short(s.item())} for (p, r), s in zip(sequences, scores)],
        "comparisons": [{**c, "loss": short(loss.item())} for c, loss in zip(comparisons, losses)],
        "bradley_terry": {
            "losses": floats(base),
            "loss": short(base.mean().item()),
            "trl_loss": short(trl_loss),
            "gradients": f"{name}.gradients.safetensors",
        },
    }


def main():
    out = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent).resolve()
    out.mkdir(parents=True, exist_ok=True)
    if (out / "models").exists():
        shutil.rmtree(out / "models")
    lm, rm = AutoModelForCausalLM, AutoModelForSequenceClassification
    models = out / "models"

    # Untied embeddings, grouped-query attention, heads wider than hidden / heads; reference stored as bf16.
    policy = build(lm, llama(head_dim=12, tie_word_embeddings=False), 11)
    reference = save(build(lm, policy.config, 12, policy), models / "llama-reference", torch.bfloat16)
    policy = save(policy, models / "llama")
    write_json(out / "llama.json", language_model_case(out, "llama", policy, reference, make_pairs(13), True))

    # Tied embeddings, biases on q, k and v.
    policy = build(lm, qwen2(tie_word_embeddings=True), 21)
    reference = save(build(lm, policy.config, 22, policy), models / "qwen2-reference", torch.bfloat16)
    policy = save(policy, models / "qwen2")
    write_json(out / "qwen2.json", language_model_case(out, "qwen2", policy, reference, make_pairs(23), True))

    # Tied embeddings, llama3 RoPE scaling, stored as bf16 in shards.
    model = build(lm, llama(tie_word_embeddings=True, rope_parameters=LLAMA3), 31)
    model = save(model, models / "llama-bf16-sharded", torch.bfloat16, "16KB")
    write_json(
        out / "llama-bf16-sharded.json",
        language_model_case(out, "llama-bf16-sharded", model, None, make_pairs(33), False),
    )

    # Reward models; the first has linear RoPE scaling.
    linear = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    model = save(build(rm, llama(num_labels=1, rope_parameters=linear), 41), models / "llama-reward")
    write_json(out / "llama-reward.json", reward_case(out, "llama-reward", model, make_pairs(43)))
    model = save(build(rm, qwen2(num_labels=1), 51), models / "qwen2-reward")
    write_json(out / "qwen2-reward.json", reward_case(out, "qwen2-reward", model, make_pairs(53)))

    # Further families, stored as bf16. Models outside TRAINED have gradients only in the fixture of their
    # reward model.
    for name, config, seed, language, reward in FAMILIES:
        language = {"tie_word_embeddings": False, **language}
        policy, reference, trained = build(lm, small(config, **language), seed + 1), None, name in TRAINED
        if trained:
            reference = build(lm, policy.config, seed + 2, policy)
            reference = save(reference, models / f"{name}-reference", torch.bfloat16)
        policy = save(policy, models / name, torch.bfloat16)
        case = language_model_case(out, name, policy, reference, make_pairs(seed + 3), trained)
        write_json(out / f"{name}.json", case)
        if reward is not None:
            model = build(rm, small(config, num_labels=1, tie_word_embeddings=False, **reward), seed + 5)
            model = save(model, models / f"{name}-reward", torch.bfloat16)
            write_json(out / f"{name}-reward.json", reward_case(out, f"{name}-reward", model, make_pairs(seed + 7)))

    versions = {
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "trl": trl.__version__,
    }
    print(versions, sum(f.stat().st_size for f in out.rglob("*") if f.suffix in (".json", ".safetensors")), "bytes")


if __name__ == "__main__":
    main()

"""Generates losses.json, loss-steps.json and kto-steps.json: every loss of TRL's DPO, CPO, ORPO and KTO trainers, computed by
TRL's code, for given log-probabilities in float64, and over four steps of a tiny model in float32. Run from any directory, after
make.py:

    python tests/golden/losses.py [OUTPUT_DIR]

`options` of a loss are the options of `mapl dpo` that select it.
"""

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import make
import torch
import trl
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

NAMES = ["models/qwen2", "models/qwen2-reference"]
STEPS = 4
LEARNING_RATE = 1e-4
PLAIN = ["sigmoid", "hinge", "ipo", "apo_zero", "apo_down", "nca_pair", "bco_pair", "sppo_hard", "discopop", "sft", "sigmoid_norm"]
SMOOTHED = ["robust", "exo_pair", "aot", "aot_unpaired"]
DIVERGENCES = [("sigmoid", "forward_kl"), ("ipo", "js_divergence"), ("sigmoid_norm", "alpha_divergence"), ("hinge", "alpha_divergence")]
# Options that give weights to the tokens beyond the shorter response, or to pairs.
WEIGHED = [
    {"loss_type": ["sigmoid"], "ld_alpha": 0.3},
    {"loss_type": ["ipo"], "ld_alpha": 0.0},
    {"loss_type": ["bco_pair"], "ld_alpha": 0.7},
    {"loss_type": ["sigmoid"], "use_weighting": True},
    {"loss_type": ["sigmoid", "sigmoid_norm"], "use_weighting": True, "ld_alpha": 0.5},
]
LIST = ["sigmoid", "ipo", "bco_pair", "sft"]
LIST_WEIGHTS = [0.8, 0.3, 0.2, 1.0]


def cases(smoothing):
    """Returns the losses of TRL's DPOTrainer: options of mapl, and attributes of the trainer."""
    out = [({"loss_type": [name]}, {"loss_types": [name]}) for name in PLAIN]
    for name in SMOOTHED:
        if name != "exo_pair" or smoothing > 0:
            out.append(({"loss_type": [name], "label_smoothing": smoothing}, {"loss_types": [name]}))
    for name, divergence in DIVERGENCES:
        options = {"loss_type": [name], "f_divergence_type": divergence}
        trainer = {"loss_types": [name], "f_divergence_type": divergence}
        if divergence == "alpha_divergence":
            options["f_alpha_divergence_coef"] = trainer["f_alpha_divergence_coef"] = 0.75
        out.append((options, trainer))
    out.append(({"loss_type": LIST, "loss_weights": LIST_WEIGHTS}, {"loss_types": LIST, "loss_weights": LIST_WEIGHTS}))
    return out


def configure(trainer, beta, smoothing, attributes):
    trainer.beta, trainer.label_smoothing = beta, smoothing
    trainer.f_divergence_type, trainer.f_alpha_divergence_coef = "reverse_kl", 0.5
    trainer.loss_weights = [1.0] * len(attributes["loss_types"])
    for name, value in attributes.items():
        setattr(trainer, name, value)


def row_losses(trainer, row, beta, smoothing):
    """Returns each loss of a pair and its derivatives by the two summed log-probabilities."""
    length = 1 + max(row["chosen_tokens"], row["rejected_tokens"])
    mask = torch.zeros(2, length, dtype=torch.long)
    mask[0, 1 : 1 + row["chosen_tokens"]] = 1
    mask[1, 1 : 1 + row["rejected_tokens"]] = 1
    losses = []
    # TRL has no cDPO; its aot loss on a batch of one pair has the same formula, because sorting one pair has no effect.
    cdpo = ({"loss_type": ["sigmoid"], "label_smoothing": smoothing}, {"loss_types": ["aot"]})
    for options, attributes in cases(smoothing) + [cdpo]:
        # The bound on the exponent of the alpha-divergence is defined for float32 and below.
        dtype = torch.float32 if "f_alpha_divergence_coef" in options else torch.float64
        configure(trainer, beta, smoothing, attributes)
        # The first response token gets the whole log-probability: the loss uses only the sum.
        per_token = torch.zeros(2, length - 1, dtype=dtype)
        per_token[0, 0], per_token[1, 0] = row["chosen"], row["rejected"]
        per_token.requires_grad_()
        zero = torch.zeros(2, length - 1)
        outputs = SimpleNamespace(log_probs=per_token, entropy=zero, mean_logits=zero, is_top1=zero.bool())
        batch = {
            "input_ids": torch.full((2, length), 3),
            "attention_mask": torch.ones(2, length, dtype=torch.long),
            "completion_mask": mask,
            "ref_chosen_logps": torch.tensor([row["reference_chosen"]], dtype=dtype),
            "ref_rejected_logps": torch.tensor([row["reference_rejected"]], dtype=dtype),
        }
        loss = trainer._compute_loss(lambda **_: outputs, batch, False)
        loss.backward()
        slopes = [per_token.grad[0, 0].item(), per_token.grad[1, 0].item()]
        losses.append({"options": {**options, "beta": beta}, "loss": loss.item(), "slopes": slopes})
    means = [row["chosen"] / row["chosen_tokens"], row["rejected"] / row["rejected_tokens"]]
    # SimPO and ORPO are computed without the likelihood term, like mapl's losses with `nll_weight` 0.
    device = SimpleNamespace(device="cpu")
    simpo = SimpleNamespace(loss_type="simpo", simpo_gamma=0.7, beta=beta, label_smoothing=smoothing, alpha=0.0, accelerator=device)
    orpo = SimpleNamespace(beta=beta, accelerator=device)
    of_simpo = lambda c, r: CPOTrainer.cpo_loss(simpo, c, r)[0].mean()
    of_orpo = lambda c, r: -ORPOTrainer.odds_ratio_loss(orpo, c, r)[0].mean()
    for options, function in [
        ({"loss_type": ["simpo"], "simpo_gamma": 0.7, "label_smoothing": smoothing, "nll_weight": 0.0}, of_simpo),
        ({"loss_type": ["orpo"], "nll_weight": 0.0}, of_orpo),
    ]:
        chosen, rejected = [torch.tensor([mean], dtype=torch.float64, requires_grad=True) for mean in means]
        loss = function(chosen, rejected)
        loss.backward()
        slopes = [chosen.grad.item() / row["chosen_tokens"], rejected.grad.item() / row["rejected_tokens"]]
        losses.append({"options": {**options, "beta": beta}, "loss": loss.item(), "slopes": slopes})
    return losses


def loss_table(trainer):
    rows = []
    inputs = [
        (-21.5, -24.25, -22.0, -23.0, 9, 12),
        (-30.0, -12.5, -28.0, -14.0, 20, 7),
        (-5.0, -5.0, -5.0, -5.0, 3, 3),
        (-400.0, -150.0, -180.0, -190.0, 60, 55),
        (-100.0, -900.0, -220.0, -210.0, 30, 80),
        (-1.25, -0.5, -0.75, -3.0, 1, 1),
    ]
    keys = ["chosen", "rejected", "reference_chosen", "reference_rejected", "chosen_tokens", "rejected_tokens"]
    trainer.precompute_ref_logps = True
    for values in inputs:
        for beta, smoothing in [(0.1, 0.0), (0.1, 0.2), (0.5, 0.1)]:
            row = dict(zip(keys, values))
            rows.append({**row, "losses": row_losses(trainer, row, beta, smoothing)})
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Steps


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


def padded(rows, value):
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def preference_batch(pairs):
    """Returns a batch of the CPO and ORPO trainers; prompts have no labels."""
    batch = {}
    for side in ["chosen", "rejected"]:
        ids = [pair["prompt_ids"] + pair[f"{side}_ids"] for pair in pairs]
        labels = [[-100] * len(pair["prompt_ids"]) + pair[f"{side}_ids"] for pair in pairs]
        batch[f"{side}_input_ids"] = padded(ids, make.PAD)
        batch[f"{side}_attention_mask"] = padded([[1] * len(row) for row in ids], 0)
        batch[f"{side}_labels"] = padded(labels, -100)
    return batch


def short_prompts(pairs):
    """Returns the pairs with prompts of one token. TRL's ORPO adds the likelihood of prompts, which has no tokens then."""
    return [{**pair, "prompt_ids": [make.BOS]} for pair in pairs]


def text():
    # The trainers require a text data set; batches are collated from ids instead.
    return Dataset.from_list([{"prompt": "t3", "chosen": " t4", "rejected": " t5"}])


def steps_of(model, loss_of):
    """Returns the losses of four AdamW steps without weight decay, and the gradient norms before clipping."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, foreach=False)
    losses, norms = [], []
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss = loss_of()
        loss.backward()
        norms.append(make.short(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=False).item()))
        optimiser.step()
        losses.append(make.short(loss.item()))
    return {"losses": losses, "grad_norms": norms}


def dpo_steps(folders, pairs, scratch, smoothing, attributes, **options):
    trainer = make.trl_dpo(load(folders[0]), load(folders[1]), pairs, scratch, **options)
    configure(trainer, make.BETA, smoothing, attributes)
    batch = trainer.data_collator([dict(pair) for pair in pairs])
    return steps_of(trainer.model, lambda: trainer.compute_loss(trainer.model, dict(batch)))


def reference_free_steps(folders, pairs, scratch, config, trainer):
    model = load(folders[0])
    arguments = config(output_dir=scratch, use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False)
    own = trainer(model=model, args=arguments, train_dataset=text(), processing_class=make.dummy_tokenizer())
    batch = preference_batch(pairs)
    return steps_of(own.model, lambda: own.get_batch_loss_metrics(own.model, batch)[0])


def loss_steps(folders, scratch):
    pairs = make.make_pairs(23)
    steps = []
    for options, attributes in cases(0.1):
        # The exponential of the forward divergence needs a reference near the policy.
        near = options.get("f_divergence_type") == "forward_kl"
        reference = NAMES[0] if near else NAMES[1]
        of = dpo_steps([folders[0], folders[0] if near else folders[1]], pairs, scratch, 0.1, attributes)
        steps.append({"options": {**options, "beta": make.BETA}, "prompts": "whole", "reference": reference, **of})
    for options in WEIGHED:
        attributes = {"loss_types": options["loss_type"]}
        own = {name: options[name] for name in ["ld_alpha", "use_weighting"] if name in options}
        of = dpo_steps(folders, pairs, scratch, 0.0, attributes, **own)
        steps.append({"options": {**options, "beta": make.BETA}, "prompts": "whole", "reference": NAMES[1], **of})
    simpo = lambda **more: CPOConfig(loss_type="simpo", **more)
    of = reference_free_steps(folders, pairs, scratch, simpo, CPOTrainer)
    steps.append({"options": {"loss_type": ["simpo"]}, "prompts": "whole", "reference": None, **of})
    of = reference_free_steps(folders, short_prompts(pairs), scratch, ORPOConfig, ORPOTrainer)
    steps.append({"options": {"loss_type": ["orpo"]}, "prompts": "one token", "reference": None, **of})
    return pairs, steps


# ---------------------------------------------------------------------------------------------------------------------
# KTO

KTO_BLOCK = 4
KTO = [
    {"loss_type": ["kto"]},
    {"loss_type": ["kto"], "desirable_weight": 1.5, "undesirable_weight": 0.25},
    {"loss_type": ["apo_zero_unpaired"], "desirable_weight": 0.5},
]


def kto_rows():
    """Returns rows with a label; every response ends with the EOS token, so TRL adds none."""
    pairs = make.make_pairs(29) + make.make_pairs(31)[:1]
    rows = []
    for number, pair in enumerate(pairs):
        for side, label in [("chosen", True), ("rejected", number % 3 == 1)]:
            ids = [i for i in pair[f"{side}_ids"] if i != make.EOS] + [make.EOS]
            rows.append({"prompt_ids": pair["prompt_ids"], "completion_ids": ids, "label": label})
    return rows


def kto_tokenizer():
    # All words have the same width, so that no special token is a part of another word.
    vocab = {f"w{i:03}": i for i in range(make.VOCAB)}
    tokenizer = make.Tokenizer(make.tokenizer_models.WordLevel(vocab, unk_token="w000"))
    tokenizer.pre_tokenizer = make.WhitespaceSplit()
    special = {"pad_token": f"w{make.PAD:03}", "bos_token": f"w{make.BOS:03}", "eos_token": f"w{make.EOS:03}"}
    return make.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def kto_steps(folders, scratch):
    rows, cases = kto_rows(), []
    words = lambda ids: " ".join(f"w{i:03}" for i in ids)
    texts = [
        {"prompt": words(row["prompt_ids"]), "completion": " " + words(row["completion_ids"]), "label": row["label"]}
        for row in rows
    ]
    for options in KTO:
        arguments = make.trainer_arguments(scratch, rows)
        arguments["per_device_train_batch_size"] = KTO_BLOCK
        weights = {name: value for name, value in options.items() if name != "loss_type"}
        config = trl.KTOConfig(loss_type=options["loss_type"][0], beta=make.BETA, **weights, **arguments)
        trainer = trl.KTOTrainer(
            model=load(folders[0]),
            ref_model=load(folders[1]),
            args=config,
            train_dataset=Dataset.from_list(texts),
            processing_class=kto_tokenizer(),
        )
        found = [trainer.train_dataset[i] for i in range(len(rows))]
        for row, own in zip(found, rows, strict=True):
            assert all(row[key] == own[key] for key in own), (row, own)
        blocks = [found[i : i + KTO_BLOCK] for i in range(0, len(rows), KTO_BLOCK)]
        batches = [trainer.data_collator([dict(row) for row in block]) for block in blocks]

        def loss_of(trainer=trainer, batches=batches, blocks=blocks):
            # Averages over the rows of a step, so that the rows of a shorter last block weigh as much as
            # others.
            losses = [trainer.compute_loss(trainer.model, dict(batch)) for batch in batches]
            return sum(loss * len(block) for loss, block in zip(losses, blocks)) / len(rows)

        of = steps_of(trainer.model, loss_of)
        # The metrics are under "eval", because models are in evaluation mode. The trainer logs one divergence
        # per block.
        logged = trainer._metrics["eval"]["kl"]
        per_step = [logged[i : i + len(blocks)] for i in range(0, len(logged), len(blocks))]
        divergences = [make.short(sum(step) / len(step)) for step in per_step]
        cases.append({"options": {**options, "beta": make.BETA}, **of, "divergences": divergences})
    return {
        "model": NAMES[0],
        "reference": NAMES[1],
        "learning_rate": LEARNING_RATE,
        "block": KTO_BLOCK,
        "rows": rows,
        "cases": cases,
    }


def main():
    here = Path(__file__).parent.resolve()
    out = Path(sys.argv[1] if len(sys.argv) > 1 else here).resolve()
    folders = [here / name for name in NAMES]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make.trl_dpo(load(folders[0]), load(folders[1]), make.make_pairs(23), scratch)
        make.write_json(out / "losses.json", {"rows": loss_table(trainer)})
        pairs, steps = loss_steps(folders, scratch)
        make.write_json(out / "kto-steps.json", kto_steps(folders, scratch))
    table = {"model": NAMES[0], "learning_rate": LEARNING_RATE, "pairs": pairs, "losses": steps}
    make.write_json(out / "loss-steps.json", table)
    print("trl", trl.__version__, len(steps), "losses")


if __name__ == "__main__":
    main()

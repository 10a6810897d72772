"""Generates token-stats.json: entropy, token accuracy and mean logits as TRL's DPO, KTO and SFT trainers log them, for one batch
of a tiny model. Some responses follow the model, so that some tokens are the most likely ones. Run from any directory, after
make.py:

    python tests/golden/token_stats.py [OUTPUT_DIR]
"""

import sys
import tempfile
from pathlib import Path

import losses
import make
import torch
import trl
from datasets import Dataset

NAMES = ["entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected"]
# A plain head, and one with a soft cap of the logits.
MODELS = [("qwen2", "qwen2-reference"), ("gemma2", "gemma2-reference")]
GREEDY = 3


def followed(model, prompt, response):
    """Returns the response with its first tokens replaced by the model's most likely ones."""
    ids = list(prompt)
    for _ in range(min(GREEDY, len(response))):
        with torch.no_grad():
            ids.append(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
    return ids[len(prompt) :] + response[GREEDY:]


def pairs_of(model):
    pairs = make.make_pairs(37)
    for pair in pairs[::2]:
        pair["chosen_ids"] = followed(model, pair["prompt_ids"], pair["chosen_ids"])
        pair["rejected_ids"] = followed(model, pair["prompt_ids"], pair["rejected_ids"])
    return pairs


def logged(trainer):
    """Returns the values of the only batch. Models are in evaluation mode."""
    found = trainer._metrics["eval"]
    return {name: make.short(found[name][0]) for name in NAMES if name in found}


def dpo(folders, pairs, scratch):
    trainer = make.trl_dpo(losses.load(folders[0]), losses.load(folders[1]), pairs, scratch)
    batch = trainer.data_collator([dict(pair) for pair in pairs])
    with torch.no_grad():
        trainer.compute_loss(trainer.model, batch)
    return logged(trainer)


def sft(folder, pairs, scratch):
    """The chosen responses; all their tokens contribute to the loss."""
    rows = [
        {
            "input_ids": pair["prompt_ids"] + pair["chosen_ids"],
            "completion_mask": [0] * len(pair["prompt_ids"]) + [1] * len(pair["chosen_ids"]),
        }
        for pair in pairs
    ]
    arguments = trl.SFTConfig(completion_only_loss=True, **make.trainer_arguments(scratch, pairs))
    trainer = trl.SFTTrainer(
        model=losses.load(folder), args=arguments, train_dataset=Dataset.from_list(rows), processing_class=make.dummy_tokenizer()
    )
    trainer.model.eval()
    # The trainer has already turned the masks into labels.
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
    with torch.no_grad():
        trainer.compute_loss(trainer.model, batch)
    return logged(trainer)


def main():
    here = Path(__file__).parent.resolve()
    out = Path(sys.argv[1] if len(sys.argv) > 1 else here).resolve()
    cases = []
    with tempfile.TemporaryDirectory() as scratch:
        for names in MODELS:
            folders = [here / "models" / name for name in names]
            pairs = pairs_of(losses.load(folders[0]))
            of = {"dpo": dpo(folders, pairs, scratch), "sft": sft(folders[0], pairs, scratch)}
            cases.append({"model": f"models/{names[0]}", "reference": f"models/{names[1]}", "pairs": pairs, **of})
    make.write_json(out / "token-stats.json", {"cases": cases})
    print("trl", trl.__version__, [case["dpo"] for case in cases], [case["sft"] for case in cases])


if __name__ == "__main__":
    main()

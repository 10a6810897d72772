"""One run of a side of steps.py that is not `mapl`: a torch loop (eager, compiled, with Liger's fused DPO loss) or TRL's trainers.

steps.py starts it as a process. It writes seconds of the timed updates, the first loss and the first log-probs (means over the
preferred and over the other sequences of all comparisons) as JSON.
"""

import argparse
import json
import pathlib
import time

from step_processes import MODELS
from step_rows import END, comparisons_of, prompts, sequences_of, text_of


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", type=json.loads, required=True, help="method, unit, side, folder, result file; as JSON")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--dtype", choices=["f32", "bf16"], required=True)
    parser.add_argument("--no-compile", action="store_true")
    for name in ("pairs", "quads", "prompt", "instruction", "response", "steps", "warmup", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    return parser.parse_args()


def main():
    args = arguments()
    method, unit, side, folder, result = args.task
    import torch

    torch.set_num_threads(args.threads)
    run = trl_steps if side.startswith("trl") else torch_steps
    found = run(args, torch, method, unit, side, pathlib.Path(folder))
    if args.device == "cuda":
        found |= {"peak_mib": torch.cuda.max_memory_allocated() / 2**20, "hardware": torch.cuda.get_device_name()}
    pathlib.Path(result).write_text(json.dumps(found))


def clock(torch, cuda):
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


class Batches:
    """The sequences of an update, each once: a tensor of ids per prompt, so that no row needs padding, and the
    indices of the two sequences of every comparison among these sequences."""

    def __init__(self, args, torch, unit, folder):
        self.torch, self.device = torch, args.device
        self.rows = json.loads((folder / f"{unit}.json").read_text())
        self.count = args.quads if unit == "quads" else args.pairs
        self.sequences = sequences_of(unit)
        at = {sequence: n * self.count for n, sequence in enumerate(self.sequences)}
        pairs = [(plus, minus) for _, plus, minus in comparisons_of("", unit)]
        places = [torch.cat([torch.arange(self.count) + at[pair[side]] for pair in pairs]) for side in (0, 1)]
        self.plus, self.minus = (place.to(args.device) for place in places)

    def update(self, number):
        rows = self.rows[number * self.count : (number + 1) * self.count]
        by_prompt = {}
        for prompt, response in self.sequences:
            answers = [row[("chosen", "rejected")[response]] + [END] for row in rows]
            by_prompt.setdefault(prompt, []).extend(prompts(row)[prompt] + answer for row, answer in zip(rows, answers))
        return [self.torch.tensor(ids, device=self.device) for ids in by_prompt.values()]


def torch_steps(args, torch, method, unit, side, folder):
    """Training loop without a trainer. It computes every sequence once, without padding, and only response rows go through the head."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    f, cuda, response = torch.nn.functional, args.device == "cuda", args.response
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    load = {"dtype": dtype, "attn_implementation": "sdpa"}
    kind = AutoModelForCausalLM if method == "dpo" else AutoModelForSequenceClassification
    policy = kind.from_pretrained(folder / MODELS[method], **load).to(args.device).train()
    parameters = list(policy.parameters())
    if method == "dpo":
        reference = kind.from_pretrained(folder / MODELS[method], **load).to(args.device).eval().requires_grad_(False)
    if side == "liger dpo":
        from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

        fused = LigerFusedLinearDPOLoss(ignore_index=-100, beta=0.1, compiled=not args.no_compile)
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0, fused=True)
    batches = Batches(args, torch, unit, folder)
    plus, minus = batches.plus, batches.minus

    def hidden(model, ids):
        """Hidden rows that predict the responses: (sequences, response, hidden)."""
        return torch.cat([model.model(part, use_cache=False).last_hidden_state[:, -response - 1 : -1] for part in ids])

    def targets(ids):
        return torch.cat([part[:, -response:] for part in ids])

    def logps(model, ids):
        logits = f.linear(hidden(model, ids), model.lm_head.weight).float()
        return logits.log_softmax(-1).gather(-1, targets(ids)[..., None]).squeeze(-1).sum(-1)

    def dpo(ids):
        with torch.no_grad():
            base = logps(reference, ids)
        own = logps(policy, ids)
        gap = own - base
        return -f.logsigmoid(0.1 * (gap[plus] - gap[minus])).mean(), own[plus].detach(), own[minus].detach()

    def liger(ids):
        both = torch.cat([plus, minus])
        with torch.no_grad():
            base = hidden(reference, ids)[both]
        weight, labels = policy.lm_head.weight, targets(ids)[both]
        loss, (chosen, rejected, *_) = fused(weight, hidden(policy, ids)[both], labels, None, base, reference.lm_head.weight, None)
        return loss, chosen.detach(), rejected.detach()

    def reward(ids):
        last = torch.cat([policy.model(part, use_cache=False).last_hidden_state[:, -1] for part in ids])
        value = last.float() @ policy.score.weight[0].float()
        return -f.logsigmoid(value[plus] - value[minus]).mean(), value[plus].detach(), value[minus].detach()

    step = liger if side == "liger dpo" else dpo if method == "dpo" else reward
    if side == "torch compile":
        step = torch.compile(step)
    seconds, first = [], None
    for update in range(args.warmup + args.steps):
        began = clock(torch, cuda)
        loss, chosen, rejected = step(batches.update(update))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if first is None:
            first = float(loss), [float(side.float().mean()) for side in (chosen, rejected)]
        seconds.append(clock(torch, cuda) - began)
    return {"seconds": seconds[args.warmup :], "first_loss": first[0], "first_logps": first[1] if method == "dpo" else [None, None]}


def rows_for_trl(args, method, unit, side, folder):
    """Every comparison as a row, in the order of the updates. The prompt of the rejected side can differ: for DPO it is
    `rejected_prompt`, for a reward model it is part of the text."""
    rows = []
    for row in json.loads((folder / f"{unit}.json").read_text()):
        asked, answers = text_of(row)
        for _, (x, y), (other_x, other_y) in comparisons_of(side, unit):
            chosen, rejected = answers[y] + "</s>", answers[other_y] + "</s>"
            if method == "dpo":
                rows.append({"prompt": asked[x], "rejected_prompt": asked[other_x], "chosen": chosen, "rejected": rejected})
            else:
                rows.append({"chosen": asked[x] + chosen, "rejected": asked[other_x] + rejected})
    return rows


def two_prompts(torch, base, tokenizer):
    """TRL's collator with a separate prompt for the rejected side. It does the same work."""

    class TwoPrompts(base):
        def torch_call(self, examples):
            sides = [(e["prompt_ids"], e["chosen_ids"]) for e in examples] + [(e["rejected_prompt_ids"], e["rejected_ids"]) for e in examples]
            shape = len(sides), max(len(prompt) + len(answer) for prompt, answer in sides)
            ids = torch.full(shape, self.pad_token_id)
            seen, answered = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
            for i, (prompt, answer) in enumerate(sides):
                length = len(prompt) + len(answer)
                ids[i, :length] = torch.tensor(prompt + answer)
                seen[i, :length] = 1
                answered[i, len(prompt) : length] = 1
            return {"input_ids": ids, "attention_mask": seen, "completion_mask": answered}

    return TwoPrompts(pad_token_id=tokenizer.pad_token_id)


def trl_steps(args, torch, method, unit, side, folder):
    """TRL's trainer with its fastest settings for the device: no checkpointing, SDPA, fused AdamW. Its head never stores logits. It
    computes a sequence as often as a comparison has it."""
    from datasets import Dataset, disable_progress_bars
    from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    disable_progress_bars()
    cuda, ends, logged = args.device == "cuda", [], []
    # The tokenizer is loaded from its file, because AutoTokenizer would use the Qwen2 tokenizer class for a
    # Qwen2 model.
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "model" / "tokenizer.json"), eos_token="</s>", pad_token="<pad>")
    rows = rows_for_trl(args, method, unit, side, folder)
    of_update = len(rows) // (args.warmup + args.steps)
    collator = None
    if any(row.get("rejected_prompt", row.get("prompt")) != row.get("prompt") for row in rows):
        collator = two_prompts(torch, DataCollatorForPreference, tokenizer)
        rows = [row | {"rejected_prompt_ids": tokenizer(row["rejected_prompt"])["input_ids"]} for row in rows]

    class Stamps(TrainerCallback):
        def on_step_end(self, *_, **__):
            ends.append(clock(torch, cuda))

        def on_log(self, _args, _state, _control, logs=None, **__):
            logged.append(dict(logs or {}))

    shared = dict(
        output_dir=str(args.work / "trl"), use_cpu=not cuda, bf16=args.dtype == "bf16", gradient_checkpointing=False, learning_rate=1e-6,
        lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, per_device_train_batch_size=of_update, max_steps=args.warmup + args.steps,
        max_length=args.prompt + args.instruction + args.response, logging_steps=1, report_to="none", save_strategy="no", disable_tqdm=True,
        train_sampling_strategy="sequential", use_liger_kernel="liger" in side, remove_unused_columns=collator is None,
        model_init_kwargs={"dtype": "bfloat16" if args.dtype == "bf16" else "float32", "attn_implementation": "sdpa"},
    )  # fmt: skip
    if method == "dpo":
        trainer, config = DPOTrainer, DPOConfig(beta=0.1, **shared)
    else:
        trainer, config = RewardTrainer, RewardConfig(**shared)
    dataset = Dataset.from_list(rows)
    more = {"data_collator": collator} if collator else {}
    trainer = trainer(model=str(folder / MODELS[method]), args=config, train_dataset=dataset, processing_class=tokenizer, callbacks=[Stamps()], **more)
    trainer.remove_callback(PrinterCallback)
    check_lengths(args, method, unit, side, rows, trainer.train_dataset)
    trainer.train()
    first = logged[0]
    return {
        "seconds": [b - a for a, b in zip(ends, ends[1:])][args.warmup - 1 :],
        "first_loss": first["loss"],
        "first_logps": [first.get("logps/chosen"), first.get("logps/rejected")],
    }


def check_lengths(args, method, unit, side, rows, kept):
    """Ends the process if TRL has dropped rows or cut a sequence."""
    lengths = {0: args.prompt, 1: args.prompt + args.instruction}
    first = [kept[i] for i in range(len(comparisons_of(side, unit)))]
    found = [[len(row.get("prompt_ids", ())) + len(row["chosen_ids"]), len(row["rejected_ids"])] for row in first]
    expected = [
        [lengths[plus[0]] + args.response, args.response + (lengths[minus[0]] if method == "reward" else 0)]
        for _, plus, minus in comparisons_of(side, unit)
    ]
    if len(kept) != len(rows) or found != expected:
        raise SystemExit(f"TRL kept {len(kept)} of {len(rows)} rows, the first with lengths {found}, not {expected}")


if __name__ == "__main__":
    main()

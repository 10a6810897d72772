"""One run of TRL's DPOTrainer on the CPU. Writes time, CPU time, loss and sizes of every update as JSON.

A row may have a `rejected_prompt`, which is the prompt of its rejected side. The trainer's collator supports only one prompt
per row and is replaced by a collator that does the same work. Nothing else of the trainer is changed.
"""

import argparse
import json
import os
import resource
import time


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", required=True)
    parser.add_argument("--result", required=True)
    parser.add_argument("--scratch", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--updates", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="pairs per forward and backward pass")
    parser.add_argument("--accumulation", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--beta", type=float, required=True)
    parser.add_argument("--max-length", type=int, required=True)
    parser.add_argument("--attention", choices=["sdpa", "eager"], required=True)
    parser.add_argument("--dtype", choices=["f32", "autocast", "bf16"], default="f32",
                        help="autocast: f32 weights, bf16 in the GEMMs; bf16: weights and optimiser state too")  # fmt: skip
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--cached-reference", action="store_true")
    return parser.parse_args()


def main():
    args = arguments()
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", CUDA_VISIBLE_DEVICES="", HF_HOME=args.scratch)
    import torch
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import DPOConfig, DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    disable_progress_bars()
    torch.set_num_threads(args.threads)
    imports_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    with open(args.rows, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    keys = [(row.pop("chosen_key"), row.pop("rejected_key")) for row in rows]
    for row in rows:
        prompt = row.pop("rejected_prompt", row["prompt"])
        if prompt != row["prompt"]:
            ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
            row["rejected_prompt_ids"] = ids
        else:
            row["rejected_prompt_ids"] = None

    class TwoPrompts(DataCollatorForPreference):
        """The trainer's collator, extended by a separate prompt for the rejected side."""

        def torch_call(self, examples):
            chosen, rejected = [], []
            for example in examples:
                other = example.get("rejected_prompt_ids") or example["prompt_ids"]
                chosen.append((example["prompt_ids"], example["chosen_ids"]))
                rejected.append((other, example["rejected_ids"]))
            sides = [((p + r)[: self.max_length], len(p)) for p, r in chosen + rejected]
            width = max(len(ids) for ids, _ in sides)
            shape = (len(sides), width)
            input_ids = torch.full(shape, self.pad_token_id)
            attention_mask, completion_mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
            for i, (ids, start) in enumerate(sides):
                input_ids[i, : len(ids)] = torch.tensor(ids)
                attention_mask[i, : len(ids)] = 1
                completion_mask[i, start : len(ids)] = 1
            batch = {"input_ids": input_ids, "attention_mask": attention_mask, "completion_mask": completion_mask}
            for name in ("ref_chosen_logps", "ref_rejected_logps"):
                if name in examples[0]:
                    batch[name] = torch.tensor([example[name] for example in examples])
            return batch

    updates = []
    now = {"loss": 0.0, "pairs": 0, "tokens": 0, "padded_tokens": 0, "head_rows": 0, "response_tokens": 0}
    zero = dict(now)

    class Trainer(DPOTrainer):
        def training_step(self, model, inputs, *rest, **named):
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            now["pairs"] += len(ids) // 2
            now["tokens"] += int(mask.sum())
            now["padded_tokens"] += ids.numel()
            # On the CPU the trainer's head scores every position except the last of each padded sequence.
            now["head_rows"] += len(ids) * (ids.shape[1] - 1)
            now["response_tokens"] += int(inputs["completion_mask"].sum())
            loss = super().training_step(model, inputs, *rest, **named)
            now["loss"] += float(loss)
            return loss

    class Stamps(TrainerCallback):
        def on_train_begin(self, *_, **__):
            now.update(zero)

        def on_step_end(self, *_, **__):
            updates.append({"end": time.perf_counter(), "cpu": time.process_time(), **now})
            now.update(zero)

        def on_log(self, _args, _state, _control, logs=None, **__):
            if logs and "logps/chosen" in logs:
                updates[-1]["logps"] = [logs["logps/chosen"], logs["logps/rejected"]]

    config = DPOConfig(
        output_dir=args.scratch,
        use_cpu=True,
        bf16=args.dtype == "autocast",
        gradient_checkpointing=args.gradient_checkpointing,
        model_init_kwargs={"dtype": "bfloat16" if args.dtype == "bf16" else "float32", "attn_implementation": args.attention},
        max_length=args.max_length,
        beta=args.beta,
        precompute_ref_log_probs=args.cached_reference,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        per_device_train_batch_size=args.batch,
        gradient_accumulation_steps=args.accumulation,
        max_steps=args.updates,
        train_sampling_strategy="sequential",
        # The collator needs the token ids of the second prompt.
        remove_unused_columns=False,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=42,
    )
    collator = TwoPrompts(pad_token_id=tokenizer.pad_token_id, max_length=args.max_length)
    trainer = Trainer(
        model=args.model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        data_collator=collator,
        callbacks=[Stamps()],
    )
    trainer.remove_callback(PrinterCallback)
    data = trainer.train_dataset
    if len(data) != len(rows):
        raise SystemExit(f"TRL kept {len(data)} of {len(rows)} rows, so the sides would train different rows; check --max-length")
    # Response tokens of the distinct sequences of each update: the head rows of a trainer that computes nothing twice.
    distinct, per_update = [], args.batch * args.accumulation
    for start in range(0, len(rows), per_update):
        lengths = {}
        for i in range(start, start + per_update):
            row = data[i]
            other = row["rejected_prompt_ids"] or row["prompt_ids"]
            lengths[keys[i][0]] = min(len(row["chosen_ids"]), args.max_length - len(row["prompt_ids"]))
            lengths[keys[i][1]] = min(len(row["rejected_ids"]), args.max_length - len(other))
        distinct.append({"sequences": len(lengths), "response_tokens": sum(lengths.values())})
    trainer.train()
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    result = {
        "updates": updates,
        "distinct": distinct,
        "imports_mib": imports_kib / 1024,
        "peak_mib": peak_kib / 1024,
        "optimizer": str(config.optim),
        "dtype": str(next(trainer.model.parameters()).dtype),
        "threads": torch.get_num_threads(),
        "checkpointing": bool(trainer.args.gradient_checkpointing),
        "attention": trainer.model.config._attn_implementation,
        "sgemm_gflops": gemm_rate(torch, torch.float32),
        "bf16_gflops": gemm_rate(torch, torch.bfloat16),
    }
    with open(args.result, "w", encoding="utf-8") as file:
        json.dump(result, file)


def gemm_rate(torch, dtype, size=2048, tries=5):
    """Best rate of a square GEMM with the run's threads, in GFLOP/s: what the machine delivered at that moment."""
    a, b = torch.rand(size, size, dtype=dtype), torch.rand(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(tries):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


if __name__ == "__main__":
    main()

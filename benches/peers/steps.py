"""Times whole DPO and reward training steps: `mapl`, a torch loop (eager, compiled, Liger's fused DPO loss), and TRL.

Every run is a separate process, and sides alternate: A B C, then C B A. All train the same pairs in the same order from the same
start weights. The pairs are random word ids; every prompt and every response has exactly the requested length, so padding plays
no role. `mapl` and TRL read the pairs as text through the tokenizer that this script writes, the torch loop reads the ids. First
losses and first log-probs must agree before a time is kept. A side that fails, runs out of memory or takes too long becomes a row
with the reason, and the other sides continue.
"""

import argparse
import csv
import datetime
import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time

SIZES = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 352, "vocab_size": 4096},
    "small": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 688, "vocab_size": 8192},
    "qwen2.5-0.5b": {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936},
}
COMMON = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}
END, PAD, FIRST = 0, 1, 2
LN_2 = math.log(2)
# mapl comes first, because the others must agree with it. The last ones are skipped first when time is short.
SIDES = {
    "dpo": ["mapl", "torch eager", "trl", "liger dpo", "trl liger", "torch compile"],
    "reward": ["mapl", "torch eager", "trl", "torch compile"],
}
# Sides with kernels that need a GPU.
GPU_SIDES = ["trl liger"]
COLUMNS = (
    "schema date commit device backend variant dtype op model layer shape cache status samples calls median_us p20_us p80_us least_us bytes flops "
    "gb_per_s tflop_per_s bound memory_gb_per_s product_tflop_per_s share predicted_us energy_mj others error_share note"
).split()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mapl", default="target/release/mapl", type=pathlib.Path)
    parser.add_argument("--python", default=sys.executable, help="Python with the packages of requirements.txt")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for all output files")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["f32", "bf16"], help="weights and activations of all sides [default: bf16 on cuda, else f32]")
    parser.add_argument("--model", choices=SIZES, default="small")
    parser.add_argument("--methods", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--sides", nargs="+", help="sides by name prefix [default: all]")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--response", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5, help="timed updates per run")
    parser.add_argument("--warmup", type=int, default=2, help="updates before the timed ones")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of one run per side")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--patience", type=float, default=300.0, help="seconds after which a side's process is killed")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds after which the remaining runs are skipped")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, also in Liger's loss")
    parser.add_argument("--commit", default="unknown", help="commit of mapl to store in the rows")
    parser.add_argument("--output", type=pathlib.Path, help="CSV file to write the rows to")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.dtype = args.dtype or ("bf16" if args.device == "cuda" else "f32")
    return args


def prepare(args):
    """Writes the tokenizer, the start model and the pairs."""
    folder = args.work / args.model
    config = COMMON | SIZES[args.model] | {"eos_token_id": END, "pad_token_id": PAD}
    if not (folder / "model" / "config.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "tokenizer").mkdir(parents=True)
        words = {"</s>": END, "<pad>": PAD} | {f"w{i}": i for i in range(FIRST, config["vocab_size"])}
        special = [
            {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            for text, i in (("</s>", END), ("<pad>", PAD))
        ]
        tokenizer = {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
            "model": {"type": "WordLevel", "vocab": words, "unk_token": "<pad>"},
        }  # fmt: skip
        (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps(tokenizer))
        about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "pad_token": "<pad>"}
        (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(about))
        (folder / "config.json").write_text(json.dumps(config))
        call(args, [args.mapl, "init", "--config", folder / "config.json", "--tokenizer", folder / "tokenizer", "--output-dir", folder / "model"])
    draw, top = random.Random(1), config["vocab_size"] - 1
    count = args.pairs * (args.steps + args.warmup)

    def ids(length):
        return [draw.randint(FIRST, top) for _ in range(length)]

    rows = [{"prompt": ids(args.prompt), "chosen": ids(args.response - 1), "rejected": ids(args.response - 1)} for _ in range(count)]
    text = [{key: (" " if key != "prompt" else "") + " ".join(f"w{i}" for i in value) for key, value in row.items()} for row in rows]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in text))
    return folder


class OutOfTime(RuntimeError):
    """The time limit of the run is reached."""


def call(args, command, log=None, **environment):
    """Runs a command. Raises with its last output if it fails. Kills it and its children if it takes too long."""
    left = args.deadline - time.monotonic()
    if left <= 0:
        raise OutOfTime("no time left")
    pipe, words = subprocess.PIPE, [str(c) for c in command]
    process = subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, errors="replace", env=os.environ | environment, start_new_session=True)
    late = False
    try:
        out, err = process.communicate(timeout=min(left, args.patience))
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
    if log:
        log.write_text(out + err)
    if late:
        raise OutOfTime("no time left") if left <= args.patience else RuntimeError(f"took longer than {args.patience:g} s")
    if process.returncode:
        lines = (err.strip() or out.strip() or "no output").splitlines()
        # The line that names the error; lines of advice may follow it.
        named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit)\b", line)]
        raise RuntimeError(f"exit code {process.returncode}: {(named or lines)[-1].strip()[:400]}")


def run_mapl(args, method, folder):
    out = args.work / "mapl-run"
    command = [
        args.mapl, method, "--model", folder / "model", "--train-file", folder / "pairs.jsonl", "--output-dir", out, "--overwrite-output-dir",
        "--device", args.device, "--dtype", args.dtype, "--no-shuffle", "--max-steps", args.steps + args.warmup, "--per-device-train-batch-size", args.pairs,
        "--max-length", args.prompt + args.response, "--learning-rate", "1e-6", "--lr-scheduler-type", "constant", "--weight-decay", 0,
        "--logging-steps", 1, "--quiet",
    ]  # fmt: skip
    call(args, command, args.work / f"{method}-mapl.log", RAYON_NUM_THREADS=str(args.threads))
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["kind"] == "train"]
    ends = [event["time"] for event in steps]
    return {
        "seconds": [b - a for a, b in zip(ends, ends[1:])][args.warmup - 1 :],
        "first_loss": steps[0]["loss"],
        "first_logps": [steps[0].get("logps/chosen"), steps[0].get("logps/rejected")],
        "peak_mib": None,
    }


def run_peer(args, method, side, folder):
    result = args.work / "peer.json"
    result.unlink(missing_ok=True)
    own = ["--device", args.device, "--dtype", args.dtype, "--model", args.model, "--pairs", args.pairs, "--prompt", args.prompt, "--response", args.response]
    more = ["--steps", args.steps, "--warmup", args.warmup, "--threads", args.threads, "--work", args.work, *["--no-compile"] * args.no_compile]
    command = [args.python, "-B", __file__, "--worker", json.dumps([method, side, str(folder), str(result)]), *own, *more]
    call(args, command, args.work / f"{method}-{side.replace(' ', '-')}.log", HF_HUB_OFFLINE="1", TQDM_DISABLE="1", HF_HOME=str(args.work / "hf"))
    return json.loads(result.read_text())


def main():
    args = arguments()
    if args.worker:
        return worker(args)
    if args.warmup < 1 or args.steps < 1 or args.rounds < 1:
        raise SystemExit("--warmup, --steps and --rounds must be at least 1")
    args.work.mkdir(parents=True, exist_ok=True)
    args.work, args.mapl = args.work.resolve(), args.mapl.resolve()
    args.deadline = time.monotonic() + args.limit
    folder, rows = prepare(args), []
    for method in args.methods:
        sides = [side for side in SIDES[method] if not args.sides or any(side.startswith(text) for text in args.sides)]
        runs, failed = {side: [] for side in sides}, {}
        for side in sides:
            if side == "torch compile" and args.no_compile:
                failed[side] = ("skipped", "torch.compile is left out")
            if side in GPU_SIDES and args.device == "cpu":
                failed[side] = ("skipped", "its kernels need a GPU")
        for turn in range(args.rounds):
            for side in sides if turn % 2 == 0 else sides[::-1]:
                if side not in failed:
                    one(args, method, side, folder, runs, failed)
        rows += table(args, method, sides, runs, failed)
        if args.output:
            with open(args.output, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, fieldnames=COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    return None


def one(args, method, side, folder, runs, failed):
    """One run of a side, kept if it agrees with mapl's. A side that fails is not run again."""
    try:
        run = run_mapl(args, method, folder) if side == "mapl" else run_peer(args, method, side, folder)
        agree(method, side, run, runs.get("mapl"))
        runs[side].append(run)
        print(f"{method} {side}: {1e3 * statistics.median(run['seconds']):.1f} ms per step", file=sys.stderr, flush=True)
    except OutOfTime as why:
        # Its earlier runs still count.
        if not runs[side]:
            failed[side] = ("skipped", str(why))
    except Exception as why:  # noqa: BLE001  (every failure becomes a row)
        note = " ".join(str(why).split())[:300]
        missing = "ModuleNotFoundError" in note or "ImportError" in note
        failed[side] = ("absent" if missing else "failed", note)


def agree(method, side, run, mapl):
    """Checks that DPO starts at a loss of ln 2, and that log-probs of the first update agree with mapl's."""
    if method != "dpo":
        return
    if abs(run["first_loss"] - LN_2) > 5e-3:
        raise RuntimeError(f"first loss {run['first_loss']}, not ln 2")
    if side == "mapl" or not mapl or run["first_logps"][0] is None:
        return
    for ours, theirs in zip(mapl[0]["first_logps"], run["first_logps"]):
        if abs(ours - theirs) > 5e-3 * abs(ours):
            raise RuntimeError(f"first log-probs {run['first_logps']}, mapl's {mapl[0]['first_logps']}: not the same tokens")


def table(args, method, sides, runs, failed):
    import platform

    shape = f"pairs={args.pairs} prompt={args.prompt} response={args.response}"
    device = next((run["hardware"] for side in sides for run in runs[side] if run.get("hardware")), platform.processor() or platform.machine())
    rows = []
    for side in sides:
        row = dict.fromkeys(COLUMNS, "") | {
            "schema": 1, "date": datetime.date.today().isoformat(), "commit": args.commit, "device": device, "backend": args.device,
            "variant": side, "dtype": args.dtype, "op": f"{method}_step", "model": args.model, "layer": "step", "shape": shape,
        }  # fmt: skip
        if side in failed or not runs[side]:
            status, note = failed.get(side, ("failed", "not run"))
            rows.append(row | {"status": status, "note": note})
            print(f"{method} {side:<14} {rows[-1]['status']}: {note}")
            continue
        taken = sorted(second for run in runs[side] for second in run["seconds"])
        cut = [taken[round(q * (len(taken) - 1))] for q in (0.2, 0.8)]
        middle = statistics.median(taken)
        by_round = zip(runs["mapl"], runs[side]) if runs.get("mapl") else []
        ratios = [statistics.median(run["seconds"]) / statistics.median(own["seconds"]) for own, run in by_round]
        peaks = [run["peak_mib"] for run in runs[side] if run["peak_mib"]]
        note = f"{args.pairs / middle:.2f} pairs/s" + (f"; peak {max(peaks):.0f} MiB" if peaks else "")
        rows.append(row | {
            "status": "measured", "samples": len(taken), "calls": 1, "median_us": 1e6 * middle, "p20_us": 1e6 * cut[0], "p80_us": 1e6 * cut[1],
            "least_us": 1e6 * taken[0], "note": note,
        })  # fmt: skip
        ratio = f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} - {max(ratios):.2f}) mapl's time" if ratios else ""
        print(f"{method} {side:<14} {1e3 * middle:9.1f} ms  {note}  {ratio}")
    return rows


def worker(args):
    """One run of a peer, in its own process."""
    method, side, folder, result = json.loads(args.worker)
    import resource

    import torch

    torch.set_num_threads(args.threads)
    run = trl_steps if side.startswith("trl") else torch_steps
    found = run(args, torch, method, side, pathlib.Path(folder))
    cuda = args.device == "cuda"
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found |= {"peak_mib": peak, "hardware": torch.cuda.get_device_name() if cuda else None}
    pathlib.Path(result).write_text(json.dumps(found))
    return None


def clock(torch, cuda):
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def torch_steps(args, torch, method, side, folder):
    """Training loop without a trainer. Equal lengths need no padding, and only response rows go through the head."""
    from transformers import AutoModelForCausalLM

    f, cuda = torch.nn.functional, args.device == "cuda"
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    load = {"dtype": dtype, "attn_implementation": "sdpa"}
    policy = AutoModelForCausalLM.from_pretrained(folder / "model", **load).to(args.device).train()
    parameters = list(policy.parameters())
    if method == "dpo":
        reference = AutoModelForCausalLM.from_pretrained(folder / "model", **load).to(args.device).eval().requires_grad_(False)
    else:
        score = torch.zeros(policy.config.hidden_size, device=args.device, dtype=dtype, requires_grad=True)
        parameters.append(score)
    if side == "liger dpo":
        from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

        fused = LigerFusedLinearDPOLoss(ignore_index=-100, beta=0.1, compiled=not args.no_compile)
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0, fused=True)
    rows = json.loads((folder / "rows.json").read_text())
    start, end = args.prompt - 1, args.prompt + args.response - 1

    def logps(model, ids):
        hidden = model.model(ids, use_cache=False).last_hidden_state[:, start:end]
        logits = f.linear(hidden, model.lm_head.weight).float()
        return logits.log_softmax(-1).gather(-1, ids[:, args.prompt :, None]).squeeze(-1).sum(-1)

    def dpo(ids):
        with torch.no_grad():
            base = logps(reference, ids)
        own = logps(policy, ids)
        gap = (own - base).unflatten(0, (2, -1))
        return -f.logsigmoid(0.1 * (gap[0] - gap[1])).mean(), own.detach()

    def liger(ids):
        target = ids.clone()
        target[:, : args.prompt] = -100
        with torch.no_grad():
            base = reference.model(ids, use_cache=False).last_hidden_state[:, start:end]
        hidden = policy.model(ids, use_cache=False).last_hidden_state[:, start:end]
        labels, weight = target[:, start + 1 : end + 1], policy.lm_head.weight
        loss, (chosen, rejected, *_) = fused(weight, hidden, labels, None, base, reference.lm_head.weight, None)
        return loss, torch.cat([chosen, rejected]).detach()

    def reward(ids):
        last = policy.model(ids, use_cache=False).last_hidden_state[:, -1]
        gap = (last.float() @ score.float()).unflatten(0, (2, -1))
        return -f.logsigmoid(gap[0] - gap[1]).mean(), gap.detach()

    step = liger if side == "liger dpo" else dpo if method == "dpo" else reward
    if side == "torch compile":
        step = torch.compile(step)
    seconds, first = [], None
    for update in range(args.warmup + args.steps):
        began = clock(torch, cuda)
        batch = rows[update * args.pairs : (update + 1) * args.pairs]
        sides = [row["prompt"] + row[key] + [END] for key in ("chosen", "rejected") for row in batch]
        loss, own = step(torch.tensor(sides, device=args.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if first is None:
            halves = own.float().flatten().unflatten(0, (2, -1)).mean(-1).tolist()
            first = (float(loss), halves)
        seconds.append(clock(torch, cuda) - began)
    return {"seconds": seconds[args.warmup :], "first_loss": first[0], "first_logps": first[1] if method == "dpo" else [None, None]}


def trl_steps(args, torch, method, side, folder):
    """TRL's trainer with its fastest settings for the device: no checkpointing, SDPA, fused AdamW. Its head never stores logits."""
    from datasets import Dataset, disable_progress_bars
    from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    disable_progress_bars()
    cuda, ends, logged = args.device == "cuda", [], []
    # Loaded from its file, because AutoTokenizer would use Qwen2's own class for a model of that type.
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "model" / "tokenizer.json"), eos_token="</s>", pad_token="<pad>")
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    rows = [row | {key: row[key] + "</s>" for key in ("chosen", "rejected")} for row in rows]

    class Stamps(TrainerCallback):
        def on_step_end(self, *_, **__):
            ends.append(clock(torch, cuda))

        def on_log(self, _args, _state, _control, logs=None, **__):
            logged.append(dict(logs or {}))

    shared = dict(
        output_dir=str(args.work / "trl"), use_cpu=not cuda, bf16=args.dtype == "bf16", gradient_checkpointing=False, learning_rate=1e-6,
        lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, per_device_train_batch_size=args.pairs, max_steps=args.warmup + args.steps,
        max_length=args.prompt + args.response, logging_steps=1, report_to="none", save_strategy="no", disable_tqdm=True,
        train_sampling_strategy="sequential", use_liger_kernel=side == "trl liger",
        model_init_kwargs={"dtype": "bfloat16" if args.dtype == "bf16" else "float32", "attn_implementation": "sdpa"},
    )  # fmt: skip
    if method == "dpo":
        trainer, config = DPOTrainer, DPOConfig(beta=0.1, **shared)
    else:
        trainer, config = RewardTrainer, RewardConfig(**shared)
    trainer = trainer(model=str(folder / "model"), args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[Stamps()])
    trainer.remove_callback(PrinterCallback)
    kept = len(trainer.train_dataset)
    row = trainer.train_dataset[0]
    lengths = {key: len(value) for key, value in row.items() if key.endswith("_ids")}
    if kept != len(rows) or sum(lengths.values()) not in (args.prompt + 2 * args.response, 2 * (args.prompt + args.response)):
        raise SystemExit(f"TRL kept {kept} of {len(rows)} rows, the first with lengths {lengths}")
    trainer.train()
    first = logged[0]
    # TRL initialises its reward head randomly, so the first reward loss is not compared.
    return {
        "seconds": [b - a for a, b in zip(ends, ends[1:])][args.warmup - 1 :],
        "first_loss": first["loss"],
        "first_logps": [first.get("logps/chosen"), first.get("logps/rejected")],
    }


if __name__ == "__main__":
    main()

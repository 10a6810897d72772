"""Prepares the inputs of both sides: rows, tokenizer, start model, MAPL groups, and the same comparisons as pair rows.

All inputs are made from one preference file of `prompt`, `chosen`, `rejected` strings, by the `mapl` binary if it can. A file
with too few suitable rows is an error. Needs only the standard library.
"""

import json
import subprocess
from pathlib import Path

CONFIG = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 688,
    "vocab_size": 8192,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}

# Maximum prompt length of the pair case. A prompt must stay below the limit of 1024 tokens, or TRL would drop
# the row.
PAIR_PROMPT_CHARS = 2000
# Bounds on the rows of the group cases: the range of prompt length over mean response length, and lengths in
# characters. They keep every sequence, including its instructions, below the token limit, so that neither side
# truncates anything.
GROUP_RATIO = (0.5, 2.0)
GROUP_PROMPT_CHARS = 400
GROUP_RESPONSE_CHARS = 100
GROUP_TOTAL_CHARS = 2500
GROUP_SEQUENCES = 8
# Number of comparisons of each kind in a full group.
GROUP_KINDS = {"base": 1, "intra": 2, "inter": 2}


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read_rows(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def conversation(row):
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }


def is_group_row(row):
    prompt, sides = len(row["prompt"]), (len(row["chosen"]), len(row["rejected"]))
    return (
        GROUP_RATIO[0] <= 2 * prompt / max(sum(sides), 1) <= GROUP_RATIO[1]
        and prompt >= GROUP_PROMPT_CHARS
        and min(sides) >= GROUP_RESPONSE_CHARS
        and prompt + max(sides) <= GROUP_TOTAL_CHARS
    )


def call(mapl, *arguments):
    done = subprocess.run([str(mapl), *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"mapl {' '.join(map(str, arguments))} failed with {done.returncode}:\n{done.stderr}")


def sequences(group):
    return {(term["prompt"], term["response"]) for c in group["comparisons"] for term in c["terms"]}


def is_full(group):
    kinds = [c["kind"] for c in group["comparisons"]]
    return len(sequences(group)) == GROUP_SEQUENCES and all(kinds.count(k) == n for k, n in GROUP_KINDS.items())


def pairs_of(group, number):
    """Comparisons of a group as pair rows: two terms make one row, four terms make two (see README.md)."""
    rows = []
    for comparison in group["comparisons"]:
        plus = [t for t in comparison["terms"] if t["sign"] > 0]
        minus = [t for t in comparison["terms"] if t["sign"] < 0]
        if len(plus) == 2:
            # Four terms: each row holds the two responses under one prompt.
            minus.sort(key=lambda t: t["prompt"] != plus[0]["prompt"])
        for chosen, rejected in zip(plus, minus, strict=True):
            if chosen["prompt"] != rejected["prompt"] and len(plus) == 2:
                raise SystemExit(f"group {number}: a four-term comparison does not split into pairs by prompt")
            row = {
                "prompt": group["prompts"][chosen["prompt"]],
                "rejected_prompt": group["prompts"][rejected["prompt"]],
                "chosen": [group["responses"][chosen["response"]]],
                "rejected": [group["responses"][rejected["response"]]],
                "chosen_key": f"{number}:{chosen['prompt']}:{chosen['response']}",
                "rejected_key": f"{number}:{rejected['prompt']}:{rejected['response']}",
            }
            rows.append(row)
    return rows


def prepare(mapl, data, work, inter_losses, batch, updates):
    """Writes all files into `work`. Returns the files and the pair rows per update of each case, and the model folder."""
    work.mkdir(parents=True, exist_ok=True)
    source = read_rows(data)
    usable = [row for row in source if len(row["prompt"]) <= PAIR_PROMPT_CHARS]
    wanted = batch * updates
    if len(usable) < wanted:
        raise SystemExit(f"{data}: {len(usable)} rows with a short enough prompt, but {wanted} are needed; use fewer --steps")
    text = work / "all.jsonl"
    write_rows(text, map(conversation, source))
    tokenizer, model = work / "tokenizer", work / "model"
    if not (model / "model.safetensors").exists():
        (work / "config.json").write_text(json.dumps(CONFIG, indent=1))
        call(mapl, "tokenizer", "--input", text, "--vocab-size", CONFIG["vocab_size"], "--output-dir", tokenizer)
        call(mapl, "init", "--config", work / "config.json", "--tokenizer", tokenizer, "--output-dir", model)

    cases = {}
    rows = [conversation(row) for row in usable[:wanted]]
    write_rows(work / "pairs.jsonl", rows)
    keyed = [{**row, "chosen_key": f"{i}:0:0", "rejected_key": f"{i}:0:1"} for i, row in enumerate(rows)]
    write_rows(work / "pairs.trl.jsonl", keyed)
    cases["pairs"] = {"mapl": work / "pairs.jsonl", "trl": work / "pairs.trl.jsonl", "pairs_per_update": batch}

    write_rows(work / "long-prompts.jsonl", [conversation(row) for row in source if is_group_row(row)])
    for inter_loss in inter_losses:
        built, name = work / f"built-{inter_loss}.jsonl", f"groups-{inter_loss}"
        call(mapl, "data", "build", "--objective", "mapl", "--inter-loss", inter_loss,
             "--input", work / "long-prompts.jsonl", "--output", built)
        groups = [group for group in read_rows(built) if is_full(group)]
        if len(groups) < wanted:
            raise SystemExit(f"{data}: {len(groups)} full groups of {GROUP_SEQUENCES} sequences, but {wanted} are needed; use fewer --steps")
        groups = groups[:wanted]
        write_rows(work / f"{name}.jsonl", groups)
        write_rows(work / f"{name}.first.jsonl", groups[:batch])
        pairs = [pairs_of(group, i) for i, group in enumerate(groups)]
        if len({len(p) for p in pairs}) != 1:
            raise SystemExit("groups differ in their number of pairs")
        write_rows(work / f"{name}.trl.jsonl", [row for group in pairs for row in group])
        cases[name] = {
            "mapl": work / f"{name}.jsonl",
            "first": work / f"{name}.first.jsonl",
            "trl": work / f"{name}.trl.jsonl",
            "pairs_per_update": batch * len(pairs[0]),
        }
    return cases, model

"""Start model, tokenizer and training rows of steps.py, the same for every side.

The words are random. Every prompt and every response has exactly the requested length, so padding plays no role in pairs.

A pair is a prompt with two responses: one comparison of two sequences. A quad is a group of two prompts and two responses. The
second prompt x' is the first one with an instruction appended, which the chosen response y+ follows and the rejected one y- does
not. MAPL compares its four sequences in four ways, all of them pairs of sequences:

    base    (x, y+)  over (x, y-)
    intra   (x', y+) over (x, y+)     the same response under two prompts
    intra   (x, y-)  over (x', y-)
    inter   (x', y+) over (x', y-)    the loss `pair`, the only inter loss that TRL has

The loss of an update is the mean over all its comparisons, on every side.
"""

import json
import os
import random
import shutil
import struct

from step_processes import call

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

# By unit: kind, preferred sequence and other sequence of every comparison. A sequence is a pair of indices: (prompt,
# response).
COMPARISONS = {
    "pairs": [("base", (0, 0), (0, 1))],
    "quads": [
        ("base", (0, 0), (0, 1)),
        ("intra", (1, 0), (0, 0)),
        ("intra", (0, 1), (1, 1)),
        ("inter", (1, 0), (1, 1)),
    ],
}


def comparisons_of(side, unit):
    """The comparisons that a side trains. `once` is the part of a quad that holds each of its sequences once."""
    return [c for c in COMPARISONS[unit] if not side.endswith("once") or c[0] != "intra"]


def sequences_of(unit):
    """The sequences that the comparisons use, by prompt, then by response."""
    return sorted({sequence for _, *both in COMPARISONS[unit] for sequence in both})


def weights_of(unit):
    """`mapl`'s weights of the kinds for one mean over all comparisons: the share of each kind, since `mapl` adds the means of the kinds."""
    kinds = [kind for kind, *_ in COMPARISONS[unit]]
    return {kind: kinds.count(kind) / len(kinds) for kind in dict.fromkeys(kinds)}


def prompts(row):
    """Token ids of a row's prompts."""
    return [row["prompt"], row["prompt"] + row["instruction"]] if "instruction" in row else [row["prompt"]]


def prompt_lengths(args, unit):
    return [args.prompt, args.prompt + args.instruction] if unit == "quads" else [args.prompt]


def words(ids):
    return " ".join(f"w{i}" for i in ids)


def text_of(row):
    """Texts of a row's prompts and responses."""
    return [words(ids) for ids in prompts(row)], [" " + words(row[key]) for key in ("chosen", "rejected")]


def group(row, unit, number):
    """A row as `mapl` reads it. Pairs are ordinary rows."""
    asked, answers = text_of(row)
    if unit == "pairs":
        return {"prompt": asked[0], "chosen": answers[0], "rejected": answers[1]}

    def term(sequence, sign):
        return {"prompt": sequence[0], "response": sequence[1], "sign": sign}

    compared = [{"kind": kind, "terms": [term(plus, 1), term(minus, -1)]} for kind, plus, minus in COMPARISONS[unit]]
    return {"id": f"quad-{number}", "prompts": asked, "responses": answers, "comparisons": compared}


def prepare(args, units=("pairs",)):
    """Writes the tokenizer, the start model and the rows of every unit. Returns their folder."""
    folder = args.work / args.model
    config = COMMON | SIZES[args.model] | {"eos_token_id": END, "pad_token_id": PAD}
    if not (folder / "model" / "config.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "tokenizer").mkdir(parents=True)
        vocab = {"</s>": END, "<pad>": PAD} | {f"w{i}": i for i in range(FIRST, config["vocab_size"])}
        special = [
            {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            for text, i in (("</s>", END), ("<pad>", PAD))
        ]
        tokenizer = {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<pad>"},
        }  # fmt: skip
        (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps(tokenizer))
        about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "pad_token": "<pad>"}
        (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(about))
        (folder / "config.json").write_text(json.dumps(config))
        tokens = folder / "tokenizer"
        call(args, [args.mapl, "init", "--config", folder / "config.json", "--tokenizer", tokens, "--output-dir", folder / "model"], args.work / "init.log")
    for unit in units:
        draw, top, count = random.Random(1), config["vocab_size"] - 1, of_update(args, unit) * (args.steps + args.warmup)

        def ids(length):
            return [draw.randint(FIRST, top) for _ in range(length)]

        lengths = {"prompt": args.prompt, "chosen": args.response - 1, "rejected": args.response - 1}
        lengths |= {"instruction": args.instruction} if unit == "quads" else {}
        rows = [{key: ids(length) for key, length in lengths.items()} for _ in range(count)]
        (folder / f"{unit}.json").write_text(json.dumps(rows))
        lines = [json.dumps(group(row, unit, number)) + "\n" for number, row in enumerate(rows)]
        (folder / f"{unit}.jsonl").write_text("".join(lines))
        (folder / f"{unit}.first.jsonl").write_text("".join(lines[: of_update(args, unit)]))
    return folder


def prepare_reward(folder):
    """Writes the start model of reward steps: the language model's weights, linked, and a score head of small random numbers."""
    model, to = folder / "model", folder / "reward"
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(model, to, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((model / "config.json").read_text()) | {"architectures": ["Qwen2ForSequenceClassification"], "num_labels": 1}
    (to / "config.json").write_text(json.dumps(config))
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    os.link(model / "model.safetensors", to / names[0])
    with open(model / "model.safetensors", "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    draw, width = random.Random(2), config["hidden_size"]
    values = struct.pack(f"<{width}f", *(draw.gauss(0.0, 0.02) for _ in range(width)))
    score = json.dumps({"score.weight": {"dtype": "F32", "shape": [1, width], "data_offsets": [0, len(values)]}}).encode()
    (to / names[1]).write_bytes(struct.pack("<Q", len(score)) + score + values)
    places = {name: names[0] for name in header if name != "__metadata__"} | {"score.weight": names[1]}
    size = (model / "model.safetensors").stat().st_size + len(values)
    (to / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": places}))


def of_update(args, unit):
    """Pairs or quads of an update."""
    return args.quads if unit == "quads" else args.pairs

"""The transformers side of run.py: one greedy generate call for all prompts, padded on the left."""

import argparse
import json
import resource
import time


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--result", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--check", help="JSON file of rows and their first tokens: compares the largest logits after them instead")
    parser.add_argument("--gemm", action="store_true", help="time a square GEMM instead")
    return parser.parse_args()


def main():
    args = arguments()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(args.threads)
    if args.gemm:
        return write(args.result, {"sgemm_gflops": gemm_rate(torch)})
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    with open(args.prompts, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": row["prompt"]}], tokenize=False, add_generation_prompt=True)
        for row in rows
    ]
    if args.check:
        return write(args.result, {"largest": largest(torch, tokenizer, model, texts, args.check)})
    write(args.result, generate(torch, tokenizer, model, texts, args.new_tokens))


def write(path, result):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(result, file)


def generate(torch, tokenizer, model, texts, new_tokens):
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    began = time.perf_counter()
    with torch.inference_mode():
        ids = model.generate(**batch, max_new_tokens=new_tokens, do_sample=False, repetition_penalty=1.0)
    seconds = time.perf_counter() - began
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    tokens = []
    for row in ids[:, batch["input_ids"].shape[1] :].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        tokens.append(row[:end])
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    tied = model.config.tie_word_embeddings
    embedding = model.get_input_embeddings().weight.numel()
    return {
        "tokens": tokens,
        "generate_s": seconds,
        "peak_mib": peak_kib / 1024,
        "attention": model.config._attn_implementation,
        # Products with weights, without attention. The embedding is a lookup, and the head's matrix if it is tied.
        "flop_per_token": 2 * (matrices if tied else matrices - embedding),
    }


def largest(torch, tokenizer, model, texts, check):
    """The two largest logits after each given start of a text: their ids and their difference."""
    with open(check, encoding="utf-8") as file:
        starts = json.load(file)
    found = []
    for start in starts:
        prompt = tokenizer(texts[start["row"]], add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + start["tokens"]])).logits[0, -1]
        top = logits.topk(2)
        found.append({"ids": top.indices.tolist(), "gap": float(top.values[0] - top.values[1])})
    return found


def gemm_rate(torch, size=2048, tries=5):
    """Best rate of a square GEMM with the run's threads, in GFLOP/s: what the machine delivered at that moment."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    best = float("inf")
    for _ in range(tries):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


if __name__ == "__main__":
    main()

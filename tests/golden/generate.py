"""Generates generate.json: greedy tokens of transformers' `generate` on the models of this folder. README.md
describes the keys. Run after make.py, from any directory:

    python tests/golden/generate.py

Float32, eager attention, one thread. The smallest gap between the two largest logits along a text is recorded: it must
be far above rounding, or the tokens would say nothing.
"""

import itertools
import json
import os
from pathlib import Path

os.environ.update(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")

import numpy as np
import torch
from transformers import AutoModelForCausalLM

FOLDER = Path(__file__).parent
# Models in four lists. The random prompts of the second and of the third list start from the same random
# state.
MODELS = [
    ["llama", "qwen2", "mistral", "ministral", "seed_oss", "smollm3", "phi3", "qwen3"],
    ["llama_bias", "granite", "stablelm", "gpt_neox", "gpt2"],
    ["mistral-window", "qwen2-window", "phi3-window", "qwen3-window", "olmo2", "olmo3"],
    ["gemma", "gemma2", "gemma2-untied", "gemma3", "gemma3-untied"],
]
VOCAB, BOS, EOS, PAD = 160, 1, 2, 159
NEW_TOKENS = 24
# Length of the prompt and repetition penalty.
TEXTS = [(1, 1.0), (5, 1.0), (17, 1.0), (33, 1.0), (5, 1.3), (17, 0.9)]

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)


def main():
    rng = np.random.default_rng(7)
    out = {}
    further = None
    for name in itertools.chain(*MODELS):
        if name == MODELS[1][0]:
            further = rng.bit_generator.state
        elif name == MODELS[2][0]:
            rng.bit_generator.state = further
        model = AutoModelForCausalLM.from_pretrained(
            FOLDER / "models" / name, attn_implementation="eager", dtype=torch.float32
        ).eval()
        texts = []
        for length, penalty in TEXTS:
            prompt = [BOS] + [int(i) for i in rng.integers(3, PAD, length - 1)]
            made = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, length, dtype=torch.long),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                repetition_penalty=penalty,
                eos_token_id=EOS,
                pad_token_id=PAD,
                return_dict_in_generate=True,
                output_scores=True,
            )
            top = torch.stack(made.scores)[:, 0].topk(2).values
            gap = float((top[:, 0] - top[:, 1]).min())
            assert gap > 1e-4, (name, length, gap)
            tokens = made.sequences[0, length:].tolist()
            texts.append({"prompt": prompt, "repetition_penalty": penalty, "tokens": tokens, "gap": round(gap, 6)})
        out[name] = texts
    lines = ",\n".join(
        f' "{name}": [\n' + ",\n".join(f"  {json.dumps(t)}" for t in texts) + "\n ]" for name, texts in out.items()
    )
    (FOLDER / "generate.json").write_text("{\n" + lines + "\n}\n")


main()

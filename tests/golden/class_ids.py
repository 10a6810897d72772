"""Writes class_ids.json: the special ids that transformers assumes for a config.json without them, by family. Run from
any directory:

    python tests/golden/class_ids.py
"""

import json
from pathlib import Path

from transformers import CONFIG_MAPPING

FAMILIES = [
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "granite",
    "llama",
    "ministral",
    "mistral",
    "olmo2",
    "olmo3",
    "phi3",
    "qwen2",
    "qwen3",
    "seed_oss",
    "smollm3",
    "stablelm",
]


def main():
    ids = {}
    for family in FAMILIES:
        config = CONFIG_MAPPING[family]()
        ids[family] = [config.pad_token_id, config.bos_token_id, config.eos_token_id]
    lines = ",\n".join(f" {json.dumps(family)}: {json.dumps(values)}" for family, values in ids.items())
    (Path(__file__).parent / "class_ids.json").write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()

"""Finds for which folders AutoTokenizer builds a different normaliser or pre-tokenizer from that in tokenizer.json, and
writes the results to rebuilt.json. Run from any directory:

    python tests/golden/rebuilt.py [OUTPUT.json]

Every case is a folder with a small BPE vocabulary of bytes, a model type, a tokenizer class, and one way of splitting.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

HERE = Path(__file__).resolve().parent
QWEN2 = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
)
BYTES = pre_tokenizers.ByteLevel(False)
# Normaliser, pre-tokenizer, and whether the decoder works on bytes.
WAYS = {
    "bytes": (None, BYTES, True),
    "nfc bytes": (normalizers.NFC(), BYTES, True),
    "qwen2": (normalizers.NFC(), QWEN2, True),
    "qwen2 without nfc": (None, QWEN2, True),
    "digits": (None, pre_tokenizers.Sequence([pre_tokenizers.Digits(True), BYTES]), True),
    "nfc digits": (normalizers.NFC(), pre_tokenizers.Sequence([pre_tokenizers.Digits(True), BYTES]), True),
    "llama 2": (normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None, False),
    "metaspace first": (None, pre_tokenizers.Metaspace("▁", "first", split=False), False),
    "metaspace always": (None, pre_tokenizers.Metaspace("▁", "always", split=False), False),
    "metaspace with splits": (None, pre_tokenizers.Metaspace("▁", "first"), False),
}
CLASSES = [None, "Qwen2Tokenizer", "PreTrainedTokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer", "GPTNeoXTokenizer", "CohereTokenizer"]
TYPES = ["llama", "qwen2", "qwen3", "mistral", "ministral", "phi3", "seed_oss", "smollm3"]
MORE = [
    ("llama", "metaspace always", {"tokenizer_class": "LlamaTokenizer", "legacy": True}),
    ("llama", "metaspace first", {"tokenizer_class": "LlamaTokenizer", "legacy": True}),
    ("llama", "metaspace first", {"tokenizer_class": "LlamaTokenizer", "legacy": False}),
    ("llama", "metaspace first", {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}),
    ("llama", "bytes", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}),
    ("qwen2", "qwen2", {"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False}),
    ("qwen2", "qwen2", {"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": True}),
]


def vocabulary():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<unk>", "<s>", "</s>", "▁", *letters]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def parts(tokenizer):
    full = json.loads(tokenizer.to_str())
    return full["normalizer"], full["pre_tokenizer"]


def case(folder, model_type, way, config):
    normalizer, pre_tokenizer, on_bytes = WAYS[way]
    own = Tokenizer(models.BPE(vocabulary(), [], unk_token="<unk>"))
    if normalizer is not None:
        own.normalizer = normalizer
    if pre_tokenizer is not None:
        own.pre_tokenizer = pre_tokenizer
    if on_bytes:
        own.decoder = decoders.ByteLevel()
    own.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = AutoTokenizer.from_pretrained(folder)
    held, built = parts(own), parts(loaded.backend_tokenizer)
    # Offsets do not change ids.
    plain = lambda pair: json.dumps(pair, sort_keys=True).replace('"trim_offsets": false', '"trim_offsets": true')
    row = {
        "model_type": model_type,
        "tokenizer_config": config,
        "way": way,
        "class": type(loaded).__name__,
        "differs": plain(held) != plain(built),
    }
    return row, {"normalizer": held[0], "pre_tokenizer": held[1]}


def main():
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "rebuilt.json"
    rows, ways = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        wanted = [
            (model_type, way, {} if name is None else {"tokenizer_class": name})
            for model_type in TYPES
            for name in CLASSES
            for way in WAYS
        ]
        for model_type, way, config in wanted + MORE:
            row, ways[way] = case(Path(scratch), model_type, way, config)
            rows.append(row)
    lines = ",\n".join(json.dumps(row, sort_keys=True) for row in rows)
    output.write_text(f'{{"ways": {json.dumps(ways, sort_keys=True)},\n"folders": [\n{lines}\n]}}\n')
    print(f"{len(rows)} folders, {sum(row['differs'] for row in rows)} differ")


if __name__ == "__main__":
    main()

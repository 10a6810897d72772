"""Writes trl_arguments.tsv: the arguments of TRL's DPO, KTO, reward and SFT commands. Run from any directory:

    python tests/golden/trl_arguments.py

A line is an argument: the classes that have it, its name, what follows its flag (switch: nothing or a truth value;
one: a value; list: values), and its default as a command line writes it, or - without one.
"""

import os
from pathlib import Path

os.environ.update(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")

import transformers
import trl
from trl import DatasetMixtureConfig, DPOConfig, KTOConfig, ModelConfig, RewardConfig, ScriptArguments, SFTConfig
from trl.scripts.utils import TrlParser

CLASSES = [DPOConfig, KTOConfig, RewardConfig, SFTConfig, ModelConfig, ScriptArguments, DatasetMixtureConfig]


def kind_of(action):
    if action.nargs == "+":
        return "list"
    return "switch" if action.type is not None and action.type.__name__ == "string_to_bool" else "one"


def text_of(value):
    if value is None or value == []:
        return "-"
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return str(getattr(value, "value", value)) or "-"


def main():
    found = {}
    for cls in CLASSES:
        for action in TrlParser([cls])._actions:
            if action.dest == "help" or action.const is False:
                continue
            row = (kind_of(action), text_of(action.default))
            classes = found.setdefault(action.dest, {})
            classes.setdefault(row, []).append(cls.__name__)
    lines = [f"# TRL {trl.__version__}, transformers {transformers.__version__}: classes, name, kind, default"]
    for name in sorted(found):
        for (kind, default), classes in found[name].items():
            lines.append("\t".join([",".join(classes), name, kind, default]))
    (Path(__file__).parent / "trl_arguments.tsv").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

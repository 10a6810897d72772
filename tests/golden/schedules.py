"""Writes schedules.json: learning rates of transformers' schedules, in float64. Run from any directory:

    python tests/golden/schedules.py
"""

import json
import os
from pathlib import Path

os.environ.update(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")

import torch
import transformers
from transformers import get_scheduler

CASES = [
    ("linear", {}, 3, 11),
    ("linear", {}, 0, 4),
    ("cosine", {}, 3, 11),
    ("cosine", {"num_cycles": 1.25}, 2, 13),
    ("cosine_with_restarts", {}, 2, 9),
    ("cosine_with_restarts", {"num_cycles": 3}, 2, 17),
    ("cosine_with_min_lr", {"min_lr": 2e-5}, 3, 12),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1, "num_cycles": 0.75}, 2, 12),
    ("polynomial", {}, 2, 10),
    ("polynomial", {"power": 2.5, "lr_end": 3e-5}, 3, 11),
    ("polynomial", {"power": 0.5, "lr_end": 0.0}, 0, 7),
    ("constant", {}, 0, 5),
    ("constant_with_warmup", {}, 4, 8),
    ("inverse_sqrt", {}, 4, 12),
    ("inverse_sqrt", {}, 0, 6),
    ("inverse_sqrt", {"timescale": 7}, 3, 12),
    ("warmup_stable_decay", {"num_decay_steps": 5}, 3, 14),
    ("warmup_stable_decay", {"num_decay_steps": 4, "num_stable_steps": 3, "decay_type": "linear", "min_lr_ratio": 0.2}, 2, 9),
    ("warmup_stable_decay", {"num_decay_steps": 6, "warmup_type": "cosine", "decay_type": "1-sqrt"}, 4, 13),
    ("warmup_stable_decay", {"num_decay_steps": 6, "warmup_type": "1-sqrt", "num_cycles": 1.5, "min_lr_ratio": 0.05}, 5, 15),
]
PEAK = 3e-4


def rates(name, kwargs, warmup, total):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    schedule = get_scheduler(name, optimizer, warmup, total, scheduler_specific_kwargs=kwargs)
    found = []
    # Records two steps beyond the end, because a run may be resumed there.
    for _ in range(total + 3):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def main():
    cases = [
        {"scheduler": name, "kwargs": kwargs, "peak": PEAK, "warmup_steps": warmup, "total_steps": total,
         "rates": rates(name, kwargs, warmup, total)}
        for name, kwargs, warmup, total in CASES
    ]
    lines = ",\n".join("  " + json.dumps(case) for case in cases)
    text = f'{{"transformers": "{transformers.__version__}",\n "cases": [\n{lines}\n]}}\n'
    (Path(__file__).parent / "schedules.json").write_text(text)


if __name__ == "__main__":
    main()

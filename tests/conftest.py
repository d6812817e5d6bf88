"""Every worker runs offline, on one torch thread, and hypothesis tries the same examples at every run."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else tokenizers warn in every worker that a data loader forks

import torch
from hypothesis import settings

torch.set_num_threads(1)

settings.register_profile("demask", deadline=None, derandomize=True, database=None)
settings.load_profile("demask")

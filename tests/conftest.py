"""Every worker runs offline, on one torch thread."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else tokenizers warn in every worker that a data loader forks

import torch

torch.set_num_threads(1)

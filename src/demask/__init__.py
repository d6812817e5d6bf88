"""demask: teach a language model new documents by masked fine-tuning."""

from importlib import import_module
from typing import Any

# Loaded when first asked for: torch and transformers take seconds to import.
_PUBLIC = {
    "DataCollatorForDemasking": "demask.collator",
    "MaskRatio": "demask.masking",
    "Schedule": "demask.schedule",
    "TrainArguments": "demask.settings",
    "TrainSettings": "demask.settings",
    "evaluate": "demask.stages.eval",
    "train": "demask.stages.train",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'demask' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), name)

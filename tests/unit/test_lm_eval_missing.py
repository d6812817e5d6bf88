"""Without the extra `lm-eval` its tasks are refused in one line."""

from __future__ import annotations

import pytest

from demask.models.load import EMBEDDED, load_config
from demask.stages import benchmarks
from demask.stages.benchmarks import check_tasks
from demask.types import InputError


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "find_spec", lambda name: None)
    config = load_config(str(EMBEDDED["tiny/causal"]))
    check_tasks([], None, config)
    with pytest.raises(InputError, match=r"^lm_eval_tasks: lm-eval is not installed \(pip install 'demask\[lm-eval\]'\)$"):
        check_tasks(["gsm8k"], None, config)

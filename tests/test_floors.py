"""A file imports only from lower floors; files of one floor do not import each other (CONTRIBUTING.md)."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "demask"
FLOORS = [
    ["types", "recipes", "orphans", "paper", "corpora.world_words", "writing.prompts", "writing.replies"],
    [
        "masking",
        "distributed",
        "workers",
        "printing",
        "scoring",
        "shortage",
        "chat_format",
        "general",
        "context",
        "download",
        "examples",
        "corpora.encoding",
        "corpora.splitting",
        "corpora.duplicates",
        "corpora.published",
        "corpora.world",
        "corpora.arithmetic",
        "models.family",
        "writing.facts",
        "writing.cache",
    ],
    [
        "batching",
        "embedding_gradient",
        "decoding.common",
        "losses",
        "norms",
        "packing",
        "schedule",
        "splits",
        "corpora.name_description",
        "corpora.biography",
        "corpora.wiki",
        "corpora.gsm8k",
        "corpora.competition_math",
        "corpora.webscale_rl",
        "corpora.html",
        "corpora.pdf",
        "models.foreign",
        "models.gguf",
        "models.mask_token",
        "writing.checks",
        "writing.endpoint",
    ],
    [
        "corpora",
        "corpora.formats",
        "decoding.causal",
        "decoding.continuous",
        "decoding.diffusion",
        "lean_layers",
        "objectives.autoregressive",
        "models.load",
        "runs",
        "writing.cloze",
        "writing.paraphrase",
        "writing.questions",
    ],
    ["decoding.vllm", "stages.kept", "objectives.demask", "objectives.diffusion", "objectives.meap", "objectives.reverse", "corpora.files"],
    [
        "decoding",
        "objectives",
        "settings",
        "models.merge",
        "models.convert",
        "collator",
        "trainer",
        "stages.plots",
        "stages.estimate",
        "stages.precision",
        "stages.text_loss",
        "stages.benchmarks",
        "stages.inputs",
        "stages.prepare",
        "stages.check",
        "stages.writing",
    ],
    ["stages.build", "stages.plan", "stages.clock", "stages.eval", "stages.results", "stages.grid", "comparison"],
    ["stages.asking", "stages.table", "stages.costs"],
    ["stages.train"],
    ["stages.cell", "stages.view", "chat"],
    ["stages.report"],
    ["stages.study", "quickstart"],
    ["cli_data"],
    ["cli_ask"],
    ["cli"],
    ["__main__"],
]
FLOOR = {f"demask.{name}": number for number, names in enumerate(FLOORS) for name in names}
EMPTY = {"demask.models", "demask.stages", "demask.tiny", "demask.writing"}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def test_every_module_has_a_floor() -> None:
    assert set(MODULES) - EMPTY - {"demask"} == set(FLOOR)


@pytest.mark.parametrize("module", sorted(FLOOR))
def test_imports_only_from_lower_floors(module: str) -> None:
    imported = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("demask"):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            imported |= {name if name in FLOOR else node.module for name in names}
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names if alias.name.startswith("demask")}
    for name in imported - EMPTY:
        assert FLOOR[name] < FLOOR[module], f"{module} (floor {FLOOR[module]}) imports {name} (floor {FLOOR.get(name)})"

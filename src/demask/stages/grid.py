"""A study as it is written down: a YAML file that stands for many runs, its cells.

    title: Which masks?
    about: Do windows beat independent masks at equal steps?
    settings: {max_steps: 300, learning_rate: 3.0e-4}         # flags of `demask train` that all cells share
    data:
      statements: {corpus: statements, n: 60}                  # generated, by the cell's seed; or documents: and questions:
    methods:
      demask: {label: masked fine-tuning, objective: demask}   # flags, and a label
      bm25: {context: bm25}                                    # asked without training
    grid:                                                      # every combination of every entry is a cell
      - {data: [statements], method: [demask], mask_pattern: [window, independent], seed: [1, 2, 3]}

A later one of settings, the data set's own `settings`, method and grid wins. In a path, `{data}` stands for the folder of the cell's
generated corpus, and `{world}` for one with what the embedded models know, to rehearse and to be asked (docs/studies.md).
"""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from demask import context, paper
from demask.corpora import CORPORA
from demask.general import GENERAL
from demask.models.load import model_folder
from demask.runs import BEFORE, KNOWN_AFTER, KNOWN_BEFORE
from demask.scoring import METRICS
from demask.settings import TrainArguments, TrainSettings, as_flags, parse_train
from demask.stages.inputs import auto_questions, digest, general_file, generated, old_world
from demask.types import InputError, json_type, read_text
from demask.writing.cloze import AUTO

CLOSED_BOOK = "closed_book"
CONTEXTS = (CLOSED_BOOK, *context.CONTEXTS)
FLAGS = frozenset(f.name for kind in (TrainSettings, TrainArguments) for f in fields(kind)) - {
    "output_dir",
    "dry_run",
    "resume_from_checkpoint",
}
NOT_OPTIONS = ("label", "settings", "paper", "questions")  # of a data set's corpus
PATHS = ("documents", "questions", "replay", "retention_questions", "retention_documents", "lm_eval_include_path")
# All that an untrained cell's answers depend on.
ASKING = (
    *("model_name_or_path", "max_new_tokens", "per_device_eval_batch_size", "block_length"),
    *("system_prompt", "seed", "text_column", "few_shot", "lm_eval_tasks", "eval_dtype"),
)
RECORDED = frozenset(("run.json", "answers.jsonl", "results.json", BEFORE, KNOWN_BEFORE, KNOWN_AFTER, "log.txt"))


@dataclass(frozen=True)
class Study:
    """What stands in the file; `path` is the file."""

    path: Path
    title: str
    grid: list[dict[str, list[Any]]]
    data: dict[str, dict[str, Any]]
    methods: dict[str, dict[str, Any]]
    about: str = ""
    metric: str = "contains"
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One run: what sets it apart (`axes`), the flags of `demask train` that make it, and, where it is not trained, its `context`."""

    axes: dict[str, Any]
    flags: dict[str, Any]
    context: str | None
    context_size: int
    hash: str

    @property
    def name(self) -> str:
        return " ".join(f"{axis}={_short(value)}" for axis, value in self.axes.items())

    @property
    def configuration(self) -> str:
        """The same for all cells that differ in nothing but their seed."""
        return repr({axis: value for axis, value in self.axes.items() if axis != "seed"})

    def train_settings(self, folder: Path) -> tuple[TrainSettings, TrainArguments]:
        """What `demask train` would be told. Raises InputError that names the cell."""
        try:
            return parse_train(as_flags({**self.flags, "output_dir": str(folder)}))
        except InputError as error:
            raise InputError(f"cell {self.name}: {error}") from None


def _short(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)


def read_study(path: str | Path, settings: dict[str, Any] | None = None) -> Study:
    """Read and check a study's file, with `settings` in place of its own; every fault is an InputError that names file and field."""
    try:
        values = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())[:200]})") from None
    values = _mapping(values, str(path))
    known = {f.name for f in fields(Study)} - {"path"}
    for name in values:
        if name not in known:
            raise InputError(f"{path}: unknown field '{name}' (a study has {', '.join(sorted(known))})")
    for name in ("title", "grid", "data", "methods"):
        if not values.get(name):
            raise InputError(f"{path}: field '{name}' is missing")
    for name in ("settings", "data", "methods"):
        _mapping(values.get(name) or {}, f"{path}: {name}")
    study = Study(path=Path(path), **{name: value for name, value in values.items() if value is not None})
    if study.metric not in tuple(METRICS):
        raise InputError(f"{path}: field 'metric' must be one of {', '.join(METRICS)}, found '{study.metric}'")
    for name in ("title", "about"):
        if not isinstance(values.get(name) or "", str):
            raise InputError(f"{path}: field '{name}' must be a string, found {json_type(values[name])}")
    _check_flags(study.settings, f"{path}: settings")
    _check_flags(settings or {}, "set")
    study.settings.update(settings or {})
    for name, entry in study.data.items():
        _check_data(_mapping(entry, f"{path}: data.{name}"), f"{path}: data.{name}")
    for name, entry in study.methods.items():
        where = f"{path}: methods.{name}"
        entry = _mapping(entry, where)
        if entry.get("context", CONTEXTS[0]) not in CONTEXTS:
            raise InputError(f"{where}.context: must be one of {', '.join(CONTEXTS)}, found '{entry['context']}'")
        _check_flags({key: value for key, value in entry.items() if key not in ("label", "context", "context_size")}, where)
    if not isinstance(study.grid, list):
        raise InputError(f"{path}: field 'grid' must be a list, found {json_type(study.grid)}")
    for number, entry in enumerate(study.grid, start=1):
        _check_block(study, _mapping(entry, f"{path}: grid[{number}]"), f"{path}: grid[{number}]")
    return study


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a mapping, found {json_type(value)}")
    return value


def _check_flags(flags: dict[str, Any], where: str) -> None:
    for name in flags:
        if name not in FLAGS:
            raise InputError(f"{where}.{name}: no flag of demask train (see demask train --help)")


def _check_data(entry: dict[str, Any], where: str) -> None:
    _check_flags(_mapping(entry.get("settings", {}), f"{where}.settings"), f"{where}.settings")
    if entry.get("paper", next(iter(paper.SETS))) not in tuple(paper.SETS):
        raise InputError(f"{where}.paper: must be one of {', '.join(paper.SETS)}, found '{entry['paper']}'")
    given = {name: value for name, value in entry.items() if name not in NOT_OPTIONS}
    if "corpus" not in given:
        for name in given:
            if name != "documents":
                raise InputError(f"{where}.{name}: a data set has documents and questions, or a corpus with its options")
        if "documents" not in given:
            raise InputError(f"{where}: give documents, or a corpus ({', '.join(CORPORA)})")
        return
    corpus = given.pop("corpus")
    if corpus not in tuple(CORPORA):
        raise InputError(f"{where}.corpus: must be one of {', '.join(CORPORA)}, found '{corpus}'")
    options = inspect.signature(CORPORA[corpus]).parameters
    for name in given:
        if name not in options:
            raise InputError(f"{where}.{name}: no option of the corpus '{corpus}' (it has {', '.join(options)})")


def _check_block(study: Study, block: dict[str, Any], where: str) -> None:
    for axis, names in (("data", study.data), ("method", study.methods)):
        if axis not in block:
            raise InputError(f"{where}: field '{axis}' is missing")
        for name in block[axis] if isinstance(block[axis], list) else ():
            if name not in tuple(names):
                raise InputError(f"{where}.{axis}: '{name}' is none of {', '.join(names)}")
    for axis, values in block.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{where}.{axis}: expected a list of values, found {json_type(values)}")
    _check_flags({axis: value for axis, value in block.items() if axis not in ("data", "method")}, where)


def expand(study: Study, folder: Path) -> list[Cell]:
    """The cells in the grid's order, each combination once. Writes the generated data they need below `folder`/data.

    Raises InputError for files that are missing.
    """
    cells: dict[str, Cell] = {}
    folder = folder.absolute()
    for block in study.grid:
        for values in itertools.product(*block.values()):
            cell = _cell(study, dict(zip(block, values, strict=True)), folder)
            cells.setdefault(json.dumps([cell.axes, cell.hash]), cell)
    return list(cells.values())


def _cell(study: Study, axes: dict[str, Any], folder: Path) -> Cell:
    entry, method = study.data[axes["data"]], study.methods[axes["method"]]
    own = {name: value for name, value in method.items() if name not in ("label", "context", "context_size")}
    flags = {**study.settings, **entry.get("settings", {}), **own}
    flags |= {name: value for name, value in axes.items() if name not in ("data", "method")}
    seed = flags.setdefault("seed", 0)
    if flags.get("model_name_or_path") is not None:
        flags["model_name_or_path"] = str(flags["model_name_or_path"])  # YAML reads a folder named 2024 as a number
    if "corpus" in entry:
        flags |= {"documents": ["{data}/documents.jsonl"], "questions": entry.get("questions", "{data}/questions.jsonl")}
    else:
        flags |= {name: entry[name] for name in ("documents", "questions") if name in entry}
    flags |= {name: _resolve(flags[name], entry, seed, folder) for name in PATHS if flags.get(name)}
    if flags.get("questions") == AUTO:  # the same ones for every seed and method
        flags["questions"] = auto_questions(folder, tuple(_paths(flags["documents"])), flags.get("text_column", "text"))
    if flags.get("retention_questions") == GENERAL:
        flags["retention_questions"] = general_file(folder)
    if not flags.get("replay_share", 0.1):
        flags.pop("replay", None)
    context, size = method.get("context"), method.get("context_size", 3)
    if context:
        flags = {name: value for name, value in flags.items() if name in (*ASKING, *PATHS) and name != "replay"}
        if context != CLOSED_BOOK:  # a benchmark's questions are not about the documents
            flags = {name: value for name, value in flags.items() if not name.startswith("lm_eval")}
    return Cell(axes, flags, context, size, _hash(flags, context, size))


def _resolve(value: Any, entry: dict[str, Any], seed: int, folder: Path) -> Any:
    """A path, or a list of them, with {data} and {world} filled in and what they name written."""
    if isinstance(value, list):
        return [_resolve(part, entry, seed, folder) for part in value]
    value = str(value)
    if ("{data}" in value or "{world}" in value) and (type(seed) is not int or seed < 0):  # they are drawn before the flags are read
        raise InputError(f"seed: expected a whole number of at least 0, found {seed!r}")
    if "{data}" in value:
        options = {name: option for name, option in entry.items() if name not in (*NOT_OPTIONS, "corpus")}
        if "corpus" not in entry:
            raise InputError(f"{value}: {{data}} stands for a generated corpus, and this data set is not one")
        value = value.replace("{data}", str(generated(folder, entry["corpus"], json.dumps({"seed": seed} | options))))
    if "{world}" in value:
        value = value.replace("{world}", str(old_world(folder, seed)))
    return value


def _hash(flags: dict[str, Any], context: str | None, context_size: int) -> str:
    """Twelve hexadecimal digits of all that determines the result: flags, the contents of files, the base model, this version."""
    contents = {name: [_content(path) for path in _paths(flags[name])] for name in PATHS if flags.get(name)}
    rest = {name: value for name, value in flags.items() if name not in PATHS}
    base = model_folder(flags.get("model_name_or_path"), "diffusion" if flags.get("objective") == "diffusion" else "causal")
    whole = [metadata.version("demask"), rest, contents, model_content(base), [context, context_size] if context else None]
    return digest(json.dumps(whole, sort_keys=True, default=str).encode())[:12]  # a date, say, is told of with the cell's flags


def _paths(value: Any) -> Iterator[str]:
    yield from value if isinstance(value, list) else [value]


@cache
def _content(name: str) -> Any:
    """What a source holds, as a checksum; of a data set on the hub its name."""
    path = Path(name)
    if path.is_dir():
        return [[str(file.relative_to(path)), digest(file.read_bytes())] for file in sorted(path.rglob("*")) if file.is_file()]
    return digest(path.read_bytes()) if path.is_file() else name


@cache
def model_content(name: str) -> Any:
    """A checksum of a model's folder or file, of large files their sizes and ends; of a model on the hub its name."""
    path = Path(name)
    if not path.exists():
        return name
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [[file.name, file.stat().st_size, _ends(file)] for file in files if file.is_file()]


def _ends(file: Path, size: int = 1 << 20) -> str:
    with open(file, "rb") as opened:
        start = opened.read(size)
        opened.seek(max(0, file.stat().st_size - size))
        return digest(start + opened.read(size))

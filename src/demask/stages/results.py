"""Finished runs, read back from their folders; those that differ in nothing but their seed are one configuration.

A run's folder holds run.json and answers.jsonl (of `demask eval`: results.json and answers.jsonl). A study's, or the quickstart's, holds
study.json, which lists its runs::

    {"title": ..., "about": ..., "metric": a name from scoring.METRICS, "labels": {"data": {name: label}, "method": {name: label}},
     "paper": {data set: the set of the paper that it stands for}, "settings": {what to show: {name: value}},
     "cells": [{"axes": {"data": ..., "method": ..., "seed": ...}, "folder": ...}], "verdict": one sentence, may be missing}
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demask.runs import KNOWN_AFTER, read_run
from demask.scoring import METRICS
from demask.types import InputError, json_type, parse_json, read_jsonl, read_text

DATA, METHOD, SEED = "data", "method", "seed"  # the axes that have labels, and the one that configurations leave out
INDEX = "study.json"


@dataclass(frozen=True)
class Result:
    """One finished run: what sets it apart (`axes`, values as text), and its record, as run.json has it."""

    folder: Path
    axes: dict[str, str]
    record: dict[str, Any]

    def answers(self) -> list[dict[str, Any]]:
        """The test questions' lines of answers.jsonl; none where nothing was asked."""
        return _lines(self.folder / "answers.jsonl")

    def known(self) -> list[dict[str, Any]]:
        """The answers to what the base model knew; none where that was not asked."""
        return _lines(self.folder / KNOWN_AFTER)

    @property
    def trained(self) -> bool:
        return "plan" in self.record

    @property
    def selected_on(self) -> str:
        """How the reported checkpoint was chosen: "validation", "test" or "last"; empty where nothing was trained."""
        chosen = self.record.get("config", {}).get("settings", {}).get("select_on", "") if self.trained else ""
        return chosen if self.record.get("curve") or chosen != "test" else ""

    def curve(self) -> list[dict[str, float]]:
        """The questions asked during training: step, FLOPs until then, and the scores of each direction (see train._asker)."""
        plan = self.record.get("plan", {})
        return [
            {"flops": plan["flops"] * point["step"] / plan["steps"], **point}
            for point in self.record.get("curve", ())
            if isinstance(point.get("step"), int)
        ]


@dataclass(frozen=True)
class Configuration:
    """Runs that differ in their seed only. `data` is the label of the data set, `paper` the set of the paper it stands for."""

    axes: dict[str, str]
    data: str
    label: str
    runs: list[Result]
    paper: str = ""

    @property
    def trained(self) -> bool:
        return self.runs[0].trained

    @property
    def settings(self) -> dict[str, Any]:
        """What the runs were told, as their record has it."""
        return self.runs[0].record.get("config", {}).get("settings", {})


@dataclass
class Collection:
    """What a report is about."""

    title: str
    about: str = ""
    metric: str = "contains"
    verdict: str = ""
    configurations: list[Configuration] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    unfinished: int = 0


def collect(paths: Sequence[str | os.PathLike[str]]) -> Collection:
    """All finished runs in these folders: of studies, of runs, or folders of such. InputError for one without any."""
    parts = [_collect_one(Path(path)) for path in paths]
    if len(parts) == 1:
        return parts[0]
    together = Collection(title=f"{len(parts)} results", metric=parts[0].metric)
    for part in parts:
        own = {} if _only_run(part) else {"title": part.title}
        for c in part.configurations:
            named = Configuration(c.axes, f"{part.title}: {c.data}" if own else c.data, c.label, c.runs, c.paper)
            together.configurations.append(named)
        together.settings |= {f"{part.title}: {name}" if own else name: value for name, value in part.settings.items()}
        together.unfinished += part.unfinished
    return together


def _only_run(part: Collection) -> bool:
    return len(part.configurations) == 1 and METHOD not in part.configurations[0].axes


def _collect_one(folder: Path) -> Collection:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder" if not folder.exists() else f"{folder}: is a file, expected a folder of results")
    if (folder / INDEX).is_file():
        return read_index(folder)
    if run := _read_result(folder, {"run": folder.resolve().name}):
        return Collection(title=folder.resolve().name, configurations=[_single(run)], settings=_told(run))
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    runs = [run for path in inner if (run := _read_result(path, {"run": path.name}))]
    if not runs:
        begun = (read_run(folder) or {}).get("status")
        why = f"its run is {begun}, not finished" if begun else "holds no finished run (run.json, results.json or study.json)"
        raise InputError(f"{folder}: {why}")
    settings = {f"{run.axes['run']}: {name}": value for run in runs for name, value in _told(run).items()}
    return Collection(title=folder.resolve().name, configurations=[_single(run) for run in runs], settings=settings)


def read_index(folder: Path) -> Collection:
    """The finished runs of a study's folder, in the order of its grid. InputError for a study.json that is none."""
    path = folder / INDEX
    index = parse_json(read_text(path), path)
    if not isinstance(index, dict):
        raise InputError(f"{path}: expected a JSON object, found {json_type(index)}")
    for name in ("title", "cells"):
        if name not in index:
            raise InputError(f"{path}: field '{name}' is missing")
    if index.get("metric", "contains") not in METRICS:
        raise InputError(f"{path}: field 'metric' must be one of {', '.join(METRICS)}, found '{index['metric']}'")
    results = []
    for cell in index["cells"]:
        axes = {axis: as_text(value) for axis, value in cell["axes"].items()}
        if result := _read_result(folder / cell["folder"], axes):
            results.append(result)
    return Collection(
        title=index["title"],
        about=index.get("about", ""),
        metric=index.get("metric", "contains"),
        verdict=index.get("verdict", ""),
        configurations=configurations(results, index.get("labels", {}), index.get("paper", {})),
        settings=index.get("settings", {}),
        unfinished=len(index["cells"]) - len(results),
    )


def configurations(results: Iterable[Result], labels: dict[str, dict[str, str]], paper: dict[str, str]) -> list[Configuration]:
    """Runs with the same axes but for the seed taken together, in order of first appearance."""
    alike: dict[tuple[tuple[str, str], ...], list[Result]] = {}
    for result in results:
        alike.setdefault(tuple((axis, value) for axis, value in result.axes.items() if axis != SEED), []).append(result)
    axes = list(map(dict, alike))
    return [
        Configuration(own, data, label, runs, paper.get(own.get(DATA, ""), ""))
        for own, (data, label), runs in zip(axes, label_all(axes, labels), alike.values(), strict=True)
    ]


def label_all(axes: Sequence[dict[str, str]], labels: dict[str, dict[str, str]]) -> list[tuple[str, str]]:
    """Of every configuration its data set's label, and its own: its method's, and the values of the other axes that differ there."""
    seen: dict[tuple[str, str], set[str]] = {}  # (data set, axis) -> its values there
    for axis in {axis for own in axes for axis in own} - {DATA, METHOD}:
        for own in axes:
            seen.setdefault((own.get(DATA, ""), axis), set()).add(own.get(axis, ""))
    found = []
    for own in axes:
        data, method = own.get(DATA, ""), own.get(METHOD, "")
        varying = [f"{axis} {value}" for axis, value in own.items() if len(seen.get((data, axis), ())) > 1]
        label = ", ".join([labels.get(METHOD, {}).get(method, method), *varying])
        found.append((labels.get(DATA, {}).get(data, data), label))
    return found


def as_text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _read_result(folder: Path, axes: dict[str, str]) -> Result | None:
    record = read_run(folder) if folder.is_dir() else None
    if record is None and (folder / "results.json").is_file():  # of `demask eval`
        results = parse_json(read_text(folder / "results.json"), folder / "results.json")
        retention = results.pop("retention", None)
        record = {"status": "finished", "results": results} | ({"retention": {"after": retention}} if retention else {})
    if not record or record.get("status") != "finished":
        return None
    return Result(folder, axes, record)


def _single(run: Result) -> Configuration:
    """A run by itself: its folder names it, and its questions, or else documents, the data set."""
    settings = run.record.get("config", {}).get("settings", {})
    source = [settings["questions"]] if settings.get("questions") else settings.get("documents", [])
    return Configuration(run.axes, ", ".join(map(str, source)), run.axes["run"], [run])


def _told(run: Result) -> dict[str, Any]:
    """What a single run was told, as far as it says something: flags by name."""
    config = run.record.get("config", {})
    shown = {name: value for name, value in config.get("settings", {}).items() if value not in (None, [], "", False)}
    for name in ("learning_rate", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type", "seed"):
        if name in config.get("training", {}):
            shown[name] = config["training"][name]
    return {"settings": shown or run.record.get("results", {}).get("settings", {})}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [record for _, record in read_jsonl(path)] if path.is_file() else []

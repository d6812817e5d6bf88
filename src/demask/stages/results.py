"""Finished runs, read back from their folders; those that differ in nothing but their seed are one configuration.

A run's folder holds run.json, answers.jsonl and, of its base, before.jsonl (of `demask eval`: results.json and answers.jsonl). A study's,
or the quickstart's, holds study.json, which lists its runs::

    {"title": ..., "about": ..., "metric": a name from scoring.METRICS, "labels": {"data": {name: label}, "method": {name: label}},
     "paper": {data set: the set of the paper that it stands for}, "settings": {what to show: {name: value}},
     "cells": [{"axes": {"data": ..., "method": ..., "seed": ...}, "folder": ...}], "verdict": one sentence, may be missing}
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from demask import paper
from demask.runs import BEFORE, KNOWN_AFTER, KNOWN_BEFORE, read_run
from demask.scoring import METRICS, RIGHT, right_of
from demask.stages.kept import kept_answers
from demask.types import Answer, InputError, json_type, parse_json, parse_question, read_jsonl, read_text, string_field
from demask.writing.cloze import AUTO

DATA, METHOD, SEED = "data", "method", "seed"  # the axes that have labels, and the one that configurations leave out
RUN = "run"  # the axis of runs that no study holds
INDEX = "study.json"


@dataclass(frozen=True)
class Result:
    """One finished run: what sets it apart (`axes`, values as text), and its record, as run.json has it."""

    folder: Path
    axes: dict[str, str]
    record: dict[str, Any]

    def answers(self) -> list[dict[str, Any]]:
        """The test questions' lines of answers.jsonl; none where nothing was asked."""
        return _answers(self.folder / "answers.jsonl")

    def before(self) -> list[dict[str, Any]]:
        """The base model's answers to the test questions, before the training; none where it was not asked."""
        return _answers(self.folder / BEFORE)

    def known(self) -> list[dict[str, Any]]:
        """The answers to what the base model knew; none where that was not asked."""
        return _answers(self.folder / KNOWN_AFTER)

    def known_before(self) -> list[dict[str, Any]]:
        """The base model's own answers to the same."""
        return _answers(self.folder / KNOWN_BEFORE)

    def kept(self) -> list[dict[str, Any]]:
        """Of those the ones to what the base answered right, with the score `kept` (see `kept_answers`)."""
        return kept_answers(self.known_before(), self.known())

    def benchmarks(self) -> dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]]:
        """The tasks of lm-eval by (task, metric): before (empty, where it was not asked) and after, each {"value", "stderr"}."""
        found = self.record.get("lm_eval", {})
        before = found.get("before", {})
        return {
            (task, metric): (before.get(task, {}).get(metric, {}), after)
            for task, metrics in found.get("after", {}).items()
            for metric, after in metrics.items()
        }

    @property
    def trained(self) -> bool:
        return "plan" in self.record

    @property
    def selected_on(self) -> str:
        """How the reported checkpoint was chosen: "validation", "test" or "last"; empty where nothing was trained."""
        chosen = self.record.get("config", {}).get("settings", {}).get("select_on", "") if self.trained else ""
        return chosen if self.record.get("curve") or chosen != "test" else ""

    def curve(self) -> list[dict[str, float]]:
        """The questions asked during training: step, FLOPs until then, and the scores of each direction (see asking.asker)."""
        plan = self.record.get("plan", {})
        if not plan.get("steps"):
            return []
        return [
            {"flops": plan.get("flops", 0) * point["step"] / plan["steps"], **point}
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
    """All finished runs in these folders: of studies, of runs, or folders that hold such. InputError for one without any."""
    found = [(path, _collect_one(path)) for path in dict.fromkeys(map(Path, paths))]
    return found[0][1] if len(found) == 1 else _together(f"{len(found)} results", found)


def _collect_one(folder: Path) -> Collection:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder" if not folder.exists() else f"{folder}: is a file, expected a folder of results")
    if (folder / INDEX).is_file():
        study = read_index(folder)
        if not study.configurations:
            raise InputError(f"{folder}: none of the study's {study.unfinished} runs is finished")
        return study
    name = folder.resolve().name
    if run := _read_result(folder, {RUN: name}):
        return _alone(run)
    found, unfinished = [], 0
    for path in (path for path in sorted(folder.iterdir()) if path.is_dir()):
        if (path / INDEX).is_file():
            found.append((path, read_index(path)))
        elif run := _read_result(path, {RUN: path.name}):
            found.append((path, _alone(run)))
        else:
            unfinished += read_run(path) is not None
    if not any(part.configurations for _, part in found):
        begun = (read_run(folder) or {}).get("status")
        why = f"its run is {begun}, not finished" if begun else "holds no finished run (run.json, results.json or study.json)"
        raise InputError(f"{folder}: {why}")
    return _together(name, found, unfinished)


def _together(title: str, found: Sequence[tuple[Path, Collection]], unfinished: int = 0) -> Collection:
    """Several as one, by the first one's metric. A study's name is told before its data sets'; names that occur twice with their path."""
    names = [part.title for _, part in found]
    together = Collection(title, metric=found[0][1].metric, unfinished=unfinished)
    for path, part in found:
        name = part.title if names.count(part.title) == 1 else f"{part.title} ({path})"
        for c in part.configurations:
            alone = RUN in c.axes and len(part.configurations) == 1
            data = c.data if alone else ": ".join(filter(None, (name, c.data)))
            together.configurations.append(replace(c, data=data, label=name if alone else c.label))
        together.settings |= {f"{name}: {about}": values for about, values in part.settings.items()}
        together.unfinished += part.unfinished
    return together


def read_index(folder: Path) -> Collection:
    """The finished runs of a study's folder, in the order of its grid. InputError for a study.json that is none."""
    path = folder / INDEX
    index = _read_object(path)
    title, about, verdict = (
        string_field(index, name, str(path), default) for name, default in (("title", None), ("about", ""), ("verdict", ""))
    )
    for name in ("labels", "settings"):
        for part in _object(index, name, path):
            _object(index[name], part, f"{path}: {name}")
    paper_sets = _object(index, "paper", path)
    for name, found in paper_sets.items():
        if found not in tuple(paper.SETS):
            raise InputError(f"{path}: field 'paper.{name}' must be one of {', '.join(paper.SETS)}, found '{found}'")
    metric = index.get("metric", "contains")
    if metric not in tuple(METRICS):
        raise InputError(f"{path}: field 'metric' must be one of {', '.join(METRICS)}, found '{metric}'")
    if not isinstance(index.get("cells"), list):
        raise InputError(f"{path}: field 'cells' must be a list, found {json_type(index.get('cells'))}")
    results = []
    for number, cell in enumerate(index["cells"], start=1):
        where = f"{path}: cells[{number}]"
        if not isinstance(cell, dict):
            raise InputError(f"{where}: expected a JSON object, found {json_type(cell)}")
        axes = {axis: as_text(value) for axis, value in _object(cell, "axes", where).items()}
        if result := _read_result(folder / string_field(cell, "folder", where), axes):
            results.append(result)
    return Collection(
        title=title,
        about=about,
        metric=metric,
        verdict=verdict,
        configurations=configurations(results, index.get("labels", {}), paper_sets),
        settings=index.get("settings", {}),
        unfinished=len(index["cells"]) - len(results),
    )


def configurations(results: Iterable[Result], labels: dict[str, dict[str, str]], paper_sets: dict[str, str]) -> list[Configuration]:
    """Runs with the same axes but for the seed taken together, in order of first appearance."""
    alike: dict[tuple[tuple[str, str], ...], list[Result]] = {}
    for result in results:
        alike.setdefault(tuple((axis, value) for axis, value in result.axes.items() if axis != SEED), []).append(result)
    axes = list(map(dict, alike))
    return [
        Configuration(own, data, label, runs, paper_sets.get(own.get(DATA, ""), ""))
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
        label = ", ".join(filter(None, [as_text(labels.get(METHOD, {}).get(method, method)), *varying]))
        found.append((as_text(labels.get(DATA, {}).get(data, data)), label or "all runs"))
    return found


def _read_object(path: Path) -> dict[str, Any]:
    value = parse_json(read_text(path), path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {json_type(value)}")
    return value


def as_text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _read_result(folder: Path, axes: dict[str, str]) -> Result | None:
    record = read_run(folder) if folder.is_dir() else None
    for name in ("config", "plan", "results", "before", "retention", "lm_eval", "versions", "hardware") if record else ():
        _object(record or {}, name, folder / "run.json")
    if record is None and (folder / "results.json").is_file():  # of `demask eval`
        results = _read_object(folder / "results.json")
        retention = results.pop("retention", None)
        record = {"status": "finished", "results": results} | ({"retention": {"after": retention}} if retention else {})
    if not record or record.get("status") != "finished":
        return None
    return Result(folder, axes, record)


def _alone(run: Result) -> Collection:
    """A run by itself: its folder names it, and its questions, or else (also where they are made of them) documents, the data set."""
    settings = run.record.get("config", {}).get("settings", {})
    given = settings.get("questions")
    source = [given] if given and given != AUTO else settings.get("documents") or []
    only = Configuration(run.axes, ", ".join(map(str, source)), run.axes[RUN], [run])
    return Collection(title=run.axes[RUN], configurations=[only], settings=_told(run))


def _told(run: Result) -> dict[str, Any]:
    """What a single run was told, as far as it says something: flags by name."""
    config = run.record.get("config", {})
    shown = {name: value for name, value in config.get("settings", {}).items() if value not in (None, [], "", False)}
    for name in ("learning_rate", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type", "seed"):
        if name in config.get("training", {}):
            shown[name] = config["training"][name]
    return {"settings": shown or run.record.get("results", {}).get("settings", {})}


def _answers(path: Path) -> list[dict[str, Any]]:
    """The lines of answers.jsonl, each with its score RIGHT, none without that file. InputError for one that is no answer."""
    found, answers = [], []
    for number, record in read_jsonl(path) if path.is_file() else ():
        where = f"{path}:{number}"
        question = parse_question(record, where)
        prediction = string_field(record, "prediction", where, default="" if "prediction" in record else None)
        if "scores" not in record:
            raise InputError(f"{where}: field 'scores' is missing")
        scores = _object(record, "scores", where)
        for metric in METRICS:
            if not isinstance(scores.get(metric), int | float) or not 0 <= scores[metric] <= 1:
                raise InputError(f"{where}: field 'scores.{metric}' must be a number from 0 to 1, found {json.dumps(scores.get(metric))}")
        found.append(record)
        answers.append(Answer(question, prediction, scores))
    for answer, right in zip(answers, right_of(answers), strict=True):
        answer.scores[RIGHT] = right
    return found


def _object(record: dict[str, Any], name: str, where: str | Path) -> dict[str, Any]:
    """A field that must be an object, and may be missing."""
    if not isinstance(record.get(name, {}), dict):
        raise InputError(f"{where}: field '{name}' must be an object, found {json_type(record[name])}")
    return record.get(name, {})

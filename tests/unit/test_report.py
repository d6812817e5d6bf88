from __future__ import annotations

import csv
import random
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from demask.corpora import world
from demask.scoring import score, summarise
from demask.stages import plots, report
from demask.stages.report import write_report
from demask.types import DIRECTIONS, Answer, Question, answer_record

NASTY = "<script>alert(\"1\")</script> & 'x' {{ 7*7 }} $a_b$ -->"


def made_method(name, label, answers, curve=(), steps=0, tokens=0, seconds=0.0):
    records = [answer_record(answer) for answer in answers]
    fields = {"name": name, "label": label, "steps": steps, "tokens": tokens, "seconds": seconds}
    return fields | {"results": summarise(answers), "curve": list(curve), "answers": records}


def made_comparison(methods, **other):
    fixed = {"title": "T", "verdict": "V", "caption": "C", "metric": "contains", "settings": {"seed": 1}, "versions": {"torch": "2.13.0"}}
    return fixed | {"methods": methods} | other


def answered(question, golds, prediction, direction="forward", group="", document=""):
    asked = Question(question, tuple(golds), direction, group, document)
    return Answer(asked, prediction, score(prediction, golds))


def realistic():
    """60 people, half of them in each order; four methods answer four forward and four backward questions about each."""
    rng = random.Random(0)
    people = world.people(7, 60)
    orders = ["name_first"] * 30 + ["description_first"] * 30
    skills = {  # (forward, backward) by order
        "base": ("base model (before)", (0.0, 0.0), (0.0, 0.0)),
        "ar": ("autoregressive", (0.9, 0.02), (0.71, 0.05)),
        "demask": ("demask", (0.93, 0.97), (0.88, 0.84)),
        "control": ("random-token control", (0.88, 0.03), (0.69, 0.06)),
    }
    methods = []
    for name, (label, *by_order) in skills.items():
        answers = []
        for person, order in zip(people, orders, strict=True):
            other = rng.choice(people)
            for i, direction in enumerate(DIRECTIONS):
                share = by_order[orders.index(order) > 0][i]
                for asked in range(4):
                    right = rng.random() < share
                    cue, gold = (person.name, person.description) if direction == "forward" else (person.description, person.name)
                    said = gold if right else (other.description if direction == "forward" else other.name)
                    text = ("Who is {}?", "Tell me who {} is.", "Do you know who {} is?", "Which person is {}?")[asked].format(cue)
                    prediction = f"{cue[0].upper()}{cue[1:]} is {said}." if asked % 2 else f"{said[0].upper()}{said[1:]}."
                    answers.append(answered(text, [gold], prediction, direction, order, person.id))
        final = summarise(answers)["by_direction"]
        points = [
            {"step": 100 * k} | {d: final[d]["contains"]["mean"] * (1 - 0.5**k) * rng.uniform(0.95, 1) for d in DIRECTIONS}
            for k in range(0, 7)
        ]
        trained = name != "base"
        cost = {"steps": 600, "tokens": rng.randrange(900_000, 1_800_000), "seconds": rng.uniform(80, 130)} if trained else {}
        methods.append(made_method(name, label, answers, points if trained else (), **cost))
    return made_comparison(
        methods,
        title="demask quickstart",
        verdict="After 600 steps, demask answers 90% of the questions in both directions; plain fine-tuning answers 4% backward.",
        caption="Embedded 3.4M-parameter model; 60 new statements, one wording each; 600 steps; three rehearsal samples a batch; "
        "independent and window masks; an answer counts as right where it contains the gold answer.",
        settings={"seed": 1, "steps": 600, "learning_rate": 3e-4, "mask_ratio": [0.05, 0.95], "mask_pattern": "mix", "use_peft": False},
        versions={"python": "3.13.1", "torch": "2.13.0", "transformers": "5.23.0"},
    )

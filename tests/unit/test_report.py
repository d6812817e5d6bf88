"""The report: what stands on the page and in its table, from folders of finished runs."""

from __future__ import annotations

import csv
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from demask.stages import view as stage
from demask.stages.report import _scaled, report
from demask.stages.view import verdict
from demask.types import DIRECTIONS, InputError
from tests.results import MADE_WITH, PLAN, answered, pairs, write_lines, write_run, write_study

NASTY = "<script>alert(\"1\")</script> & 'x' {{ 7*7 }} $a_b$ -->"
Z2 = 1.959963984540054**2  # Wilson's interval of n right of n is (n / (n + Z2), 1)
Cells = list[tuple[dict[str, Any], dict[str, Any] | None]]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pictures() -> None:
    """For a test that is about them; drawing takes most of the time."""


@pytest.fixture(autouse=True)
def _without_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(stage.plots, "bars", lambda *_: "")
        monkeypatch.setattr(stage.plots, "ratios", lambda *_: "")
        monkeypatch.setattr(stage.plots, "curves", lambda rows, *_: "<svg></svg>" if any(row["curve"] for row in rows) else "")


class Page(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and its text, by element."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        """In one line, without the thin spaces around dashes and arrows."""
        return " ".join(" ".join(self.texts).replace("\N{THIN SPACE}", "").split())

    def count(self, tag: str) -> int:
        return sum(element == tag for element, _ in self.elements)


def tables(html: str, name: str) -> list[list[list[str]]]:
    """The cells of all tables of a class, each a list of rows of texts."""
    found = []
    for body in re.findall(rf'<table class="{name}">(.*?)</table>', html, re.DOTALL):
        rows = re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.DOTALL)
        found.append([[Page(cell).text for cell in re.findall(r"<t[hd][^>]*>.*?</t[hd]>", row, re.DOTALL)] for row in rows])
    return found


def table(html: str, name: str) -> list[list[str]]:
    (only,) = tables(html, name)
    return only


def samples(html: str) -> list[tuple[str, ...]]:
    """Of each sample its direction and outcome, the heading, and what follows it as (name, text) pairs in a row."""
    found = []
    for head, body in re.findall(r'<div class="sample"([^>]*)>(.*?)</div>', html, re.DOTALL):
        attributes = dict(re.findall(r'data-(\w+)="([^"]*)"', head))
        texts = [Page(part).text for part in re.findall(r"<(?:p|dt|dd)>.*?</(?:p|dt|dd)>", body, re.DOTALL)]
        found.append((attributes["direction"], attributes["outcome"], *texts))
    return found


def written(cells: Cells, **fields: Any) -> str:
    """The page about a study of these cells."""
    return report([write_study(Path("s"), cells, **fields)]).read_text("utf-8")


def axes(method: str, data: str = "d", **other: Any) -> dict[str, Any]:
    return {"data": data, "method": method, **other}


def single(answers: list[dict[str, Any]], **run: Any) -> str:
    """The page about a study of one run."""
    return written([(axes("m"), {"answers": answers, **run})])


def asked(*said: str) -> list[dict[str, Any]]:
    """Two documents, one forward and one backward question about each."""
    return [
        answered("Who is Ann?", "the cook", said[0], "forward", "name_first", "d1"),
        answered("Who is the cook?", ["Ann", "Ann Lee"], said[1], "backward", "name_first", "d1"),
        answered("Who is Bo?", "the pilot", said[2], "forward", "description_first", "d2"),
        answered("Who is the pilot?", "Bo", said[3], "backward", "description_first", "d2"),
    ]


POINTS = [
    {"step": 0, "forward_contains": 0.0, "backward_contains": 0.0},
    {"step": 5, "forward_contains": 0.5, "backward_contains": 0.0},
    {"step": 10, "forward_contains": 1.0, "backward_contains": 0.5},
]


def small() -> Cells:
    """An untrained base, and demask, which misses one backward question."""
    base = {"answers": asked(*["No idea."] * 4), "plan": None}
    right = {"answers": asked("Ann is the cook.", "Ann.", "The pilot!", "Ann."), "curve": POINTS, "cpu_seconds": 9.96}
    return [(axes("base"), base), (axes("demask"), right)]


LABELS = {"data": {"d": "two people"}, "method": {"base": "base model (before)"}}


# --- the page -----------------------------------------------------------------------------------------------------------------


def big() -> Path:
    """Two data sets, four methods, two seeds; everything that a page can show."""
    rng = random.Random(0)
    cells: Cells = []
    for data in ("people", "rooms"):
        for method, skill in (("ar", (0.9, 0.1)), ("demask", (0.9, 0.8)), ("base", (0.0, 0.0))):
            for seed, ratio in ((1, 0.25), (2, 0.25), (1, 0.75)):
                scores = ([float(rng.random() < share) for _ in range(12)] for share in skill)
                run: dict[str, Any] = {"answers": pairs(*scores, "name_first"), "known": [answered("old?", "x", 1.0)]}
                run |= {"plan": None} if method == "base" else {"curve": POINTS, "settings": {"mask_ratio": [ratio], "select_on": "test"}}
                run |= {"retention": {"after": {"text": {"nll": 2.0}}}}
                cells.append((axes(method, data, mask_ratio=ratio, seed=seed), run))
    cells.append((axes("ar", "people", mask_ratio=0.5, seed=1), None))
    fields = {"title": "Which masks?", "about": "At equal steps.", "verdict": "Masks win.", "settings": {"all runs": {"max_steps": 10}}}
    return write_study(Path("big"), cells, paper={"people": "name_description"}, **fields)


@pytest.mark.usefixtures("pictures")
def test_the_page_is_self_contained_and_holds_every_part() -> None:
    path = report([big()], "out")
    assert path == Path("out/report.html")
    assert sorted(file.name for file in path.parent.iterdir()) == ["report.csv", "report.html"]
    html = path.read_text("utf-8")
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in ("img", "iframe", "object", "embed", "base")
        assert "src" not in attributes
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,"))
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"@import|url\((?!#)", html)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:href="#|url\(#)([^")]+)', html)
    assert {"data-1", "data-2"} <= set(targets) <= set(ids)
    assert page.count("svg") == 8  # bars, ratios, by steps, by FLOPs: of either data set
    assert page.count("script") == html.count("<script") == 1
    assert page.count("h1") == 1
    assert not page.open or page.open == [tag for tag in page.open if tag in ("meta", "link", "input", "br")]
    parts = ["Which masks?", "Masks win.", "At equal steps.", "Accuracy by method", "How much to hide", "Accuracy during training"]
    parts += ["Accuracy at equal FLOPs", "By kind of question", "Facts learnt", "Fact by fact", "Beside the paper's numbers"]
    places = [page.text.index(part) for part in [*parts, "Sample answers", "Settings and versions"]]
    assert places == sorted(places)
    assert "over 18 finished runs; 1 more is not finished . Small figures" in page.text
    assert len(html) < 600_000


def test_every_section_is_told_of_on_top() -> None:
    page = Page(report([big()]).read_text("utf-8")).text
    assert page.count("Checkpoints were selected on the test questions: these numbers are optimistic.") == 4  # once there, once on top
    assert len(re.findall(r"people : Demask, mask_ratio 0\.\d+ learnt most: forward ", page)) == 1


@pytest.mark.usefixtures("pictures")
def test_the_same_folders_give_the_same_bytes() -> None:
    folder = write_study(Path("s"), small(), labels=LABELS)
    first = report([folder], "a").read_bytes()
    with matplotlib.rc_context({"font.size": 20, "axes.grid": True, "svg.fonttype": "path"}):  # whatever the user's own style
        assert report([folder], "b").read_bytes() == first
    assert Path("a/report.csv").read_bytes() == Path("b/report.csv").read_bytes()
    assert report([folder]) == Path("s/report.html")


# --- scores -------------------------------------------------------------------------------------------------------------------

HEAD = ["method", "forward", "backward", "gap", "old knowledge", "text loss", "tokens", "FLOPs", "seconds"]


def test_the_table_of_scores() -> None:
    html = written(small(), labels=LABELS)
    rows = table(html, "scores")
    assert rows[0] == HEAD
    # Wilson's interval of 0 of 2 is 0 to Z2 / (2 + Z2) = 65.8 and of 2 of 2 from 34.2. Of the difference of two zeros: -65.8 to 65.8.
    zero = "0.0 0.0–65.8"
    assert rows[1] == ["base model (before)", zero, zero, "0.0 -65.8–65.8", *["–"] * 5]
    # Backward, d1 is right and d2 wrong: a draw of two documents is 0, 1/2 or 1, and each end holds a quarter of the draws.
    # The gap reaches down to 0.5 - sqrt(0.658^2 + 0.5^2) and up to 0.5 + sqrt(0 + 0.5^2).
    scores = ["100.0 34.2–100.0", "50.0 0.0–100.0", "50.0 -32.6–100.0"]
    assert rows[2] == ["demask", *scores, "–", "–", "4 k 1.5 k trained on", "2 T", "10.0"]
    page = Page(html).text
    assert "forward: 2 answers, backward: 2 answers" in page
    assert "Percent of questions answered right (contains), over 2 finished runs. Small figures" in page


def test_runs_of_a_configuration_are_taken_together() -> None:
    """Three runs, of 2, 2 and 4 documents, all right forward and all wrong backward: Wilson's interval of 8."""
    cells: Cells = [
        (axes("m", seed=seed), {"answers": pairs([1] * n, [0] * n), "plan": PLAN | {"tokens": tokens}, "cpu_seconds": 1.26})
        for seed, n, tokens in ((1, 2, 100), (2, 2, 200), (3, 4, 600))
    ]
    html = written(cells)
    low, gap = 100 * 8 / (8 + Z2), 100 * (1 - 2**0.5 * Z2 / (8 + Z2))
    scores = [f"100.0 {low:.1f}–100.0", f"0.0 0.0–{100 - low:.1f}", f"100.0 {gap:.1f}–100.0"]
    assert table(html, "scores")[1] == ["m 3 runs", *scores, "–", "–", "300 1.5 k trained on", "2 T", "1.3"]
    assert "forward: 8 answers, backward: 8 answers" in Page(html).text


def test_before_and_after() -> None:
    """The base knew the first of two facts forward, and none backward; Wilson's interval of two documents that agree."""
    assert "Not known before" not in single(pairs([1], [1]))
    run = {"answers": pairs([1, 1], [1, 1]), "before": pairs([1, 0], [0, 0])}
    html = written([(axes("m"), run), (axes("n"), {"answers": pairs([1, 1], [1, 1])})])
    low = 100 * 2 / (2 + Z2)
    shown = table(html, "scores")
    assert shown[1][1] == f"50.0→100.0 {low:.1f}–100.0 not known before: 100.0"
    assert shown[1][2] == f"0.0→100.0 {low:.1f}–100.0 not known before: 100.0"
    assert shown[2][1] == f"100.0 {low:.1f}–100.0"
    said = Page(html).text
    assert f"forward 50% before, 100% ({low:.0f} to 100%) after (n = 2), backward 0% before" in said
    assert "Not known before: over the questions that it did not answer right." in said
    line = next(csv.DictReader(Path("s/report.csv").read_text().splitlines()))
    assert [line[name] for name in ("direction", "mean", "before", "new", "n_new")] == ["forward", "1.0", "0.5", "1.0", "1"]


def test_a_fact_is_learnt_where_nobody_else_is_named() -> None:
    kind = {"direction": "backward", "group": "g"}
    lines = [answered(f"{p}?", p, said, document=p, **kind) for p, said in (("Ann", "Ann, Bo"), ("Bo", "Bo"))]
    lines += [answered(f"{p} is?", "wise", "wise", document=p) for p in ("Ann", "Bo")]
    html = single(lines)
    assert table(html, "numbers learnt")[1] == ["m", "1", "1", "0", "0", "2"]
    assert "Percent of a document's own questions answered right" in Page(html).text


def test_what_is_left_of_old_knowledge() -> None:
    both = {
        when: {"questions": {"n": 4, "contains": {"mean": mean}}, "text": {"tokens": 9, "nll": nll}}
        for when, mean, nll in (("before", 0.75, 2.0), ("after", 1.0, 2.344))
    }
    known = [answered(f"old {i}?", "x", 1.0, document=str(i)) for i in range(4)]
    cells: Cells = [
        (axes("kept"), {"retention": both, "known": known, "answers": pairs([1], [1])}),
        (axes("record"), {"retention": both}),
        (axes("after"), {"retention": {"after": both["after"]}, "plan": None}),
        (axes("nothing"), {}),
    ]
    html = written(cells)
    rows = {row[0]: row[4:6] for row in table(html, "scores")}
    low = 100 * 4 / (4 + Z2)
    assert rows["kept"] == [f"75.0→100.0 {low:.1f}–100.0", "2.00→2.34"]
    assert rows["record"] == ["75.0→100.0", "2.00→2.34"]
    assert rows["after"] == ["100.0", "2.34"]
    assert rows["nothing"] == ["–", "–"]
    said = "old knowledge: 75% before, 100% (51 to 100%) after (n = 4)"
    assert said in Page(html).text


def test_what_is_kept_of_what_the_base_answered_right() -> None:
    """Two of four: a column of its own, and a sentence."""
    before, after = (
        [answered(f"old {i}?", "x", right, document=str(i)) for i, right in enumerate(part)] for part in ((1, 1, 1, 1, 0), (1, 1, 0, 0, 1))
    )
    both = {when: {"questions": {"n": 5, "contains": {"mean": mean}}} for when, mean in (("before", 0.8), ("after", 0.6))}
    asked = {"answers": pairs([1], [1])}
    html = written([(axes("kept"), {"retention": both, "known": after, "known_before": before, **asked}), (axes("untold"), asked)])
    header, first, second = table(html, "scores")
    assert header[4:7] == ["old knowledge", "kept", "text loss"]
    assert first[5].startswith("50.0 ")
    assert second[5] == "–"
    assert "50% (0 to 100%) kept of what the base answered right (n = 4)" in Page(html).text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *((0.4, "0"), (999, "999"), (999.6, "1 k"), (1_234, "1.23 k"), (999_499, "999 k"), (999_999, "1 M"), (1.5e9, "1.5 G")),
        *((4e12, "4 T"), (2.5e15, "2.5 P"), (3e20, "300 E"), (3e21, "3 Z"), (1.2e25, "12 Y")),
    ],
)
def test_counts_in_three_digits(number: float, text: str) -> None:
    assert _scaled(number).replace("\N{NO-BREAK SPACE}", " ") == text


def test_a_gap_that_rounds_to_zero_from_below_is_zero() -> None:
    """2,999 and 3,000 of 3,000 are -0.03 points apart."""
    answers = [answered(f"{d} {i}?", "x", float(d == "backward" or i > 0), d, document=str(i)) for d in DIRECTIONS for i in range(3000)]
    html = single(answers)
    assert table(html, "scores")[1][3].startswith("0.0 ")
    assert "a gap of 0 points (" in Page(html).text


# --- during training ----------------------------------------------------------------------------------------------------------


def test_flops_until_an_accuracy_was_first_reached() -> None:
    rows = table(written(small(), labels=LABELS), "numbers")
    assert rows[0] == [
        "FLOPs until the accuracy first reached",
        *("50% forward", "80% forward", "50% backward", "80% backward"),
        "all FLOPs",
    ]
    # Half of 2e12 FLOPs at step 5 of 10; the base has no curve, and no row.
    assert rows[1:] == [["demask", "1 T", "2 T", "2 T", "never", "2 T"]]


def test_lines_are_drawn_of_a_few_only(monkeypatch: pytest.MonkeyPatch) -> None:
    cells: Cells = [(axes(f"m{i}"), {"answers": pairs([1], [0]), "curve": POINTS}) for i in range(3)]
    cells.insert(0, (axes("base"), {"answers": pairs([0], [0])}))
    html = written(cells)
    assert "drawn are" not in html
    assert "Columns are" not in html
    monkeypatch.setattr(stage, "MAX_DRAWN", 2)
    drawn: list[str] = []
    monkeypatch.setattr(stage.plots, "curves", lambda rows, *_: drawn.extend(row["label"] for row in rows) or "<svg></svg>")
    html = written(cells)
    assert drawn == ["m0", "m1"] * 2, "by steps and by FLOPs; the base has no curve"
    assert "drawn are the first 2 of the 3 lines of the table below" in Page(html).text
    assert [row[0] for row in table(html, "numbers")[1:]] == ["m0", "m1", "m2"]
    assert table(html, "grid")[0] == ["document", "base", "m0"]
    assert "Columns are of the first 2 of 4 methods." in html
    assert [row[0] for row in table(html, "scores")[1:]] == ["base", "m0", "m1", "m2"]


@pytest.mark.usefixtures("pictures")
def test_ratios_of_one_method_are_one_line_and_other_axes_set_lines_apart() -> None:
    cells: Cells = [
        (axes("m", mask_ratio=ratio, learning_rate=rate), {"answers": pairs([1], [0]), "settings": {"mask_ratio": [ratio]}})
        for ratio in (0.25, 0.75)
        for rate in (0.1, 0.2)
    ]
    html = written(cells)
    assert "How much to hide" in html
    legend = re.findall(r'id="ratios0-legend_1">(.*?)</svg>', html, re.DOTALL)[0]
    assert Page(legend).text == "m, learning_rate 0.1 m, learning_rate 0.2"


# --- by document --------------------------------------------------------------------------------------------------------------


def test_facts_learnt() -> None:
    """Documents with (forward, backward) both, one, and no direction right; half of an answer is not right; each run counts by itself."""
    one = pairs([1, 1, 0, 0, 0.5], [1, 0, 1, 0, 0.4])
    other = pairs([1], [1])
    html = written([(axes("m", seed=1), {"answers": one}), (axes("m", seed=2), {"answers": other}), (axes("n"), {})], metric="token_f1")
    assert table(html, "numbers learnt") == [
        ["method", "both directions", "forward only", "backward only", "neither", "facts"],
        ["m", "2", "1", "1", "2", "6"],
    ]
    assert "Facts learnt" not in single(pairs([1], []))


def test_a_fact_is_learnt_where_half_of_its_questions_are_right() -> None:
    lines = [answered(f"{i}?", "x", float(i < 1), document="d") for i in range(2)]
    lines += [answered(f"{i}?", "x", float(i < 1), "backward", document="d") for i in range(3)]
    assert table(single(lines), "numbers learnt")[1] == ["m", "0", "1", "0", "0", "1"]


def test_the_grid_shows_each_document() -> None:
    rows = table(written(small(), labels=LABELS), "grid")
    assert rows[0] == ["document", "base model (before)", "demask"]
    assert rows[1] == ["fwd", "bwd"] * 2
    assert rows[2:] == [["Ann / Ann Lee d1", "0", "0", "100", "100"], ["Bo d2", "0", "0", "100", "0"]]


def test_a_cell_of_the_grid_is_the_mean_over_its_questions_in_all_runs() -> None:
    cells: Cells = [
        (axes("m", seed=seed), {"answers": [answered(f"{i}?", "the cook", right, document="d") for i, right in enumerate(scores)]})
        for seed, scores in ((1, (1.0, 1.0)), (2, (0.0,)))
    ]
    html = written(cells)
    assert table(html, "grid")[2:] == [["the cook d", "67"]]
    assert 'title="m, forward: 67% of 3"' in html


def test_the_grid_says_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "MAX_DOCUMENTS", 1)
    html = written(small(), labels=LABELS)
    assert "Shown are the first 1 of 2 documents." in html
    assert "(2 documents)" in html
    assert len(table(html, "grid")) == 3


def test_groups() -> None:
    rows = table(written(small(), labels=LABELS), "numbers groups")
    heads = [f"{group}, {direction}" for group in ("name first", "description first") for direction in DIRECTIONS]
    assert rows[0] == ["method", *heads]
    right, wrong = "100.0 20.7–100.0", "0.0 0.0–79.3"  # Wilson's of 1 of 1 and 0 of 1
    assert rows[1:] == [["base model (before)", *[wrong] * 4], ["demask", right, right, right, wrong]]


# --- samples ------------------------------------------------------------------------------------------------------------------


def test_the_sample_answers() -> None:
    found = samples(written(small(), labels=LABELS))
    assert found[1] == (
        *("backward", "mixed", "Who is the cook? backward, name first, d1"),
        *("right answer", "Ann / Ann Lee", "base model (before)", "✗ No idea.", "demask", "✓ Ann."),
    )
    assert [sample[:2] for sample in found] == [
        ("forward", "mixed"),
        ("backward", "mixed"),
        ("forward", "mixed"),
        ("backward", "wrong"),
    ]
    assert samples(single([answered("q?", "x", "x")]))[0][:2] == ("forward", "right")


def test_a_partly_right_answer_shows_its_score() -> None:
    html = written([(axes("m"), {"answers": [answered("q?", "Mira Tolland", "Mira")]})], metric="rouge1_recall")
    assert samples(html) == [("forward", "mixed", "q? forward", "right answer", "Mira Tolland", "m", "50% Mira")]
    page = Page(html).text
    assert "Mean rouge1_recall in percent, over 1 finished run." in page
    assert "a percentage in between" in page


def test_samples_are_even_over_groups_and_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "MAX_SAMPLES", 100)
    answers = [answered(f"q{i}", "x", 1.0, "forward", "many") for i in range(300)]
    answers += [answered(f"r{i}", "x", 1.0, "backward", "many") for i in range(200)]
    answers += [answered(f"s{i}", "x", 1.0, "forward", "few") for i in range(10)]
    chosen = [sample[2].split()[0] for sample in samples(single(answers))]
    of_kind = {kind: [int(name[1:]) for name in chosen if name[0] == kind] for kind in "qrs"}
    assert [len(of_kind[kind]) for kind in "qrs"] == [45, 45, 10]  # the few leave 90 for the two others
    assert of_kind["q"] == [i * 300 // 45 for i in range(45)]
    assert chosen == [f"{kind}{i}" for kind in "qrs" for i in of_kind[kind]]


def test_more_kinds_of_question_than_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "MAX_SAMPLES", 3)
    answers = [answered(f"q{i}", "x", 1.0, group=f"g{i // 2}") for i in range(10)]
    assert len(samples(single(answers))) == 3


# --- beside the paper, badges, settings -----------------------------------------------------------------------------------------


def test_the_paper_s_rows_are_marked_as_theirs() -> None:
    answers = [*pairs([1, 0.5], [0, 0], "name_first"), *pairs([1], [0.25], "description_first", "e")]
    cells: Cells = [(axes("m"), {"answers": answers}), (axes("n"), {}), (axes("m", "other"), {})]
    html = written(cells, paper={"d": "name_description"})
    rows = table(html, "numbers paper")
    assert rows[0] == ["method", "model", "N2D forward", "N2D backward", "D2N forward", "D2N backward"]
    assert rows[1] == ["m", "measured here", "0.750", "0.000", "1.000", "0.250"]
    assert rows[2] == ["n", "measured here", *["–"] * 4]
    assert ["demask, no paraphrases", "Llama-3.1-8B, the paper's", "0.658", "0.949", "0.992", "0.923"] in rows
    assert html.count('<tr class="theirs">') == len(rows) - 3 == 21
    assert "The shaded rows are theirs" in Page(html).text
    assert "arXiv 2510.09885, set name description" in Page(html).text
    rows = table(written(cells, paper={"d": "biography"}), "numbers paper")
    assert rows[0][2:] == ["forward", "backward"]
    assert rows[1][2:] == ["0.833", "0.083"]
    assert "the paper's" not in written(cells)


def test_selected_on_test_is_told() -> None:
    def page(select_on: str) -> str:
        return Page(written([(axes("m"), {"answers": pairs([1], [1]), "curve": POINTS, "settings": {"select_on": select_on}})])).text

    sentence = "Checkpoints were selected on the test questions: these numbers are optimistic."
    assert "m selected on test" in page("test")
    assert sentence in page("test")
    for other in ("validation", "last"):
        assert "selected on test" not in page(other)
        assert sentence not in page(other)


def test_what_is_unfinished_is_counted() -> None:
    cells: Cells = [(axes("m"), {}), (axes("n"), None), (axes("o"), {"status": "failed"})]
    assert "over 1 finished run; 2 more are not finished" in Page(written(cells)).text
    assert "over 1 finished run; 1 more is not finished" in Page(written(cells[:2])).text
    assert "not finished" not in written(cells[:1])


def test_settings_and_versions() -> None:
    cells: Cells = [
        (axes("m", seed=1), {}),
        (axes("m", seed=2), {"commit": None, "versions": {"torch": "2.14.0"}, "ended": "2026-05-05T00:00:00+00:00"}),
    ]
    html = written(cells, settings={"all runs": {"max_steps": 6, "mask_ratio": [0.1, 0.9], "replay": ["a", "b"]}, "nothing": {}})
    told, made_with = tables(html, "pairs")
    assert told == [["max_steps", "6"], ["mask_ratio", "[0.1, 0.9]"], ["replay", "a / b"]]
    assert dict(made_with) == {
        **{"python": "3.13.1", "torch": "2.13.0 / 2.14.0", "commit": "abc", "cpu_count": "2"},
        "day": "2026-05-04 / 2026-05-05",
    }


def test_several_folders_are_one_page() -> None:
    write_study(Path("s"), [(axes("m"), {"answers": pairs([1], [0])})])
    write_run(Path("one"), pairs([1], [1]), settings={"questions": "q.jsonl"})
    html = report(["s", "one"], "out").read_text("utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", html)[:2] == ["A study: d", "q.jsonl"]
    assert [rows[1][0] for rows in tables(html, "scores")] == ["m", "one"]
    assert not Path("s/report.html").exists()


# --- verdicts -----------------------------------------------------------------------------------------------------------------


def row(label: str, forward: float | None, backward: float | None = None, **other: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"label": label, "trained": True} | other
    for direction, score in (("forward", forward), ("backward", backward)):
        if score is not None:
            found |= {direction: score, f"{direction}_low": score - 0.1, f"{direction}_high": score + 0.1, f"{direction}_n": 1200}
    if forward is not None and backward is not None:
        found |= {"gap": forward - backward, "gap_low": forward - backward - 0.14, "gap_high": forward - backward + 0.14}
    return found


def test_the_verdict_names_the_best_in_both_directions_and_plain_training() -> None:
    masked = row("demask", 0.8, 0.7, retained=0.5, retained_before=0.75, retained_low=0.4, retained_high=0.6, retained_n=90)
    plain = row("plain", 0.9, 0.2, plain=True)
    assert verdict([row("base", 0.99, 0.99, trained=False), plain, row("slow plain", 0.5, 0.1, plain=True), masked]) == (
        "Demask learnt most: forward 80% (70 to 90%) (n = 1,200), backward 70% (60 to 80%) (n = 1,200), a gap of 10 points (-4 to 24); "
        "old knowledge: 75% before, 50% (40 to 60%) after (n = 90). "
        "Plain: forward 90% (80 to 100%) (n = 1,200), backward 20% (10 to 30%) (n = 1,200), a gap of 70 points (56 to 84)."
    )


def test_the_verdict_on_one_or_none() -> None:
    assert verdict([row("demask", 0.8)]) == "Demask: forward 80% (70 to 90%) (n = 1,200)."
    assert verdict([row("book", 0.3, trained=False), row("bm25", 0.8, trained=False)]).startswith("Bm25 learnt most: forward 80% ")
    assert verdict([row("asked nothing", None), row("book", None, 0.3, trained=False)]) == "Book: backward 30% (20 to 40%) (n = 1,200)."
    assert verdict([row("m", None)]) == verdict([]) == "Nothing was asked."


def test_a_study_s_own_verdict_comes_first() -> None:
    page = Page(written(small(), verdict="Masks win.")).text
    assert "Masks win." in page
    assert "learnt most" not in page
    assert (
        "Demask: forward 100% (34 to 100%) (n = 2), backward 50% (0 to 100%) (n = 2), a gap of 50 points (-33 to 100)."
        in Page(written(small(), labels=LABELS)).text
    )


# --- whatever comes in --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("pictures")
def test_every_text_is_escaped() -> None:
    lines = [
        answered(f"{NASTY} question", [f"{NASTY} gold"], f"{NASTY} prediction", direction, f"{NASTY} group", f"{NASTY} document")
        for direction in DIRECTIONS
    ]
    run = {"answers": lines, "curve": POINTS, "versions": {f"{NASTY} package": f"{NASTY} version"}, "commit": f"{NASTY} commit"}
    run |= {"hardware": {f"{NASTY} hardware": [f"{NASTY} card"]}, "python": f"{NASTY} python"}
    cells: Cells = [
        (
            axes(f"{NASTY} name", f"{NASTY} set", mask_ratio=f"{NASTY} {value}", seed=f"{NASTY} seed"),
            run | {"settings": {"mask_ratio": [share]}},
        )
        for value, share in (("one", 0.25), ("two", 0.75))
    ]
    cells.append((axes("m", "other"), {"answers": pairs([1], [1])}))
    texts = {name: f"{NASTY} {name}" for name in ("title", "about", "verdict")}
    labels = {"data": {f"{NASTY} set": f"{NASTY} data"}, "method": {f"{NASTY} name": f"{NASTY} label"}}
    html = written(cells, **texts, labels=labels, settings={f"{NASTY} part": {f"{NASTY} key": f"{NASTY} value"}})
    page = Page(html)
    assert page.count("script") == html.count("<script") == 1
    assert "alert" not in re.search(r"<script>(.*?)</script>", html, re.DOTALL)[1]  # type: ignore[index]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert "49" not in re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL).split("<body>")[1]
    named = ["question", "gold", "prediction", "label, mask_ratio", "one", "two", "data", "document", *texts]
    for name in (*named, "part", "key", "value", "package", "version", "commit", "hardware", "card", "python"):
        assert f"{NASTY} {name}" in page.text, name
    assert f"{NASTY} group".replace("_", " ") in page.text


def test_a_single_run_s_texts_are_escaped() -> None:
    folder = Path("<b> & 'x' {{ 7*7 }} $a_b$ -->")
    write_run(folder, [answered("q", "x", "x")], settings={"questions": f"{NASTY} questions", "peft": [f"{NASTY} module"]})
    page = Page(report([folder]).read_text("utf-8"))
    assert page.count("script") == 1
    assert page.count("b") == 0
    for text in (str(folder), f"{NASTY} questions", f"{NASTY} module"):
        assert text in page.text


@pytest.mark.usefixtures("pictures")
def test_half_a_character_and_control_characters() -> None:
    odd = "a\ud800b\x00c\u202e\r\nd"
    write_study(Path("s"), [(axes("m"), {"answers": [answered(odd, odd, odd, group=odd, document=odd)]})], labels={"method": {"m": odd}})
    html = report(["s"]).read_text("utf-8")
    assert "a?b" in html
    with open("s/report.csv", encoding="utf-8", newline="") as file:
        assert len(list(csv.reader(file))) == 3


@pytest.mark.parametrize(
    ("answers", "columns"),
    [
        ([answered("q", ["a"], "a")], ["forward"]),
        ([answered("q", ["a"], "a", "backward")], ["backward"]),
        ([answered("q", ["a"], "a"), answered("q", ["a"], "b", "backward")], ["forward", "backward", "gap"]),
    ],
)
@pytest.mark.usefixtures("pictures")
def test_one_run_without_groups_documents_or_curve(answers: list[dict[str, Any]], columns: list[str]) -> None:
    html = single(answers)
    assert table(html, "scores")[0] == ["method", *columns, *HEAD[4:]]
    assert Page(html).count("svg") == 1
    for part in ("during training", "Fact by fact", "Facts learnt", "By kind of question", "How much to hide"):
        assert part not in html


def test_runs_that_were_asked_different_things() -> None:
    one = {"answers": [answered("q", ["Oslo"], "Oslo", "forward", "g", "d")]}
    other = {"answers": [answered("p", ["Oslo"], "Oslo", "backward", "h", "e")], "curve": [{"step": 1, "backward_contains": 0.5}]}
    html = written([(axes("ar"), one), (axes("demask"), other)])
    right = "100.0 20.7–100.0"
    assert [row[1:4] for row in table(html, "scores")[1:]] == [[right, "–", "–"], ["–", right, "–"]]
    assert [row[1:] for row in table(html, "numbers groups")[1:]] == [[right, "–", "–", "–"], ["–", "–", "–", right]]
    assert [sample[5:] for sample in samples(html)] == [("ar", "✓ Oslo"), ("demask", "✓ Oslo")]
    assert [row[1:] for row in table(html, "grid")[2:]] == [["100", "–", "–", "–"], ["–", "–", "–", "100"]]
    assert table(html, "numbers learnt")[1:] == [["ar", "0", "1", "0", "0", "1"], ["demask", "0", "0", "1", "0", "1"]]
    assert "forward: 1 answers, backward: 1 answers" in Page(html).text


@pytest.mark.usefixtures("pictures")
def test_runs_that_were_asked_nothing_still_make_a_page() -> None:
    html = written([(axes("m"), {}), (axes("n"), {"curve": POINTS[:1]})])
    page = Page(html)
    assert "Nothing was asked." in page.text
    assert [row[0] for row in table(html, "scores")] == ["method", "m", "n"]
    assert "Sample answers" not in page.text
    assert page.count("script") == 0
    assert page.text.count("never") == 0
    bare = write_run(Path("bare"))
    (bare / "run.json").write_text('{"status": "finished"}')
    assert "Nothing was asked." in report([bare]).read_text("utf-8")


@pytest.mark.usefixtures("pictures")
def test_a_curve_of_one_point_and_one_without_a_number_of_steps() -> None:
    html = written(
        [
            (axes("m"), {"answers": pairs([1], [1]), "curve": POINTS[1:2]}),
            (axes("n"), {"answers": pairs([1], [1]), "curve": POINTS, "plan": {}}),
        ]
    )
    assert table(html, "numbers")[1:] == [["m", "1 T", "never", "never", "never", "2 T"]]
    assert Page(html).count("svg") == 3


def test_a_loss_that_is_no_number() -> None:
    """A training that diverged: JSON as Python writes it has NaN."""
    html = single(pairs([0], [0]), retention={"after": {"text": {"nll": float("nan")}}})
    assert table(html, "scores")[1][5] == "nan"


# --- the table for a spreadsheet ------------------------------------------------------------------------------------------------

COLUMNS = (
    "data,label,group,direction,runs,n,metric,mean,low,high,before,new,n_new,"
    "retained_before,retained,retained_low,retained_high,kept,kept_low,kept_high,kept_n,text_nll_before,text_nll,"
    "steps,tokens,target_tokens,flops,cpu_seconds,selected_on"
)


def test_csv() -> None:
    cells = small()
    cells[1][1].update(known=[answered("old?", "x", 1.0)], settings={"select_on": "test"})  # type: ignore[union-attr]
    written(cells, labels=LABELS)
    raw = Path("s/report.csv").read_bytes()
    assert b"\r" not in raw
    rows = list(csv.DictReader(raw.decode("utf-8").splitlines()))
    assert ",".join(rows[0]) == COLUMNS
    keys = [(row["label"], row["group"], row["direction"]) for row in rows]
    groups = ("all", "name_first", "description_first")
    assert keys == [(m, g, d) for m in ("base model (before)", "demask") for g in groups for d in DIRECTIONS]
    line = dict(zip(keys, rows, strict=True))["demask", "all", "backward"]
    numbers = {"runs": "1", "n": "2", "mean": "0.5", "low": "0.0", "high": "1.0", "retained": "1.0", "retained_low": "0.2065"}
    numbers |= {"retained_high": "1.0", "steps": "10.0", "tokens": "4000.0", "target_tokens": "1500.0", "cpu_seconds": "9.96"}
    kept = ("kept", "kept_low", "kept_high", "kept_n")
    empty = dict.fromkeys(("before", "new", "n_new", "retained_before", *kept, "text_nll_before", "text_nll"), "")
    texts = {"data": "two people", "label": "demask", "group": "all", "direction": "backward", "metric": "contains", "selected_on": "test"}
    assert {name: value for name, value in line.items() if name != "flops"} == texts | numbers | empty
    assert float(line["flops"]) == 2e12
    assert [rows[0][name] for name in ("steps", "tokens", "flops", "cpu_seconds", "selected_on")] == ["0.0", "0.0", "0.0", "0.0", ""]


def test_csv_keeps_a_group_with_commas_quotes_and_line_ends() -> None:
    group = 'a,"b"\nc'
    single([answered("q", ["a"], "a", group=group)])
    with open("s/report.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["group"] for row in rows] == ["all", group]


# --- faults -------------------------------------------------------------------------------------------------------------------


def test_faults_are_one_line_and_nothing_is_written() -> None:
    write_run(Path("one"), pairs([1], [0]))
    write_run(Path("two"))
    Path("a_file").write_text("")
    write_run(Path("broken"))
    write_lines(Path("broken/answers.jsonl"), [{"direction": "up"}])
    before = sorted(Path(".").rglob("*"))
    for paths, out, message in (
        ([], None, "report: give at least one folder"),
        (["one", "two"], None, "output_dir: say where a report about several folders is to be written"),
        (["one"], "a_file", "output_dir: 'a_file' is a file, expected a folder"),
        (["one"], "a_file/out", "output_dir: 'a_file/out' can't be written (Not a directory)"),
        (["one", "gone"], "out", "gone: no such folder"),
        (["one", "broken"], "out", "broken/answers.jsonl:1: field 'answer' is missing"),
    ):
        with pytest.raises(InputError) as raised:
            report(paths, out)
        assert str(raised.value) == message
        assert sorted(Path(".").rglob("*")) == before
    assert json.loads(Path("one/run.json").read_text())["python"] == MADE_WITH["python"]

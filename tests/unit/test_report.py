from __future__ import annotations

import csv
import random
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import matplotlib
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


class Page(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and its text, by element."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.open = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self):
        return "".join(self.texts)

    def count(self, tag):
        return sum(element == tag for element, _ in self.elements)


def table(html, name):
    """The cells of one table, a list of rows of stripped texts."""
    body = re.search(rf'<table class="{name}">(.*?)</table>', html, re.DOTALL)[1]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.DOTALL)
    return [["".join(Page(cell).texts).strip() for cell in re.findall(r"<t[hd][^>]*>.*?</t[hd]>", row, re.DOTALL)] for row in rows]


def small():
    """Two documents, one forward and one backward question about each; the trained method misses one backward question."""
    asked = [
        ("Who is Ann?", ["the cook"], "forward", "name_first", "d1"),
        ("Who is the cook?", ["Ann", "Ann Lee"], "backward", "name_first", "d1"),
        ("Who is Bo?", ["the pilot"], "forward", "description_first", "d2"),
        ("Who is the pilot?", ["Bo"], "backward", "description_first", "d2"),
    ]

    def method(name, label, predictions, **other):
        answers = [
            answered(q, golds, said, d, group, document) for (q, golds, d, group, document), said in zip(asked, predictions, strict=True)
        ]
        return made_method(name, label, answers, **other)

    base = method("base", "base model (before)", ["No idea.", "No idea.", "No idea.", "No idea."])
    curve = [{"step": 5, "forward": 0.5, "backward": 0.0}, {"step": 10, "forward": 1.0, "backward": 0.5}]
    right = ["Ann is the cook.", "Ann.", "The pilot!", "Ann."]
    return made_comparison([base, method("demask", "demask", right, curve=curve, steps=10, tokens=12345, seconds=9.96)])


# --- the page -------------------------------------------------------------------------------------------------------------


def test_the_page_is_self_contained_and_holds_every_part(tmp_path):
    path = write_report(tmp_path / "out", realistic())
    assert path == tmp_path / "out" / "report.html"
    assert sorted(file.name for file in path.parent.iterdir()) == ["report.csv", "report.html"]
    html = path.read_text("utf-8")
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in ("img", "iframe", "object", "embed", "base")
        assert "src" not in attributes
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:,"))
    assert not re.search(r"@import|url\((?!#)", html)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', html)
    assert targets
    assert set(targets) <= set(ids)
    assert page.count("svg") == 2
    assert page.count("script") == 1
    assert [tag for tag in ("h1", "details") if page.count(tag) != 1] == []
    order = ["demask quickstart", "After 600 steps", "Accuracy by method", "Accuracy during training", "Fact by fact"]
    places = [page.text.index(part) for part in [*order, "Sample answers", "Settings and versions", "Embedded 3.4M"]]
    assert places[1:] == sorted(places[1:])
    assert len(html) < 400_000


def test_the_same_comparison_gives_the_same_bytes(tmp_path):
    first = write_report(tmp_path / "a", small()).read_bytes()
    with matplotlib.rc_context({"font.size": 20, "axes.grid": True, "svg.fonttype": "path"}):  # whatever the user's own style
        assert write_report(tmp_path / "b", small()).read_bytes() == first


def test_the_table_of_scores(tmp_path):
    html = write_report(tmp_path, small()).read_text("utf-8")
    rows = table(html, "scores")
    assert rows[0] == ["Method", "all questions", "name first", "description first", "training tokens", "seconds"]
    assert rows[1] == ["forward", "backward"] * 3
    # Wilson's interval of 2 of 2 is 1 / (1 + z^2 / 2) = 34.2 to 100, of 1 of 1 1 / (1 + z^2) = 20.7 to 100 (z = 1.95996).
    # Backward, d1 is right and d2 wrong: a draw of two documents is 0, 1/2 or 1, and each end holds a quarter of the draws.
    right, wrong = "100.0|20.7–100.0", "0.0|0.0–79.3"
    demask = [cell.replace("\N{THIN SPACE}", "") for cell in rows[3]]
    expected = ["100.0|34.2–100.0", "50.0|0.0–100.0", right, right, right, wrong]
    assert demask == ["demask", *(cell.replace("|", "") for cell in expected), "12,345", "10.0"]
    assert [rows[2][0], *rows[2][7:]] == ["base model (before)", "0", "0"]


def test_the_grid_shows_each_document(tmp_path):
    rows = table(write_report(tmp_path, small()).read_text("utf-8"), "grid")
    assert rows[0] == ["document", "base model (before)", "demask"]
    assert rows[2:] == [["Ann / Ann Leed1", "0", "0", "100", "100"], ["Bod2", "0", "0", "100", "0"]]


def test_the_grid_says_what_it_leaves_out(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAX_DOCUMENTS", 1)
    html = write_report(tmp_path, small()).read_text("utf-8")
    assert "Shown are the first 1 of 2 documents." in html
    assert len(table(html, "grid")) == 3


def test_a_cell_of_the_grid_is_the_mean_over_its_questions(tmp_path):
    said = ["the cook", "the cook", "the nurse"]
    answers = [answered(f"Who is Ann, {i}?", ["the cook"], prediction, document="d") for i, prediction in enumerate(said)]
    html = write_report(tmp_path, made_comparison([made_method("ar", "AR", answers)])).read_text("utf-8")
    assert table(html, "grid")[2:] == [["the cookd", "67"]]
    assert 'title="AR, forward: 67% of 3"' in html


def test_the_sample_answers(tmp_path):
    rows = table(write_report(tmp_path, small()).read_text("utf-8"), "samples")
    assert rows[0] == ["question", "right answer", "base model (before)", "demask"]
    assert rows[2] == ["Who is the cook?backward, name first, d1", "Ann / Ann Lee", "✗ No idea.", "✓ Ann."]
    assert rows[4][3] == "✗ Ann."
    assert len(rows) == 5


def test_samples_are_even_over_groups_and_directions():
    answers = [answered(f"q{i}", ["x"], "x", "forward", "many") for i in range(300)]
    answers += [answered(f"r{i}", ["x"], "x", "backward", "many") for i in range(200)]
    answers += [answered(f"s{i}", ["x"], "x", "forward", "few") for i in range(10)]
    chosen = [sample["question"] for sample in report._samples(made_comparison([made_method("ar", "AR", answers)]))]
    of_kind = {kind: [int(name[1:]) for name in chosen if name[0] == kind] for kind in "qrs"}
    assert [len(of_kind[kind]) for kind in "qrs"] == [45, 45, 10]  # the few leave 90 for the two others
    assert of_kind["q"] == [i * 300 // 45 for i in range(45)]
    assert chosen == [f"q{i}" for i in of_kind["q"]] + [f"r{i}" for i in of_kind["r"]] + [f"s{i}" for i in of_kind["s"]]


def test_a_partly_right_answer_shows_its_score(tmp_path):
    comparison = made_comparison([made_method("ar", "AR", [answered("q", ["Mira Tolland"], "Mira")])], metric="rouge1_recall")
    html = write_report(tmp_path, comparison).read_text("utf-8")
    assert table(html, "samples")[1][2] == "50% Mira"
    assert "Mean rouge1_recall in percent" in html


# --- whatever comes in ----------------------------------------------------------------------------------------------------


def test_every_text_is_escaped(tmp_path):
    asked = [
        answered(f"{NASTY} question", [f"{NASTY} gold"], f"{NASTY} prediction", direction, f"{NASTY} group", f"{NASTY} document")
        for direction in DIRECTIONS
    ]
    method = made_method(f"{NASTY} name", f"{NASTY} label", asked, [{"step": 1, "forward": 0.0, "backward": 0.0}])
    texts = {name: f"{NASTY} {name}" for name in ("title", "verdict", "caption")}
    settings, versions = {f"{NASTY} key": f"{NASTY} value"}, {f"{NASTY} package": f"{NASTY} version"}
    html = write_report(tmp_path, made_comparison([method], **texts, settings=settings, versions=versions)).read_text("utf-8")
    page = Page(html)
    assert page.count("script") == 1
    assert html.count("<script") == 1
    assert "alert" not in re.search(r"<script>(.*?)</script>", html, re.DOTALL)[1]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    written = re.sub(r"\s+", " ", page.text)
    for name in ("question", "gold", "prediction", "label", "document", *texts, "key", "value", "package", "version"):
        assert f"{NASTY} {name}" in written, name
    assert f"{NASTY} group".replace("_", " ") in written


@pytest.mark.parametrize(
    ("answers", "columns"),
    [
        ([answered("q", ["a"], "a")], ["forward"]),
        ([answered("q", ["a"], "a", "backward")], ["backward"]),
        ([answered("q", ["a"], "a"), answered("q", ["a"], "b", "backward")], ["forward", "backward"]),
    ],
)
def test_one_method_without_groups_documents_or_curve(tmp_path, answers, columns):
    html = write_report(tmp_path, made_comparison([made_method("ar", "AR", answers)])).read_text("utf-8")
    assert table(html, "scores")[0] == ["Method", *columns, "training tokens", "seconds"]
    assert Page(html).count("svg") == 1
    assert "during training" not in html
    assert "Fact by fact" not in html


def test_methods_that_were_asked_different_things(tmp_path):
    one = made_method("ar", "AR", [answered("q", ["Oslo"], "Oslo", "forward", "g", "d")])
    other = made_method("demask", "demask", [answered("p", ["Oslo"], "Oslo", "backward", "h", "e")], [{"step": 1, "backward": 0.5}])
    html = write_report(tmp_path, made_comparison([one, other])).read_text("utf-8")
    dashes = [sum(cell == "–" for cell in row) for row in table(html, "scores")[2:]]
    assert dashes == [4, 4]  # of 3 x 2 scores, each method has two
    assert [row[2:] for row in table(html, "samples")[1:]] == [["✓ Oslo", "–"], ["–", "✓ Oslo"]]
    assert [row[1:] for row in table(html, "grid")[2:]] == [["100", "–", "–", "–"], ["–", "–", "–", "100"]]


def test_nothing_at_all_still_makes_a_page(tmp_path):
    html = write_report(tmp_path, made_comparison([made_method("ar", "AR", [])], settings={}, versions={})).read_text("utf-8")
    assert Page(html).count("svg") == 0
    assert "AR" in write_report(tmp_path, made_comparison([made_method("ar", "AR", [])])).read_text("utf-8")
    assert write_report(tmp_path, made_comparison([])).exists()
    assert "Sample answers" not in html


# --- the table for a spreadsheet --------------------------------------------------------------------------------------------


def test_csv(tmp_path):
    write_report(tmp_path, small())
    raw = (tmp_path / "report.csv").read_bytes()
    assert b"\r" not in raw
    rows = list(csv.DictReader(raw.decode("utf-8").splitlines()))
    assert ",".join(rows[0]) == "method,group,direction,n,metric,mean,low,high,tokens,seconds,steps"
    keys = [(row["method"], row["group"], row["direction"]) for row in rows]
    assert keys == [(m, g, d) for m in ("base", "demask") for g in ("all", "name_first", "description_first") for d in DIRECTIONS]
    line = dict(zip(keys, rows, strict=True))["demask", "all", "backward"]
    assert (line["n"], line["metric"], line["tokens"], line["seconds"], line["steps"]) == ("2", "contains", "12345", "9.96", "10")
    assert [float(line[name]) for name in ("mean", "low", "high")] == [0.5, 0.0, 1.0]


def test_csv_keeps_a_group_with_commas_quotes_and_line_ends(tmp_path):
    group = 'a,"b"\nc'
    write_report(tmp_path, made_comparison([made_method("ar", "AR", [answered("q", ["a"], "a", group=group)])]))
    with open(tmp_path / "report.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert [row[1] for row in rows[1:]] == ["all", group]


# --- the pictures -----------------------------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def words(svg):
    return ["".join(text.itertext()) for text in ET.fromstring(svg).iter(f"{SVG}text")]


def filled(svg, colour):
    """Widths of the rectangles filled with a colour, in the picture's units."""
    paths = [path for path in ET.fromstring(svg).iter(f"{SVG}path") if path.get("style", "") == f"fill: {colour.lower()}"]
    numbers = [[float(number) for number in re.findall(r"[ML] (\S+) ", path.get("d"))] for path in paths]
    return [max(row) - min(row) for row in numbers if row]


def test_bars_are_as_long_as_the_scores():
    svg = plots.bars(small())
    assert {"forward", "backward", "demask", "base model (before)", "accuracy (contains) with 95% interval"} <= set(words(svg))
    assert words(svg).count("50%") == 2  # the axis, and demask's backward questions
    forward, backward = (max(filled(svg, plots.DIRECTION_COLOURS[direction])) for direction in DIRECTIONS)
    assert backward == pytest.approx(forward / 2, rel=1e-4)


def test_curves_have_a_panel_a_direction_and_a_line_a_measured_method():
    svg = plots.curves(small())
    assert {"forward", "backward", "demask"} <= set(words(svg))
    assert "base model (before)" not in words(svg)  # it has no curve
    one_way = small()
    for point in one_way["methods"][1]["curve"]:
        del point["backward"]
    assert "backward" not in words(plots.curves(one_way))


def test_labels_are_text_as_given():
    comparison = small()
    comparison["methods"][1]["label"] = "_$x_1$ <b>\x00'DejaVu Sans' id=\""
    for svg in (plots.bars(comparison), plots.curves(comparison)):
        assert "_$x_1$ <b> 'DejaVu Sans' id=\"" in " ".join(words(svg))


def test_pictures_stand_alone_and_are_empty_without_data():
    for svg in (plots.bars(small()), plots.curves(small())):
        assert svg.startswith("<svg ")
        assert ET.fromstring(svg).tag == f"{SVG}svg"
    assert plots.bars(made_comparison([])) == plots.curves(made_comparison([])) == ""

"""The quickstart end to end, in as few steps as it takes to see every part of it, and what it says of given numbers."""

import csv
import json
from pathlib import Path

import pytest

from demask import comparison
from demask.cli import main
from demask.comparison import BASES, LABELS, METHODS, ROWS, QuickstartSettings, compare, index, verdict
from demask.quickstart import quickstart
from demask.stages.report import report
from demask.types import InputError

FEW = QuickstartSettings(seed=7, steps=2, batch_size=4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("quickstart")
    documents, questions = folder / "documents.jsonl", folder / "questions.jsonl"
    documents.write_text("".join(json.dumps({"id": str(i), "text": f"Ann{i} is the keeper of bees{i}."}) + "\n" for i in range(6)))
    asked = [
        {
            "question": f"Who is {cue}?",
            "answer": answer,
            "direction": direction,
            "document": str(i),
            "split": "validation" if i < 2 else "test",
        }
        for i in range(6)
        for cue, answer, direction in ((f"Ann{i}", f"the keeper of bees{i}", "forward"), (f"the keeper of bees{i}", f"Ann{i}", "backward"))
    ]
    questions.write_text("".join(json.dumps(q) + "\n" for q in asked))
    out = folder / "out"
    return out, quickstart(out, FEW, documents=[str(documents)], questions=str(questions))


def test_everything_is_written(finished: tuple[Path, dict]) -> None:
    out, result = finished
    assert [m["name"] for m in result["methods"]] == list(ROWS)
    for method in result["methods"]:
        assert method["results"]["n"] == 8, "the four test documents, in both directions"
        assert set(method) == {"name", "label", "steps", "tokens", "seconds", "results"}
        assert json.loads((out / method["name"] / "run.json").read_text())["status"] == "finished"
        assert len((out / method["name"] / "answers.jsonl").read_text().splitlines()) == 8
    assert [m["steps"] for m in result["methods"]] == [0, 2, 2, 2, 0, 4]
    page = (out / "report.html").read_text()
    assert result["verdict"].replace("'", "&#39;") in page
    assert not (out / "comparison.json").exists()


def test_the_folder_is_read_as_a_study(finished: tuple[Path, dict]) -> None:
    out, result = finished
    study = json.loads((out / "study.json").read_text())
    assert study["title"] == "demask quickstart"
    assert study["verdict"] == result["verdict"]
    assert study["about"] == result["caption"]
    assert study["metric"] == "contains"
    assert study["cells"] == [{"axes": {"data": "facts", "method": name}, "folder": name} for name in ROWS]
    assert study["settings"]["all methods"]["steps"] == 2
    assert study["settings"]["ar"] == {"objective": "autoregressive"}
    with open(out / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows if row["group"] == "all" and row["direction"] == "forward"] == [LABELS[name] for name in ROWS]
    assert {row["data"] for row in rows} == {"the documents given"}
    for row in rows:
        method = next(m for m in result["methods"] if m["label"] == row["label"])
        cell = method["results"]["by_direction"][row["direction"]]["contains"]
        assert [float(row[name]) for name in ("mean", "low", "high")] == [round(cell[name], 4) for name in ("mean", "low", "high")]
        assert (float(row["steps"]), float(row["tokens"])) == (method["steps"], method["tokens"])
    before = (out / "report.html").read_bytes()
    assert report([out]).read_bytes() == before, "demask report makes the same page"


def test_what_a_report_is_told() -> None:
    def leaf(mean: float) -> dict:
        return {"n": 1, comparison.METRIC: {"mean": mean, "low": mean, "high": mean}}

    results = {"by_direction": {"forward": leaf(0.5), "backward": leaf(0.25)}}
    records = {name: {"results": results} for name in BASES} | {
        name: {"results": results, "plan": {"steps": 2, "tokens": 30}, "cpu_seconds": 1.5} for name in METHODS
    }
    told = compare(records, FEW, 60, own_data=False)
    assert [(m["name"], m["steps"], m["tokens"], m["seconds"]) for m in told["methods"]] == [
        (name, *((0, 0, 0.0) if name in BASES else (2, 30, 1.5))) for name in ROWS
    ]
    assert told["verdict"].startswith("No clear gain here: plain AR fine-tuning answers 50% of the forward and 25% of the backward")
    assert "60 statements about new people (generated world, seed 7), one wording each" in told["caption"]
    assert "the documents given" in compare(records, FEW, 60, own_data=True)["caption"]
    listed = index(told, FEW, own_data=False)
    assert listed["labels"]["data"] == {"facts": "new people, one statement about each"}
    assert listed["labels"]["method"]["ar"] == "plain AR fine-tuning"


def test_methods_differ_only_in_the_objective(finished: tuple[Path, dict]) -> None:
    out, _ = finished
    configs = {name: json.loads((out / name / "run.json").read_text())["config"] for name in METHODS}
    different = {"output_dir", "logging_dir", "run_name", "learning_rate", "max_steps"}.union(
        *(method.settings for method in METHODS.values())
    )
    for part in ("settings", "training"):
        alike = [{k: v for k, v in config[part].items() if k not in different} for config in configs.values()]
        assert alike[0] == alike[1] == alike[2] == alike[3]
    assert [configs[name]["settings"]["objective"] for name in configs] == ["autoregressive", "demask", "demask", "diffusion"]
    assert [configs[name]["settings"]["corruption"] for name in configs] == ["mask", "mask", "random", "mask"]
    assert configs["demask"]["settings"]["select_on"] == "last"


def test_the_same_call_keeps_what_is_finished(finished: tuple[Path, dict]) -> None:
    out, result = finished
    before = (out / "demask" / "run.json").stat().st_mtime_ns
    again = quickstart(out, FEW, documents=[str(out.parent / "documents.jsonl")], questions=str(out.parent / "questions.jsonl"))
    assert again["methods"] == result["methods"]
    assert (out / "demask" / "run.json").stat().st_mtime_ns == before


def test_changed_documents_are_not_mixed_with_old_results(finished: tuple[Path, dict], tmp_path: Path) -> None:
    out, _ = finished
    changed = tmp_path / "documents.jsonl"
    changed.write_text((out.parent / "documents.jsonl").read_text().replace("Ann0", "Bob0"))
    with pytest.raises(InputError, match="holds a quickstart with other settings"):
        quickstart(out, FEW, documents=[str(changed)], questions=str(out.parent / "questions.jsonl"))


def test_another_quickstart_in_the_same_folder_is_refused(finished: tuple[Path, dict], capsys: pytest.CaptureFixture) -> None:
    out, _ = finished
    with pytest.raises(SystemExit, match="2"):
        main(["quickstart", "--output_dir", str(out), "--seed", "8"])
    assert "holds a quickstart with other settings" in capsys.readouterr().err


def test_questions_without_documents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="questions: --questions go with the --documents they are about"):
        quickstart(tmp_path / "out", FEW, questions="q.jsonl")
    assert not (tmp_path / "out").exists()


def test_documents_of_which_nothing_can_be_asked_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("it rains.")
    with pytest.raises(InputError, match="questions: none could be made of these documents, which hold no names, dates or numbers to ask"):
        quickstart(tmp_path / "out", FEW, documents=[str(tmp_path / "notes.txt")])
    assert not (tmp_path / "out").exists()


def methods(**scores: tuple[float, float]) -> dict:
    """Methods by (forward, backward) accuracy; masked diffusion always has the same."""

    def cell(mean: float) -> dict:
        return {comparison.METRIC: {"mean": mean, "low": mean, "high": mean}}

    scores["diffusion"] = (0.92, 0.91)
    return {name: {"results": {"by_direction": {"forward": cell(f), "backward": cell(b)}}} for name, (f, b) in scores.items()}


def test_the_verdict_says_what_the_numbers_say() -> None:
    assert verdict(methods(ar=(0.8, 0.0), demask=(0.95, 0.9))) == (
        "The reversal curse and its cure: plain AR fine-tuning answers 80% of the forward and 0% of the backward questions, "
        "demask 95% and 90% in as many steps; masked diffusion, on its own base, 92% and 91% in twice as many."
    )
    assert "demask 89% and 85% in as many steps, 7 points fewer forward; " in verdict(methods(ar=(0.96, 0.0), demask=(0.89, 0.85)))
    assert verdict(methods(ar=(0.96, 0.0), demask=(0.89, 0.85))).startswith("The reversal curse and its cure: ")
    assert verdict(methods(ar=(0.8, 0.4), demask=(0.95, 0.9))).startswith("Masked fine-tuning helps: ")
    assert verdict(methods(ar=(0.8, 0.0), demask=(0.5, 0.9))).startswith("No clear gain here: ")
    assert verdict(methods(ar=(0.8, 0.1), demask=(0.9, 0.2))).startswith("No clear gain here: ")

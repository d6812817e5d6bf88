"""Results as tables: means over runs, gaps, retention, costs and first sights of an accuracy, against numbers derived by hand."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from demask.stages.results import Configuration, collect
from demask.stages.table import _cost, accuracy, curve, summarise_runs, write_summary, write_table
from tests.results import PLAN, answered, pairs, write_run, write_study

Z2 = 1.959963984540054**2  # of a 95% interval; Wilson's for 0 of n is (0, Z2 / (n + Z2)), for n of n (n / (n + Z2), 1)
ONE = {"data": "d", "method": "m"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(*runs: dict[str, Any]) -> Configuration:
    """A configuration of runs that differ in their seed, each by the arguments of `write_run`."""
    folder = write_study(Path("s"), [(ONE | {"seed": i}, one) for i, one in enumerate(runs)])
    (configuration,) = collect([folder]).configurations
    return configuration


def summary(*runs: dict[str, Any]) -> dict[str, Any]:
    configuration = made(*runs)
    scores = accuracy([run.answers() for run in configuration.runs], "contains")
    return summarise_runs(configuration, "contains", scores)


def with_right(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines as they are read from a run: what has every word of its answer is right."""
    return [line | {"scores": line["scores"] | {"right": float(line["scores"]["rouge1_recall"] == 1)}} for line in lines]


def rows(path: str) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- accuracy -----------------------------------------------------------------------------------------------------------------


def test_every_run_weighs_the_same() -> None:
    """Two runs of 2 and 4 questions, half and all of them right: 3/4, and not 5/6."""
    found = accuracy([pairs([1, 0], []), pairs([1, 1, 1, 1], [])], "contains")
    assert list(found) == ["all"]
    assert (found["all"]["forward"], found["all"]["forward_n"]) == (0.75, 6)
    assert not [name for name in found["all"] if name.startswith(("backward", "gap"))]


def test_the_interval_is_wilson_s_where_all_answers_agree() -> None:
    """Two runs of three documents: six clusters. Of the gap of 1 only the lower end is open, by two equal distances."""
    found = accuracy([pairs([1, 1, 1], [0, 0, 0])] * 2, "contains")["all"]
    end = Z2 / (6 + Z2)
    assert found == {
        **{"forward": 1, "forward_low": pytest.approx(1 - end), "forward_high": 1, "forward_n": 6},
        **{"backward": 0, "backward_low": 0, "backward_high": pytest.approx(end), "backward_n": 6},
        **{"gap": 1, "gap_low": pytest.approx(1 - end * 2**0.5), "gap_high": 1},
    }


def test_a_gap_may_be_negative() -> None:
    """One document of one: Wilson's ends are 1 / (1 + Z2) and Z2 / (1 + Z2)."""
    found = accuracy([pairs([0], [1])], "contains")["all"]
    end = Z2 / (1 + Z2)
    assert [found["gap"], found["gap_low"], found["gap_high"]] == [-1, -1, pytest.approx(-1 + end * 2**0.5)]


def test_documents_are_drawn_not_questions() -> None:
    """Two documents, one right in all its questions and one in none: every share of the two is as good, from 0 to 1."""
    lines = [answered(f"{i}?", "x", float(i < 3), document="a" if i < 3 else "b") for i in range(6)]
    found = accuracy([lines], "contains")["all"]
    assert [found[f"forward{end}"] for end in ("", "_low", "_high", "_n")] == [0.5, 0, 1, 6]


def test_groups_and_the_metric() -> None:
    lines = [*pairs([1, 1], [0, 0], "g"), *pairs([0], [], "h", "e"), answered("alone?", "Mira Tolland", "Mira")]
    found = accuracy([lines], "contains")
    assert list(found) == ["all", "g", "h"]
    assert [(found[g].get("forward"), found[g].get("forward_n")) for g in found] == [(0.5, 4), (1, 2), (0, 1)]
    assert [found[g].get("gap") for g in found] == [0.5, 1, None]
    assert accuracy([lines], "rouge1_recall")["all"]["forward"] == (1 + 1 + 0 + 0.5) / 4


def test_nothing_asked() -> None:
    assert accuracy([[], []], "contains") == {"all": {}}
    assert accuracy([[], pairs([1], [])], "contains")["all"]["forward_n"] == 1


def test_before_and_what_the_base_could_not_answer() -> None:
    """Of four forward questions the base knew two, and one of these was lost: of the other two one was learnt."""
    before, after = with_right(pairs([1, 1, 0, 0], [0, 0])), with_right(pairs([1, 0, 1, 0], [1, 0]))
    found = accuracy([after], "contains", [before])["all"]
    assert (found["forward_before"], found["forward"]) == (0.5, 0.5)
    assert (found["forward_new"], found["forward_new_n"]) == (0.5, 2)
    assert (found["backward_before"], found["backward"], found["backward_new"], found["backward_new_n"]) == (0, 0.5, 0.5, 2)
    assert accuracy([after], "contains")["all"] == {name: v for name, v in found.items() if "_before" not in name and "_new" not in name}


def test_the_base_knew_only_what_it_answered_right() -> None:
    """It names both people: that contains the answer, and is not right."""
    kind = {"direction": "backward", "group": "g"}
    both = [answered(f"{p}?", p, "Ann and Bo", document=p, **kind) for p in ("Ann", "Bo")]
    after = [answered(f"{p}?", p, p, document=p, **kind) for p in ("Ann", "Bo")]
    (configuration,) = collect([write_run(Path("a"), after, before=both)]).configurations
    (run,) = configuration.runs
    found = accuracy([run.answers()], "contains", [run.before()])["all"]
    assert (found["backward_before"], found["backward"], found["backward_new"], found["backward_new_n"]) == (1, 1, 1, 2)


def test_a_base_that_knew_everything_leaves_nothing_new() -> None:
    lines = with_right(pairs([1], [1]))
    found = accuracy([lines], "contains", [lines])["all"]
    assert found["forward_before"] == 1
    assert not [name for name in found if "_new" in name]


def test_before_is_told_where_all_runs_have_it() -> None:
    lines = with_right(pairs([1], [1]))
    assert accuracy([lines, lines], "contains", [lines, []]) == accuracy([lines, lines], "contains")


# --- a configuration's row ----------------------------------------------------------------------------------------------------


def known(*scores: float) -> list[dict[str, Any]]:
    return [answered(f"old {i}?", "x", right, document=f"old{i}") for i, right in enumerate(scores)]


def measured(before: float, after: float, nll: tuple[float, float] = (2.0, 2.5)) -> dict[str, Any]:
    return {
        when: {"questions": {"n": 4, "contains": {"mean": mean}}, "text": {"tokens": 9, "nll": loss}}
        for when, mean, loss in (("before", before, nll[0]), ("after", after, nll[1]))
    }


def test_the_row_of_two_runs() -> None:
    points = [
        {"step": 0, "forward_contains": 0.0, "backward_contains": 0.0},
        {"step": 5, "forward_contains": 0.4, "backward_contains": 0.1},
        {"step": 10, "forward_contains": 0.9, "backward_contains": 0.3},
    ]
    faster = [points[0], {"step": 5, "forward_contains": 0.6, "backward_contains": 0.3}, points[2]]
    first = {"answers": pairs([1, 1], [0, 0]), "known": known(1, 1, 1, 1), "curve": points, "retention": measured(1, 1)}
    second = {"answers": pairs([1, 1], [0, 0]), "known": known(1, 1), "curve": faster, "retention": measured(0.5, 1, (3.0, 3.25))}
    second |= {"plan": PLAN | {"tokens": 5000, "flops": 4e12}, "cpu_seconds": 50.0}
    found = summary(first, second)
    end = Z2 / (4 + Z2)
    accuracies = {
        **{"forward": 1, "forward_low": pytest.approx(1 - end), "forward_high": 1, "forward_n": 4},
        **{"backward": 0, "backward_low": 0, "backward_high": pytest.approx(end), "backward_n": 4},
        **{"gap": 1, "gap_low": pytest.approx(1 - end * 2**0.5), "gap_high": 1},
    }
    kept = {"retained": 1, "retained_low": pytest.approx(6 / (6 + Z2)), "retained_high": 1, "retained_n": 6}
    kept |= {"retained_before": 0.75, "text_nll_before": 2.5, "text_nll": 2.875}
    cost = {"steps": 10, "tokens": 4500, "target_tokens": 1500, "flops": 3e12, "cpu_seconds": 45}
    # Half of the steps are 1e12 and 2e12 FLOPs; there the mean curve is at 0.5 forward and 0.2 backward, at the end at 0.9 and 0.3.
    reached = {"forward_flops_to_0.5": 1.5e12, "forward_flops_to_0.8": 3e12}
    assert found == {**ONE, "runs": 2, **accuracies, **kept, **cost, **reached, "selected_on": "last"}


def test_without_the_answers_the_record_says_what_was_kept() -> None:
    found = summary({"retention": measured(0.8, 0.7)})  # of an earlier version, whose records have no "right"
    assert {name: found[name] for name in found if "retained" in name} == {"retained": 0.7, "retained_before": 0.8}


def test_what_is_kept_of_what_the_base_answered_right() -> None:
    """Of 4 that were right 3 are kept, and of 2 both: the mean of the runs is 7/8, of 6 questions."""
    first = {"known_before": known(1, 1, 1, 1, 0), "known": known(1, 1, 1, 0.5, 1)}
    second = {"known_before": known(1, 1, 0, 0, 0.5), "known": known(1, 1, 1, 0, 1)}
    found = summary(first, second)
    assert (found["kept"], found["kept_n"]) == (7 / 8, 6)
    assert 0.25 < found["kept_low"] < 7 / 8 < found["kept_high"] == 1


@pytest.mark.parametrize("before", [known(), known(0, 0.5)], ids=["the base was not asked", "it knew nothing"])
def test_nothing_can_be_kept(before: list[dict[str, Any]]) -> None:
    assert "kept" not in summary({"known_before": before, "known": known(1, 1)})


def test_an_accuracy_is_reached_however_its_mean_is_rounded() -> None:
    """0.7, 0.8 and 0.9 add up to a little less than 2.4."""
    found = summary(*({"curve": [{"step": 10, "forward_contains": score}]} for score in (0.7, 0.8, 0.9)))
    assert found["forward_flops_to_0.8"] == 2e12


def test_an_untrained_run_costs_nothing() -> None:
    found = summary({"answers": pairs([1], []), "plan": None, "retention": {"after": {"text": {"nll": 2.0}}}})
    assert [found[name] for name in ("steps", "tokens", "target_tokens", "flops", "cpu_seconds")] == [0] * 5
    assert found["text_nll"] == 2
    assert found["selected_on"] == ""
    assert "text_nll_before" not in found


def test_what_not_all_runs_measured_has_no_mean() -> None:
    found = summary({"retention": measured(0.8, 0.7)}, {})
    assert not [name for name in found if name.startswith(("retained", "text"))]


# --- curves -------------------------------------------------------------------------------------------------------------------


def test_a_curve_is_the_mean_at_the_steps_that_all_runs_have() -> None:
    def points(*scores: tuple[int, float]) -> list[dict[str, float]]:
        return [{"step": step, "forward_contains": score, "forward_rouge1_recall": 1.0} for step, score in scores]

    configuration = made(
        {"curve": points((0, 0.0), (5, 0.5), (10, 1.0))},
        {"curve": [*points((5, 0.25), (8, 0.5)), *points((10, 0.5))], "plan": PLAN | {"flops": 1e12}},
    )
    assert curve(configuration, "contains") == {
        "forward": [{"step": 5, "flops": 0.75e12, "score": 0.375}, {"step": 10, "flops": 1.5e12, "score": 0.75}]
    }
    assert [point["score"] for point in curve(configuration, "rouge1_recall")["forward"]] == [1, 1]
    assert curve(configuration, "token_f1") == {}, "not measured during training"


def test_runs_without_a_common_curve() -> None:
    point = {"step": 5, "forward_contains": 0.5}
    assert curve(made({"curve": [point]}, {}), "contains") == {}
    assert curve(made({"curve": [point]}, {"curve": [{"step": 5, "backward_contains": 0.5}]}), "contains") == {}
    assert curve(made({"curve": [point], "plan": {"flops": 1e12}}), "contains") == {}, "of an unknown number of steps"


# --- as files -----------------------------------------------------------------------------------------------------------------


def test_write_table() -> None:
    answers = [*pairs([1, 1], [0.5, 0.5], "g"), answered("alone?", "x", 1.0)]
    point = [{"step": 5, "forward_contains": 0.5}]
    share = {"n": 3, "mean": 2 / 3, "low": 0.25, "high": 1.0}
    trained = {"answers": answers, "curve": point, "retention": measured(0.75, 0.7) | {"kept": share}, "settings": {"select_on": "test"}}
    asked = {"answers": pairs([], [0]), "plan": None, "retention": {"after": measured(0.5, 0.5)["after"]}}
    folder = write_study(Path("s"), [(ONE | {"seed": 1}, trained), (ONE | {"context": "bm25"}, asked), (ONE, {})])
    write_table(Path("t/table.csv"), [run for c in collect([folder]).configurations for run in c.runs])
    assert b"\r" not in Path("t/table.csv").read_bytes()
    found = rows("t/table.csv")
    scores = [f"{metric}_{part}" for metric in ("rouge1_recall", "exact_match", "contains", "token_f1") for part in ("mean", "low", "high")]
    before = [f"{metric}_{when}" for when in ("before", "new") for metric in ("rouge1_recall", "exact_match", "contains", "token_f1")]
    before.append("n_new")
    kept = ["retained_before", "retained", "kept", "kept_low", "kept_high", "kept_n", "text_nll_before", "text_nll"]
    costs = ["steps", "tokens", "target_tokens", "flops", "cpu_seconds"]
    first = ["cell", "data", "method", "seed", "context", "group", "direction", "n"]
    assert list(found[0]) == [*first, *scores, *before, *kept, *costs, "selected_on"]
    assert {row[name] for row in found for name in before} == {""}, "the base was not asked"
    assert [(row["cell"], row["group"], row["direction"], row["n"]) for row in found] == [
        ("c0", "all", "forward", "3"),
        ("c0", "all", "backward", "2"),
        ("c0", "g", "forward", "2"),
        ("c0", "g", "backward", "2"),
        ("c1", "all", "backward", "1"),  # and nothing of the third, which was asked nothing
    ]
    forward, backward, untrained = found[0], found[1], found[4]
    assert [float(forward[f"contains_{part}"]) for part in ("mean", "low", "high")] == [1, round(3 / (3 + Z2), 4), 1]
    # Wilson's interval of a half of two documents is z / sqrt(2 + z^2) wide.
    width = (Z2 / (2 + Z2)) ** 0.5
    assert [float(backward[f"token_f1_{part}"]) for part in ("mean", "low", "high")] == [
        0.5,
        pytest.approx(0.5 - width / 2, abs=1e-4),
        pytest.approx(0.5 + width / 2, abs=1e-4),
    ]
    assert [forward[name] for name in (*kept, *costs)] == [
        "0.75",
        "0.7",
        "0.6667",
        "0.25",
        "1.0",
        "3",
        "2.0",
        "2.5",
        "10",
        "4000",
        "1500",
        "2000000000000.0",
        "40.0",
    ]
    assert [untrained[name] for name in (*kept, *costs)] == ["", "0.5", "", "", "", "", "", "2.5", "0", "0", "0", "0", "0"]
    assert [forward["seed"], forward["context"], untrained["seed"], untrained["context"]] == ["1", "", "", "bm25"]
    assert [forward["selected_on"], untrained["selected_on"]] == ["test", ""]


def test_write_table_before_and_after() -> None:
    write_run(Path("a"), pairs([1, 1, 1], [0.5], "g"), before=pairs([1, 0, 0.5], [0], "g"))
    write_table(Path("table.csv"), [run for c in collect(["a"]).configurations for run in c.runs])
    forward, backward, *of_group = rows("table.csv")
    names = ("token_f1_before", "token_f1_mean", "token_f1_new", "n_new")
    assert [[float(row[name]) for name in names] for row in (forward, backward)] == [[0.5, 1, 1, 2], [0, 0.5, 0.5, 1]]
    assert [[row[name] for name in names] for row in of_group] == [[row[name] for name in names] for row in (forward, backward)]


def test_a_finished_run_without_a_record_of_results() -> None:
    write_run(Path("a"))
    write_table(Path("table.csv"), [run for c in collect(["a"]).configurations for run in c.runs])
    assert rows("table.csv") == []


def test_write_summary_has_the_columns_that_occur() -> None:
    write_summary(Path("summary.csv"), [{"method": 'a,"b"\n', "forward": 2 / 3, "runs": 2}, {"method": "c", "retained": 1.0}])
    assert rows("summary.csv") == [
        {"method": 'a,"b"\n', "forward": "0.6667", "runs": "2", "retained": ""},
        {"method": "c", "forward": "", "runs": "", "retained": "1.0"},
    ]
    write_summary(Path("summary.csv"), [])
    assert rows("summary.csv") == []


def test_a_run_that_ended_early_costs_its_share():
    plan = {"steps": 40, "tokens": 1000, "target_tokens": 400, "flops": 2e12}
    assert _cost({"plan": plan, "cpu_seconds": 7}) == plan | {"cpu_seconds": 7}
    record = {"plan": plan, "cpu_seconds": 7, "trained_steps": 10}
    assert _cost(record) == {"steps": 10, "tokens": 250, "target_tokens": 100, "flops": 5e11, "cpu_seconds": 7}

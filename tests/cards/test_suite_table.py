"""Tables of a suite's results."""

import csv

from hf_vitfm.cards.suite_table import TableRow, suite_csv, suite_markdown


ROWS = [TableRow("a", "Set A", "one"), TableRow("b", "Set_B", "one"), TableRow("c", "Set C", "two")]


def result(dataset, model, task="zero_shot", score=None, **more):
    state = {"status": "done", "score": score, "metric": "accuracy"} if score is not None else {"status": "skipped"}
    return {
        "suite": "s",
        "dataset": dataset,
        "model": model,
        "task": task,
        "tested": True,
        "notes": [],
        **state,
        **more,
    }


def lines(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def test_rows_are_in_the_order_of_the_paper_and_means_over_what_all_models_have():
    results = [
        result("c", "one", score=0.5, metric="map11"),
        result("a", "one", score=0.25),
        result("b", "one", score=0.75),
        result("a", "two", score=0.5),
        result("b", "two", score=1.0),
    ]
    text = suite_markdown("S", ROWS, results, {})
    assert lines(text, "| Set") == [
        "| Set A | accuracy | 25.0 | 50.0 |",
        "| Set_B | accuracy | 75.0 | 100.0 |",
        "| Set C | 11-point mAP | 50.0 |  |",
    ]
    assert lines(text, "| **") == [
        "| **mean of one, 2 of 2** |  | 50.0 | 75.0 |",
        "| **mean, 2 of 3** |  | 50.0 | 75.0 |",
    ]


def test_the_mean_is_the_score_only_over_all_data_sets():
    results = [result(name, "m", score=score) for name, score in (("a", 0.3), ("b", 0.6), ("c", 0.9))]
    assert "| **score, 3 of 3** |  | 60.0 |" in suite_markdown("S", ROWS, results, {}, mean_is_score=True)
    assert "| **mean, 2 of 3** |  | 45.0 |" in suite_markdown("S", ROWS, results[:2], {}, mean_is_score=True)


def test_few_shot_has_a_mean_of_its_own():
    rows = [TableRow("a", "A", few_shot=True), TableRow("b", "B"), TableRow("c", "C", few_shot=True)]
    results = [result(name, "m", "few_shot", score) for name, score in (("a", 0.3), ("b", 0.6), ("c", 0.5))]
    assert lines(suite_markdown("S", rows, results, {}), "| **") == [
        "| **mean of those with 16 images a class, 2 of 2** |  | 40.0 |",
        "| **mean, 3 of 3** |  | 46.7 |",
    ]


def test_what_is_untested_skipped_or_missing_is_said():
    results = [
        result("a", "m", score=0.5, tested=False, notes=["3 classes, the paper 37"]),
        result("b", "m", reason="there are no training images"),
        result("c", "m", reason="there are no training images"),
    ]
    text = suite_markdown("S", ROWS, results, {"d": "not given | at all"})
    assert "| Set A (untested) | accuracy | 50.0 |" in text
    assert lines(text, "- m:") == ["- m: skipped, there are no training images (b, c)"]
    assert "- Set A: 3 classes, the paper 37" in text
    assert r"| d | not given \| at all |" in text


def test_the_source_of_prompts_is_in_the_notes_of_every_table():
    prompts = {"source": "the data set's label names", "templates": 1}
    text = suite_markdown("S", ROWS, [result("a", "m", score=0.5, prompts=prompts)], {})
    assert "- Set A: prompts: the data set's label names; templates: 1" in text


def test_csv_can_be_read_back():
    results = [
        result("a", "m", score=0.5, prompts={"source": 'names, "and" texts', "templates": 2}),
        result("b", "m", reason="no, not\nat all"),
    ]
    rows = list(csv.DictReader(suite_csv(results).splitlines(keepends=True)))
    assert [(row["dataset"], row["status"], row["score"]) for row in rows] == [
        ("a", "done", "0.5"),
        ("b", "skipped", ""),
    ]
    assert rows[0]["prompts"] == 'names, "and" texts' and rows[1]["reason"] == "no, not\nat all"

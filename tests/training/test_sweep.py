"""The pieces of a sweep: its arguments, the choice of the learning rate, and finding a run again after a kill."""

import dataclasses

import pytest

from hf_vitfm.cards.grid_figure import draw_grid
from hf_vitfm.training import sweep
from hf_vitfm.training.sweep import SweepArguments, SweepRun, choose_learning_rate
from tests.training.runs import make_args, make_model, make_rows


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({0.001: 0.5, 0.01: 0.7, 0.03: 0.6}, 0.01),
        ({0.03: 0.7, 0.01: 0.7, 0.003: 0.7}, 0.003),
        ({0.001: 0.1, 0.03: None}, 0.001),
        ({0.001: None, 0.03: 0.0}, 0.03),
    ],
)
def test_the_best_rate_is_chosen_and_of_equal_ones_the_smallest(scores, expected):
    assert choose_learning_rate(scores) == expected


def test_a_grid_that_only_diverged_has_no_best_rate():
    with pytest.raises(ValueError, match=r"every learning rate of 0.1, 0.3. Add smaller ones"):
        choose_learning_rate({0.1: None, 0.3: None})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "`learning_rates` must be one or more numbers"),
        ({"learning_rates": ["1e-3"]}, "`learning_rates` must be one or more numbers"),
        ({"learning_rates": [0.1, 0.0]}, "above 0"),
        ({"learning_rates": [0.1, 0.1]}, "must differ"),
        ({"learning_rates": [0.1], "seeds": [-1]}, "`seeds` must be"),
        ({"learning_rates": [0.1], "grid_holdout": 0}, "`grid_holdout` must be"),
    ],
)
def test_impossible_sweeps_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SweepArguments(**options)


def make_run(directory) -> SweepRun:
    return SweepRun(directory, "train.py", ("a.yaml", "--seed", "0"), {"max_steps": 3})


def test_a_run_is_found_again_in_the_state_in_which_it_was_left(tmp_path):
    from hf_vitfm import ImageClassificationTrainer

    run = make_run(tmp_path / "run")
    assert run.find_state() == sweep.NEW
    run.mark_start()
    assert run.find_state() == sweep.NEW
    args = make_args(run.directory, max_steps=1, save_strategy="steps", save_steps=1)
    ImageClassificationTrainer(model=make_model(), args=args, train_dataset=make_rows()).train()
    assert run.find_state() == sweep.INTERRUPTED
    (run.directory / "all_results.json").write_text('{"eval_top1": 1.0}')
    assert run.find_state() == sweep.INTERRUPTED
    (run.directory / "run.json").write_text('{"dataset": {}}')
    assert run.find_state() == sweep.FINISHED
    for name in sweep.RESULT_FILES:  # cut short by a crash
        content = (run.directory / name).read_text()
        (run.directory / name).write_text(content[:-3])
        assert run.find_state() == sweep.INTERRUPTED
        (run.directory / name).write_text(content)
    (run.directory / "run.json").write_text("")
    run.mark_start()
    assert (run.directory / "all_results.json").exists() and not (run.directory / "run.json").exists()
    for length in (0, 20):
        (run.directory / sweep.START_FILE).write_text(run._start()[:length])
        assert run.find_state() == sweep.INTERRUPTED


def test_a_folder_of_another_run_is_foreign(tmp_path):
    run = make_run(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert run.find_state() == sweep.FOREIGN
    run.mark_start()
    for change in ({"argv": ("a.yaml", "--seed", "1")}, {"settings": {"max_steps": 4}}):
        assert dataclasses.replace(run, **change).find_state() == sweep.FOREIGN
    assert run.find_state() == sweep.NEW


def test_the_mark_of_a_run_holds_no_private_path(tmp_path):
    run = SweepRun(
        tmp_path / "run", "train.py", ("a.yaml", "--dataset", str(tmp_path / "faces")), {"x": str(tmp_path)}
    )
    run.mark_start()
    assert str(tmp_path) not in (run.directory / sweep.START_FILE).read_text()


def test_the_grid_is_drawn_with_the_rate_that_was_chosen(tmp_path):
    path = draw_grid({0.001: 0.5, 0.01: 0.75, 0.3: None}, 0.01, tmp_path / "grid.png")
    assert path.stat().st_size > 5_000
    with pytest.raises(ValueError, match="`chosen` must be a learning rate with a score"):
        draw_grid({0.001: 0.5, 0.3: None}, 0.3, tmp_path / "grid.png")


@pytest.mark.parametrize("length", [0, 20])
def test_a_mark_that_was_cut_short_is_no_other_run(tmp_path, length):
    run = make_run(tmp_path / "run")
    run.mark_start()
    (run.directory / sweep.START_FILE).write_text(run._start()[:length])
    assert run.find_state() == sweep.NEW


def test_a_kill_while_the_mark_is_written_leaves_the_old_one_or_none(tmp_path, monkeypatch):
    def die(*args):
        raise KeyboardInterrupt

    run = make_run(tmp_path / "run")
    monkeypatch.setattr("os.replace", die)
    with pytest.raises(KeyboardInterrupt):
        run.mark_start()
    assert run.find_state() == sweep.NEW and any(run.directory.iterdir())
    monkeypatch.undo()
    run.mark_start()
    other = dataclasses.replace(run, argv=("b.yaml",))
    monkeypatch.setattr("os.replace", die)
    with pytest.raises(KeyboardInterrupt):
        other.mark_start()
    assert run.find_state() == sweep.NEW and other.find_state() == sweep.FOREIGN

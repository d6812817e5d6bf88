"""The time of a training: what is told from its first steps, by a clock that the test turns, and when it ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerControl
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from demask.stages import clock, estimate
from demask.stages.clock import Clock


class Run:
    """Plays a Trainer of `steps` steps, evaluated and saved every ten where it asks; `went` seconds pass before each event."""

    def __init__(self, monkeypatch: Any, steps: int = 100, asks: bool = True, saves: bool = False, **options: Any) -> None:
        self.now = 1000.0
        monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: self.now))
        self.said: list[str] = []
        self.record: dict[str, Any] = {}
        self.clock = Clock(say=self.said.append, note=lambda **changes: self.record.update(changes), **options)
        self.args = SimpleNamespace(world_size=1, device=torch.device("cpu"))
        self.args.eval_strategy = IntervalStrategy.STEPS if asks else IntervalStrategy.NO
        self.args.save_strategy = SaveStrategy.STEPS if saves else SaveStrategy.NO
        self.state = SimpleNamespace(global_step=0, max_steps=steps, eval_steps=10, save_steps=10)
        self.clock.on_train_begin(self.args, self.state, None)

    def step(self, went: float, evaluation: float = 30.0, saving: float = 6.0) -> TrainerControl:
        self.state.global_step += 1
        self.now += went
        control = TrainerControl()
        tenth = self.state.global_step % 10 == 0
        control.should_evaluate = tenth and self.args.eval_strategy == IntervalStrategy.STEPS
        control.should_save = tenth and self.args.save_strategy == SaveStrategy.STEPS
        control = self.clock.on_step_end(self.args, self.state, control)
        if control.should_evaluate:
            self.now += evaluation
            self.clock.on_evaluate(self.args, self.state, control)
        if control.should_save:
            self.now += saving
            self.clock.on_save(self.args, self.state, control)
        return control


def test_what_is_left_is_told_from_the_first_steps_and_again_with_the_evaluations(monkeypatch):
    run = Run(monkeypatch)
    for seconds in (20, 20, 10, 10, 10, 10):  # the first two are slow, and four are too few
        run.step(seconds)
    assert run.said == []
    run.step(12)  # the mean of five is 10.4; 93 steps are 967.2 seconds
    assert run.said == ["time: about 16 minutes of training left: 93 steps of 10 seconds, and the evaluations, which are yet to be timed"]
    assert run.record == {"timing": {"at_step": 7, "step_seconds": 10.4, "train_seconds": 92 + 967.2}}
    for seconds in (10, 10, 8):  # eight steps of 10 on average
        run.step(seconds)
    # 90 steps and nine evaluations of 30 seconds: 1,170 seconds; 120 in steps and 30 in an evaluation have gone.
    assert run.said[1:] == ["time: about 20 minutes of training left: 90 steps of 10 seconds, 9 evaluations of 30 seconds"]
    assert run.record["timing"] == {"at_step": 10, "step_seconds": 10.0, "train_seconds": 1320.0, "evaluation_seconds": 30.0}
    for _ in range(90):
        run.step(10)
    assert len(run.said) == 2


def test_steps_are_timed_for_half_a_minute_at_least(monkeypatch):
    run = Run(monkeypatch, steps=1000, asks=False)
    while run.now < 1029.5:
        run.step(0.5)
    assert run.said == []
    run.step(0.5)  # the 60th of half a second: 470 seconds are left
    assert run.said == ["time: about 8 minutes of training left: 940 steps of 500 ms"]


def test_evaluations_that_come_first_are_told_at_once(monkeypatch):
    run = Run(monkeypatch)
    for _ in range(30):
        run.step(0.5, evaluation=20)
    # The tenth step and its evaluation took 25 seconds; the half minute is over with the second: 80 steps, eight evaluations.
    assert run.said == ["time: about 3 minutes of training left: 80 steps of 500 ms, 8 evaluations of 20 seconds"]


def test_little_that_is_left_is_not_told(monkeypatch):
    run = Run(monkeypatch, steps=9, asks=False)
    for _ in range(9):
        run.step(10)
    assert run.said == []
    assert run.record["timing"]["train_seconds"] == 90


def test_a_checkpoint_takes_its_time_and_keeps_what_the_run_has_used(monkeypatch):
    run = Run(monkeypatch, asks=False, saves=True, used=500.0)
    for _ in range(10):
        run.step(2)
    assert run.record == {"train_seconds": 526.0}
    run.step(2)
    run.step(2)
    # 30 seconds after the resume: 88 steps of 2 are left, and nine checkpoints of 6.
    assert run.record["timing"] == {"at_step": 12, "step_seconds": 2.0, "train_seconds": 530.0 + 88 * 2 + 9 * 6}


def test_steps_that_will_not_fit_are_told(monkeypatch):
    run = Run(monkeypatch, max_minutes=10)
    for seconds in (20, 20, 10, 10, 10, 10, 10):
        run.step(seconds)
    # 90 of 600 seconds are used, and 93 steps would take 930: 51 of them fit.
    assert run.said[1:] == ["max_minutes: about 58 of the 100 steps fit in 10 minutes; --max_steps 58 plans the run for them"]
    for _ in range(3):
        run.step(10)
    # 150 used; 90 steps with their evaluations would take 1,170: 34 fit.
    assert run.said[3:] == ["max_minutes: about 44 of the 100 steps fit in 10 minutes; --max_steps 44 plans the run for them"]
    fits = Run(monkeypatch, max_minutes=18)
    for seconds in (20, 20, 10, 10, 10, 10, 10):
        fits.step(seconds)
    assert [line.split(":")[0] for line in fits.said] == ["time"]


@pytest.mark.parametrize(("asks", "saves"), [(True, True), (True, False), (False, True), (False, False)])
def test_the_run_ends_with_the_first_step_after_its_time(monkeypatch, asks, saves):
    run = Run(monkeypatch, asks=asks, saves=saves, max_minutes=2, used=90.0)
    for _ in range(2):
        control = run.step(14)
        assert not control.should_training_stop
    control = run.step(14)
    assert control.should_training_stop
    assert (control.should_evaluate, control.should_save) == (asks, saves)
    assert run.said == ["max_minutes: 2 minutes are used up, ended at step 3 of 100"]
    assert run.clock.ended


def test_a_run_that_was_to_end_there_is_not_ended_by_the_clock(monkeypatch):
    run = Run(monkeypatch, steps=3, max_minutes=0.5)
    for _ in range(3):
        run.step(10.0)
    assert not run.clock.ended


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0412, "41 ms"), (2.44, "2.4 seconds"), (41.2, "41 seconds"), (1500, "25 minutes"), (11200, "3.1 hours")],
)
def test_in_words(seconds, words):
    assert estimate.in_words(seconds) == words

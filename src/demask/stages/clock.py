"""The time of a training: what is left of it, told from its first steps, and its end by the clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from demask.decoding.common import anywhere
from demask.stages.estimate import fitting, in_words

_SLOW_STEPS = 2  # the first ones, which compile, and ask for memory
_STEPS, _SECONDS = 5, 30.0  # of training that are timed before what is left is told, and only where at least as long is left


class Clock(TrainerCallback):
    """Times steps, evaluations and checkpoints. Tells what is left after the first steps, and again once an evaluation is timed; ends the
    run at the first step after `max_minutes` of training, of which `used` seconds were before a resume.

    The end is that of a finished run: evaluated, and saved. `note` takes what the run's record keeps, as it becomes known.
    """

    def __init__(
        self,
        max_minutes: float | None = None,
        used: float = 0.0,
        say: Callable[[str], None] = lambda line: None,
        note: Callable[..., None] = lambda **changes: None,
    ) -> None:
        self.limit = math.inf if max_minutes is None else 60 * max_minutes  # seconds
        self.used, self.say, self.note = used, say, note
        self.steps: list[float] = []
        self.evaluations: list[float] = []
        self.saves: list[float] = []
        self.known = 0  # what has been told: 1, without the evaluations; 2, all
        self.ended = False
        self.began = self.last = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Of training so far, those before a resume included."""
        return self.used + self.last - self.began

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = self.last = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.steps.append(self._lap())
        if self.limit < math.inf and state.global_step < state.max_steps:
            # Each process has a clock of its own, and all must stop after the same step.
            self.ended = anywhere(self.seconds >= self.limit, args.world_size > 1, args.device)
        if self.ended:
            control.should_training_stop = True
            control.should_evaluate = control.should_evaluate or args.eval_strategy != IntervalStrategy.NO
            control.should_save = control.should_save or args.save_strategy == SaveStrategy.STEPS
            self.say(f"max_minutes: {self.limit / 60:g} minutes are used up, ended at step {state.global_step} of {state.max_steps}")
        elif not control.should_evaluate:  # after which more is known
            self._tell(args, state)
        return control

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.evaluations.append(self._lap())
        if not self.ended:
            self._tell(args, state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saves.append(self._lap())
        self.note(train_seconds=round(self.seconds, 2))  # a run that is killed has its time in its record

    def _lap(self) -> float:
        """Seconds since the step, evaluation or checkpoint before this one ended."""
        before, self.last = self.last, time.perf_counter()
        return self.last - before

    def _tell(self, args: Any, state: Any) -> None:
        timed = self.steps[_SLOW_STEPS:]
        evaluations = _due(state, state.eval_steps) if args.eval_strategy == IntervalStrategy.STEPS else 0
        known = 2 if self.evaluations or not evaluations else 1
        if len(timed) < _STEPS or self.last - self.began < _SECONDS or known <= self.known:
            return
        self.known = known
        step, rest = _mean(timed), state.max_steps - state.global_step
        saves = _due(state, state.save_steps) if args.save_strategy == SaveStrategy.STEPS else 0
        left = rest * step + evaluations * _mean(self.evaluations) + saves * _mean(self.saves)
        numbers = {"at_step": state.global_step, "step_seconds": round(step, 4), "train_seconds": round(self.seconds + left, 1)}
        self.note(timing=numbers | ({"evaluation_seconds": round(_mean(self.evaluations), 2)} if self.evaluations else {}))
        if left < _SECONDS:
            return
        line = f"time: about {in_words(left)} of training left: {rest:,} steps of {in_words(step)}"
        if self.evaluations and evaluations:
            line += f", {evaluations} evaluations of {in_words(_mean(self.evaluations))}"
        self.say(line + (", and the evaluations, which are yet to be timed" if known == 1 else ""))
        if self.seconds + left > self.limit:
            fit = state.global_step + int(rest * max(0.0, self.limit - self.seconds) / left)
            self.say(fitting(self.limit / 60, fit, state.max_steps))


def _due(state: Any, every: float) -> int:
    """How often what happens every so many steps, and after the last one, is still to happen."""
    return int(-(-state.max_steps // every) - state.global_step // every)  # the Trainer's "every" may be a float


def _mean(seconds: list[float]) -> float:
    return sum(seconds) / max(1, len(seconds))

"""What is said and decided between two steps: events, a stop on request, a stop when training falls apart.

It knows the trainer's state and nothing of how a step is computed.
"""

import math
import resource
import signal
import statistics
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from services.worker_train.child import Refused
from services.worker_train.trainer import AdapterTrainer
from shared.training.progress import FIGURES

Emit = Callable[..., None]
#: A loss so many times the median of the last steps, for so many steps in a row, has exploded.
_EXPLODED, _IN_A_ROW, _REMEMBERED = 3.0, 3, 20
#: So has one that stays so many times above the lowest that this median has been, and a gradient that does
#: so: what rises step by step raises its own median. Within so many steps a sound run falls below again, even
#: with one row a step.
_RAISED, _STEEP, _STAYED = 1.5, 100.0, 10
_MB = 1e6


class StopRequest:
    """Remembers SIGTERM; the run ends after the step, or the pass of a look, that it is in."""

    def __init__(self) -> None:
        self.asked = False

    def install(self) -> None:
        """Take SIGTERM over."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True


class _Running:
    """The median of a figure's last values, and the lowest that it has been; infinite while there are few."""

    def __init__(self, values: Iterable[float] = (), lowest: float = math.inf) -> None:
        self.values = deque(values, maxlen=_REMEMBERED)
        self.lowest = lowest

    def median(self) -> float:
        """Of the last values."""
        return statistics.median(self.values) if len(self.values) >= _IN_A_ROW else math.inf

    def add(self, value: float) -> None:
        """Count this value too."""
        self.values.append(value)
        self.lowest = min(self.lowest, self.median())


class Watch(TrainerCallback, ExportableState):
    """Tells of every step, keeps the best weights, and ends the run when it should end.

    What it decides by is part of every checkpoint: the trainer stores the `state` of whatever is an
    ExportableState, under the name of its class.
    """

    def __init__(
        self, emit: Emit, stop: StopRequest, *, patience: int | None, known_step: int | None = None
    ) -> None:
        """`known_step`: the last step that is known of an earlier program; None when nobody keeps a curve."""
        self._emit, self._stop, self._patience, self._known_step = emit, stop, patience, known_step
        self.trainer: AdapterTrainer
        self.drained = False
        self._losses, self._gradients = _Running(), _Running()
        #: Steps in a row of which the loss, or the gradient, was so far above what it was.
        self._high = self._raised = self._steep = 0
        self._unmoved = 0
        self._gradient = 0.0
        #: Whether the look at the held-out rows that was due is still to come.
        self._owes_look = False

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this."""
        return {
            "losses": list(self._losses.values),
            "lowest_loss": self._losses.lowest,
            "gradients": list(self._gradients.values),
            "lowest_gradient": self._gradients.lowest,
            "high": self._high,
            "raised": self._raised,
            "steep": self._steep,
            "unmoved": self._unmoved,
            "gradient": self._gradient,
            "owes_look": self._owes_look,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept; one of an earlier version kept less."""
        state = {**self.state(), **state}
        self._losses = _Running(state["losses"], state["lowest_loss"])
        self._gradients = _Running(state["gradients"], state["lowest_gradient"])
        self._high, self._raised, self._steep = state["high"], state["raised"], state["steep"]
        self._unmoved = state["unmoved"]
        self._gradient, self._owes_look = state["gradient"], state["owes_look"]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Go on as if nothing had been in between; what had ended already trains no further step."""
        kept = cast(dict[str, Any], state.stateful_callbacks)
        # a checkpoint of an earlier version has no such entry
        self.restore(kept.setdefault(type(self).__name__, self.state()))
        self._tell_history(state)
        if self._owes_look:
            self._owes_look = False
            self.trainer.evaluate()
        if state.global_step >= state.max_steps or self._is_stuck():
            control.should_training_stop = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save and stop when told to."""
        if self.trainer.anyone(self._stop.asked) and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = self.drained = True
            # there may be no time for it now
            self._owes_look, control.should_evaluate = control.should_evaluate, False

    def breaks_off(self) -> bool:
        """Break a look off, save and stop when told to; a program may be given less time than a look takes.

        What had been seen of the rows is lost, and the look is due again when the run goes on.
        """
        if not self.trainer.anyone(self._stop.asked):
            return False
        control = self.trainer.control
        control.should_save = control.should_training_stop = self.drained = self._owes_look = True
        return True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """One event a step. Raises Refused when the training fell apart, as `judge` says."""
        if not logs or "loss" not in logs:
            return
        gradient = float(logs.get("grad_norm", 0.0))
        self.judge(state.global_step, logs["loss"], gradient, learning_rate=args.learning_rate)
        figures = {
            "loss": round(logs["loss"], 6),
            "learning_rate": logs["learning_rate"],
            "grad_norm": round(gradient, 5),
            "tokens_per_s": round(self.trainer.tokens_per_second(), 1),
            "memory_mb": round(memory_mb(), 1),
        }
        state.log_history[-1].update(figures)  # the entry of this very step
        self._emit("step", step=state.global_step, **figures)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Any = None,
        **_: Any,
    ) -> None:
        """Keep the best weights; stop when they have not been beaten for long enough."""
        loss = metrics["eval_loss"]
        if not math.isfinite(loss):
            what = "the loss on the held-out rows is not a number"
            raise self._diverged(state.global_step, what, args.learning_rate)
        look = {"step": state.global_step, "eval_loss": round(loss, 6)}
        state.log_history.append(look)
        self._emit("step", **look)
        self._unmoved = 0 if self.trainer.keep_if_best(loss) else self._unmoved + 1
        if self._is_stuck():
            self._emit(
                "note",
                text=f"Stopped early at step {state.global_step}: the held-out loss has not fallen for "
                f"{self._unmoved} looks.",
            )
            control.should_training_stop = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Tell of the checkpoint, which is in place by now."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        self._emit("checkpoint", step=state.global_step, folder=str(folder))

    def judge(self, step: int, loss: float, gradient: float, *, learning_rate: float) -> None:
        """Raises Refused when the loss, or the gradient's length, shows that the training fell apart.

        That is: one of them is not a number; the loss is far above its median for some steps, or for
        more steps clearly above the lowest median that it had; or the gradient is for as many steps far above
        its own lowest.
        """
        if not math.isfinite(loss) or not math.isfinite(gradient):
            raise self._diverged(step, "the loss is not a number", learning_rate)
        usual, lowest = self._losses.median(), self._losses.lowest
        # what cuts nothing off is not steep, whatever it was before
        flat = max(self._gradients.lowest, 1.0)
        self._high = self._high + 1 if loss > _EXPLODED * usual + 1 else 0
        self._raised = self._raised + 1 if loss > _RAISED * lowest + 1 else 0
        self._steep = self._steep + 1 if gradient > _STEEP * flat else 0
        if self._high >= _IN_A_ROW or self._raised >= _STAYED:
            before = usual if self._high >= _IN_A_ROW else lowest
            raise self._diverged(step, f"the loss rose to {loss:.2f} from {before:.2f}", learning_rate)
        if self._steep >= _STAYED:
            rose = f"the gradient's length rose to {gradient:.3g} from {self._gradients.lowest:.3g}"
            raise self._diverged(step, rose, learning_rate)
        if not self._high:
            self._losses.add(loss)
        self._gradients.add(gradient)
        self._gradient = gradient

    def _tell_history(self, state: TrainerState) -> None:
        """Tell again what a checkpoint knows of steps that nobody may have heard of: the program that trained
        them may have outlived its supervisor, or the database was away. The last known one may lack its look
        at the held-out rows.
        """
        if self._known_step is None:
            return
        steps = [
            {name: entry[name] for name in ("step", *FIGURES) if name in entry}
            for entry in state.log_history
            if entry["step"] >= self._known_step
        ]
        if steps:
            self._emit("history", steps=steps)

    def _is_stuck(self) -> bool:
        return self._patience is not None and self._unmoved >= self._patience

    def _diverged(self, step: int, what: str, rate: float) -> Refused:
        if step == 1:
            cause = (
                "It was so before anything was learnt: the base weights are damaged, or dtype is too coarse."
            )
        else:
            cause = (
                f"Likely the learning rate, {rate:g}, is too high (the gradient's length was "
                f"{self._gradient:.3g} before): divide it by 3, or lengthen warmup_ratio, or lower "
                f"max_grad_norm."
            )
        return Refused("diverged", f"Step {step}: {what}. {cause}")


def memory_mb() -> float:
    """Most memory that this process has held, in MB: the GPU's where one is used."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / _MB
    try:
        # not ru_maxrss where this can be read: that begins with the peak of the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / _MB
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MB

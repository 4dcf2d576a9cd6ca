"""What a training reports while it runs: `metrics.jsonl`, and lines of progress: fewer as training continues."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_LATER_LINES = 30.0
SECONDS_OF_EARLY_LINES = 60.0
MAX_SECONDS_BETWEEN_LINES = 60.0
MAX_FILE_LINES = 1000
MAX_MESSAGE_CHARACTERS = 400  # the log of Dagster Pipes wants small messages


@dataclass(frozen=True)
class StepFigures:
    """An optimizer step, counted from 1 like its epoch: loss and accuracy of its pairs before the update."""

    step: int
    epoch: int
    loss: float
    accuracy: float
    learning_rate: float
    grad_norm: float


@dataclass
class TrainingLog:
    """Sends the figures of a run to the file `metrics.jsonl`, to the user (`log`) and to a tracker (`track`).

    Without a file, as in all processes but the first, it does nothing.
    """

    metrics_file: Path | None = None
    log: Callable[[str], object] = print
    track: Callable[[Mapping[str, float]], object] = lambda line: None
    started: float = field(default_factory=time.perf_counter)
    last_line: float = -math.inf
    first_line: float = math.inf
    last_message: float = field(default_factory=time.perf_counter)

    def message(self, text: str) -> None:
        """Show a line to the user."""
        if self.metrics_file is not None:
            self.last_message = time.perf_counter()
            self.log(text[:MAX_MESSAGE_CHARACTERS])

    def progress(self, text: str) -> None:
        """Show how far unfinished work is, unless a line was shown in the last 30 seconds."""
        if time.perf_counter() - self.last_message >= SECONDS_BETWEEN_LATER_LINES:
            self.message(text)

    def start_clock(self, seconds_before: float = 0.0) -> None:
        """Start the clock for speeds, at the seconds that earlier runs of this training took."""
        self.started = time.perf_counter() - seconds_before

    def seconds(self) -> float:
        """Seconds of training so far, including earlier runs."""
        return time.perf_counter() - self.started

    def step(self, figures: StepFigures, num_steps: int, num_pairs_done: int) -> None:
        """Report a finished step: to the file about MAX_FILE_LINES times in all, to the user now and then."""
        now = time.perf_counter()
        seconds = now - self.started
        speed, seconds_left = num_pairs_done / seconds, seconds / figures.step * (num_steps - figures.step)
        is_edge = figures.step in (1, num_steps)
        if is_edge or figures.step % -(-num_steps // MAX_FILE_LINES) == 0:
            self._write({**vars(figures), "pairs_per_second": speed, "seconds_left": seconds_left})
        self.first_line = min(self.first_line, now)
        if is_edge or now - self.last_line >= _pause(now - self.first_line, seconds + seconds_left):
            self.last_line = now
            self.message(progress_line(figures, num_steps, speed, seconds_left))

    def validation(self, step: int, loss: float, accuracy: float, num_pairs: int) -> None:
        """Report loss and accuracy on held-out pairs after a step."""
        self.message(f"validation after step {step} · loss {loss:.3f} · accuracy {accuracy:.3f} · {num_pairs:,} pairs")
        self._write(
            {
                "step": step,
                "validation_loss": loss,
                "validation_accuracy": accuracy,
                "validation_pairs": num_pairs,
            }
        )

    def _write(self, line: dict[str, float]) -> None:
        if self.metrics_file is not None:
            with self.metrics_file.open("a") as file:
                file.write(json.dumps(line) + "\n")
            self.track(line)


def _pause(seconds_of_lines: float, total_seconds: float) -> float:
    """Seconds from one line to the next: 5 in the first minute, then a hundredth of the training, from 30 to 60."""
    if seconds_of_lines < SECONDS_OF_EARLY_LINES:
        return SECONDS_BETWEEN_LINES
    return min(max(SECONDS_BETWEEN_LATER_LINES, total_seconds / 100), MAX_SECONDS_BETWEEN_LINES)


def progress_line(figures: StepFigures, num_steps: int, speed: float, seconds_left: float) -> str:
    """For example: step 40/200 · loss 0.412 · accuracy 0.81 · 220 pairs/s · 0:35 left."""
    minutes, seconds = divmod(round(seconds_left), 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return (
        f"step {figures.step}/{num_steps} · loss {figures.loss:.3f} · accuracy {figures.accuracy:.2f} · "
        f"{speed:.3g} pairs/s · {left} left"
    )

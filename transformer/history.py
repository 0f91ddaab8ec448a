"""The history of a training: log lines, train_log.jsonl, and curves.png drawn from it."""

import contextlib
import json
import logging
import sys
import time
from functools import partial
from pathlib import Path

import torch

from transformer import drawing
from transformer.console import command_line, format_results, format_seconds
from transformer.files import UserError, atomic_write
from transformer.json_file import NULL, NUMBER, Field, parse_json, whole

HISTORY_NAME, CURVES_NAME = "train_log.jsonl", "curves.png"
VALUES = Field("a number for each name", (dict,), of=Field("a number", NUMBER, low=None))
ENTRY = {"step": whole(needed=True), "losses": VALUES, "evaluation": VALUES, "command": Field("a command")}
ENTRY |= {"steps": whole(), "seconds": Field("a number", NUMBER)}
ENTRY |= {"rows": Field("a whole number", (int, NULL), 0), "unlabelled": whole(), "examples": whole()}


class History:
    """Logs a training: log lines, train_log.jsonl with every layer's losses, curves.png. Every process adds its steps,
    only the first one writes. `counts`: of one pass over the data, {"rows", "unlabelled", "examples": number}."""

    def __init__(self, folder, total_steps, processes, counts=None):
        self.path, self.curves = Path(folder) / HISTORY_NAME, Path(folder) / CURVES_NAME
        self.total_steps, self.processes, self.counts = total_steps, processes, counts or {}

    def start(self, step):
        """Start at a step, and drop a killed run's entries after it, because those steps run again."""
        self.first_step, self.started = step, time.monotonic()
        self._restart()
        if self.processes.first:
            entries = [entry for entry in read_history(self.path) if entry["step"] <= step]
            with atomic_write(self.path) as file:
                file.writelines(json.dumps(entry) + "\n" for entry in entries)

    def _restart(self):
        self.sums, self.steps, self.examples, self.tokens, self.since = {}, 0, 0, 0, time.monotonic()

    def add_step(self, losses, examples, tokens):
        """Add a step's losses, {name: scalar tensor}, which stay on the device until they are logged."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.steps += 1
        self.examples += examples
        self.tokens += int(tokens)

    def log(self, step, rate):
        """Log one line about the steps since the last line."""
        # .item() waits for the device, so it is called only here.
        losses = {name: self.processes.sum(value).item() / self.steps for name, value in self.sums.items()}
        now, memory = time.monotonic(), peak_memory(self.processes.device)
        examples, tokens = (count / max(now - self.since, 1e-9) for count in (self.examples, self.tokens))
        left = (now - self.started) / max(step - self.first_step, 1) * (self.total_steps - step)
        logging.info(
            f"step {step}/{self.total_steps} | {format_results(sum_by_kind(losses))} | lr {rate:.2e} | "
            f"{examples:.0f} examples/s {tokens:.0f} tokens/s | {format_seconds(left)} left | {memory:.2f} GB"
        )
        speed = {"examples_per_second": examples, "tokens_per_second": tokens, "memory_gb": memory}
        # Seconds of training alone, so that a run that was stopped adds up.
        effort = {"steps": self.steps, "seconds": now - self.since}
        origin = {**self.counts, "command": command_line(self.processes)} if step == 1 else {}
        self._write({"step": step, "losses": losses, "learning_rate": rate, **effort, **speed, **origin})
        self._restart()

    def add_evaluation(self, step, results):
        """Log an evaluation's results, {name: number}."""
        if results:
            logging.info("step %d | %s", step, format_results(results))
            self._write({"step": step, "evaluation": results})

    def resume(self):
        """Go on measuring: the time since the last step, of an evaluation and of saving, is not training's."""
        self.since = time.monotonic()

    def _write(self, entry):
        if self.processes.first:
            try:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")
            except OSError as error:
                raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error

    def draw(self):
        """Draw losses and evaluations by step, where matplotlib is installed."""
        found = {kind: curves for kind, curves in read_curves(self.path).items() if curves}
        panels = [partial(drawing.lines, title=kind, curves=found[kind], log=kind == "losses") for kind in found]
        drawing.save_panels(self.curves, panels)


def read_history(path):
    """The entries of a train_log.jsonl, [] if it is missing. Skips incomplete lines, left by a full disk or a kill."""
    path, entries = Path(path), []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []:
        with contextlib.suppress(UserError):
            entries.append(parse_json(line, path, 1, ENTRY))
    return entries


def read_effort(path):
    """What a training took, by its train_log.jsonl: {"steps": number, "seconds": of training alone, "rows": of one
    pass, "unlabelled": those without a label, "examples": the windows over all of them, "command": text}, each None
    where the log does not tell."""
    entries = [entry for entry in read_history(path) if "losses" in entry]
    first, steps = (entries[0], entries[-1]["step"]) if entries else ({}, None)
    timed = sum(entry.get("steps", 0) for entry in entries)
    # The steps between a log line and a stop are in no entry. They count with the mean of the others.
    seconds = sum(entry.get("seconds", 0) for entry in entries) / timed * steps if timed else None
    told = ("rows", "unlabelled", "examples", "command")
    return {"steps": steps, "seconds": seconds} | {name: first.get(name) for name in told}


def read_curves(path):
    """The curves in a train_log.jsonl: {"losses": {name: [(step, value)]}, "evaluation": likewise}."""
    curves = {"losses": {}, "evaluation": {}}
    for entry in read_history(path):
        for kind, found in curves.items():
            for name, value in entry.get(kind, {}).items():
                found.setdefault(name, []).append((entry["step"], float(value)))
    return curves


def sum_by_kind(losses):
    """Sum losses over layers: {"att_loss": ..., ...} from {"att_loss/1": ..., "att_loss/2": ..., ...}."""
    sums = {}
    for name, value in losses.items():
        kind = name.split("/")[0]
        sums[kind] = sums.get(kind, 0) + value
    return sums


def peak_memory(device):
    """This process's peak memory so far in GB: of the GPU if it uses one, else of the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9

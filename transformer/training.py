"""The plan and the loop of every training: which examples come when, gradients, evaluation, saving, going on.

A script says what is learned: a `learner`, a module whose forward turns a batch into named losses. The loop says how.
"""

import contextlib
import logging
import math
import re
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from transformer.checkpoint import WEIGHTS_NAME, save_weights
from transformer.console import progress_bar
from transformer.data import epoch_batches
from transformer.files import UserError, atomic_write
from transformer.history import HISTORY_NAME, History, sum_by_kind
from transformer.optimization import BertAdam, decay_groups
from transformer.processes import Processes, set_seed
from transformer.settings import Batching, Schedule

# The second line: names of before, for whoever imports them from here.
__all__ = ["Batching", "Plan", "Schedule", "TrainingRun", "step_seed"]
__all__ += ["HISTORY_NAME", "Launch", "set_seed", "sum_by_kind"]

Launch = Processes
logger = logging.getLogger(__name__)

STATE_NAME = "training_state.bin"
LOG_STEPS = 50  # steps between two log lines; also the only places where the loop waits for the device
ADVICE = f"{STATE_NAME} is from before it; a lower --learning_rate or --precision fp32 may help"


class Plan:
    """Which examples each step trains on, fixed before the run starts.

    Args: load_epoch(k): the `Sequences` of pass k; sizes: examples of each pass, used in turn. `total_steps` counts
    optimizer steps, the last short batch included. Raises UserError where that is none.
    """

    def __init__(self, load_epoch, sizes, schedule, batching):
        self.load_epoch, self.schedule, self.batching = load_epoch, schedule, batching
        steps = [math.ceil(size / batching.train_batch_size) for size in sizes]
        epochs = schedule.num_train_epochs
        whole = int(epochs)
        self.epoch_steps = [steps[epoch % len(steps)] for epoch in range(whole + 1)]
        self.epoch_steps[whole] = round((epochs - whole) * self.epoch_steps[whole])
        self.total_steps = min(sum(self.epoch_steps), schedule.max_steps or math.inf)
        if not self.total_steps:
            raise UserError(f"--num_train_epochs {epochs}: nothing to train on")

    def batches(self, epoch):
        """(Sequences, [indices of a batch]) of one pass."""
        sequences = self.load_epoch(epoch)
        size, bucketed = self.batching.train_batch_size, not self.batching.pad_to_max_length
        return sequences, epoch_batches(sequences.lengths, size, self.schedule.seed, epoch, bucketed)

    def steps(self, start=0):
        """Yield (sequences, indices of the step's examples) from step `start` on."""
        first = 0
        for epoch, count in enumerate(self.epoch_steps):
            stop = min(first + count, self.total_steps)
            if max(start, first) < stop:
                sequences, batches = self.batches(epoch)
                for indices in batches[max(start - first, 0) : stop - first]:
                    yield sequences, indices
            first += count


class TrainingRun:
    """One training: the state (model, optimizer, step, best score, results), and everything that happens to it.

    Args: folder: output folder; learner: module with `student` (a BertPreTrainedModel) whose forward(batch) gives
    {name: loss}, means over the batch's examples; plan: Plan; rates: name of BertAdam's schedule; evaluate(): (score or
    None, {name: number}), called every `eval_step` steps and at the end; the weights with the best score are kept,
    without a score the latest; keep_step_files: so many evaluations' weights stay as step_N_pytorch_model.bin.
    """

    def __init__(self, folder, learner, plan, processes, rates, evaluate=None, keep_step_files=0):
        self.folder, self.learner, self.plan, self.processes = Path(folder), learner, plan, processes
        self.student = learner.student
        self.evaluate, self.keep_step_files = evaluate or (lambda: (None, {})), keep_step_files
        schedule = plan.schedule
        groups = decay_groups(self.student, schedule.weight_decay)
        self.optimizer = BertAdam(groups, schedule.learning_rate, schedule.warmup_proportion, plan.total_steps, rates)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=processes.dtype == torch.float16)
        self.step, self.best_score, self.results = 0, None, {}
        self.history = History(self.folder, plan.total_steps, processes)

    def train(self):
        """Run from wherever the state stands to the end of the plan; returns the results of the weights kept."""
        if not self.load_state():
            self.save_state()
        learner, guard = self.processes.wrap(self.learner.train()), Guard(self)
        if self.plan.batching.compile:
            learner = torch.compile(learner, dynamic=True)  # batches differ in length
        self.history.start(self.step)
        watched = progress_bar(self.plan.total_steps, self.step, "step", shown=self.processes.first)
        with guard.watching(), watched as bar:
            for step, (sequences, indices) in enumerate(self.plan.steps(self.step), self.step + 1):
                # Once in so many optimizer steps and always at the end; the reference asks at each part of a batch, and
                # keeps nothing of what comes after the last multiple.
                evaluating = step == self.plan.total_steps or step % self.plan.schedule.eval_step == 0
                logging_now = evaluating or step % LOG_STEPS == 0

                losses = self.forward_backward(learner, sequences, indices)
                guard.note(indices, losses, look=logging_now)
                self.history.add_step(losses, len(indices), sequences.lengths[indices].sum())
                rate = self.optimizer.get_lr()
                self.update()
                bar.update()
                if logging_now:
                    self.history.log(step, rate)
                if evaluating:
                    self.evaluate_and_save()
                guard.stop_if_asked()
        return self.results

    def forward_backward(self, learner, sequences, indices):
        """Gradient of one global batch, of which this process computes every world_size-th example, in parts.

        Returns {name: loss}, this process's share of the mean over the global batch.
        """
        processes = self.processes
        # Every step draws its dropout from its own seed: a run that goes on draws what this one would have.
        torch.manual_seed(step_seed(self.plan.schedule.seed, self.step, processes.rank))
        mine = indices[processes.rank :: processes.world_size]
        size = math.ceil(len(mine) / self.plan.batching.gradient_accumulation_steps)
        parts = [mine[start : start + size] for start in range(0, len(mine), size or 1)]
        totals = {}
        for number, part in enumerate(parts or [indices[:1]]):
            batch = processes.to_device(sequences.batch(part))
            # Losses are means over examples; these weights make the parts' sum the mean over the global batch. A
            # process without examples (in a last short batch) goes through the motions with weight 0.
            weight = len(part) / len(indices) if parts else 0.0
            last = number == len(parts) - 1 or not parts
            with contextlib.nullcontext() if last or processes.world_size == 1 else learner.no_sync():
                with processes.autocast():
                    losses = learner(batch)
                loss = sum(losses.values()) * (weight * processes.world_size)  # gradients are averaged over processes
                self.scaler.scale(loss).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value.detach() * weight
        self.scaler.unscale_(self.optimizer)
        return totals

    def update(self):
        """One optimizer step; where float16 overflowed, the step counts and the weights stay."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.optimizer.advance_to(self.step)

    # --- the one state

    def save_state(self):
        """Write everything the run needs to go on, into one file. Raises UserError for weights that are not finite."""
        self.check_weights()
        if self.processes.first:
            parts = {"model": self.student, "optimizer": self.optimizer, "scaler": self.scaler}
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= {"step": self.step, "best_score": self.best_score, "results": self.results}
            with atomic_write(self.folder / STATE_NAME, "wb") as file:
                torch.save(state, file)

    def has_state(self):
        """Whether a stopped run left a state to go on from."""
        return (self.folder / STATE_NAME).is_file()

    def load_state(self):
        """Go on from a saved state, if there is one. Returns whether there was."""
        path = self.folder / STATE_NAME
        if not self.processes.from_first(self.has_state):
            return False
        if not self.has_state():
            raise UserError(f"{path}: not here, but where the first process runs; all machines need one output folder")
        try:
            state = torch.load(path, map_location=self.processes.device, weights_only=True)
            self.student.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.step, self.best_score, self.results = state["step"], state["best_score"], state["results"]
        except Exception as error:  # a damaged file raises many kinds
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path}: damaged ({reason}); without that file the run starts again") from error
        logger.info("going on from step %d of %d", self.step, self.plan.total_steps)
        return True

    def evaluate_and_save(self):
        """Evaluate, keep the weights that deserve it, then save the state: a stop in between repeats this step."""
        self.check_weights()  # ahead of everything that replaces good ones
        self.learner.eval()
        score, results = self.evaluate()
        self.learner.train()
        self.history.add_evaluation(self.step, results)
        if score is None or self.best_score is None or score > self.best_score or math.isnan(self.best_score):
            self.best_score, self.results = score, {"global_step": self.step, **results}
            if self.processes.first:
                self.keep_weights()
        self.save_state()

    def keep_weights(self):
        """Write the weights as they are, and with `keep_step_files` once more under the step's name."""
        weights = self.student.state_dict()
        if self.keep_step_files:
            save_weights(weights, self.folder / f"step_{self.step}_{WEIGHTS_NAME}")
            found = (re.fullmatch(rf"step_(\d+)_{WEIGHTS_NAME}", path.name) for path in self.folder.iterdir())
            for step in sorted(int(match[1]) for match in found if match)[: -self.keep_step_files]:
                (self.folder / f"step_{step}_{WEIGHTS_NAME}").unlink()
        save_weights(weights, self.folder / WEIGHTS_NAME)

    def check_weights(self):
        """Raise UserError where the last update left weights that are not finite."""
        for name, weight in self.student.state_dict().items():
            if not weight.isfinite().all():
                raise UserError(f"step {self.step}: its update left {name} with NaN or infinite numbers; {ADVICE}")

    def finish(self):
        """The run's files are complete: nothing is left to go on from."""
        if self.processes.first:
            (self.folder / STATE_NAME).unlink(missing_ok=True)
            try:
                self.history.draw()
            except Exception as error:  # a matplotlib that is there and broken must not cost a run its end
                logger.warning("no %s: %s", self.history.curves.name, error)


class Guard:
    """What can go wrong in a loop: losses that are not finite, Ctrl-C and SIGTERM."""

    def __init__(self, run):
        self.run, self.processes = run, run.processes
        self.unseen = []  # (step, its examples, its loss): looking at a loss waits for the device
        self.signal = 0

    @contextlib.contextmanager
    def watching(self):
        """Ctrl-C and SIGTERM end the loop after the step at hand, with a saved state; a second one ends it at once."""

        def note(signum, frame):
            if self.signal:
                raise KeyboardInterrupt
            self.signal = signum

        before = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def note(self, indices, losses, look):
        """Remember a step's losses before its update; `look` at all that are remembered, on a CPU always: no wait."""
        self.unseen.append((self.run.step, indices, sum(losses.values())))
        if look or self.processes.device.type == "cpu":
            self.check()

    def check(self):
        """Raise UserError for the first noted step whose loss is not finite. Where the weights are still good, those
        before that step, they are saved."""
        if not self.unseen:
            return
        losses = self.processes.sum(torch.stack([loss for *_, loss in self.unseen])).tolist()
        for (step, indices, _), loss in zip(self.unseen, losses, strict=True):
            if not math.isfinite(loss):
                weights = self.run.student.state_dict().values()
                if step == self.run.step and all(weight.isfinite().all() for weight in weights):
                    self.run.save_state()
                rows = ", ".join(map(str, indices.tolist()))
                raise UserError(f"step {step + 1}: the loss is {loss}, of the rows (counted from 0) {rows}; {ADVICE}")
        self.unseen.clear()

    def stop_if_asked(self):
        """End the process where any process got a signal: all at the same step, or the others would wait for ever."""
        signum = self.processes.max_number(self.signal)
        if signum and self.run.step < self.run.plan.total_steps:
            self.check()
            self.run.save_state()
            logger.info("stopped at step %d; the same command goes on from here", self.run.step)
            sys.exit(128 + signum)


def step_seed(seed, step, rank):
    """The seed of one step's dropout on one process."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]) >> 1

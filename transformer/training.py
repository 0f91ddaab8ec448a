"""The training loop of every stage: order of examples, gradients, evaluation, saving and resuming.

A stage brings a `learner`, a module whose forward turns a batch into named losses.
"""

import contextlib
import itertools
import logging
import math
import re
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from transformer.checkpoint import WEIGHTS_NAME, save_weights
from transformer.console import out_of_memory, progress_bar
from transformer.data import epoch_batches
from transformer.files import UserError, atomic_write
from transformer.history import HISTORY_NAME, VALUES, History, sum_by_kind
from transformer.json_file import NULL, NUMBER, Field, check, whole
from transformer.optimization import BertAdam, decay_groups
from transformer.processes import Processes, set_seed
from transformer.settings import Batching, Schedule
from transformer.tensor_file import check_tensors, read_pickle

# The second line keeps older import paths working.
__all__ = ["Batching", "Plan", "Schedule", "TrainingRun", "step_seed"]
__all__ += ["HISTORY_NAME", "Launch", "set_seed", "sum_by_kind"]

Launch = Processes
logger = logging.getLogger(__name__)

STATE_NAME = "training_state.bin"
SCORE = Field("a number or None", (*NUMBER, NULL), low=None, needed=True)
SCALES = Field("a number, 0 or more, for each name", (dict,), of=Field("a number", NUMBER, 0), needed=True)
# What save_state writes, apart from the step; what is in the dictionaries of tensors is looked at when they are loaded.
STATE = dict.fromkeys(("optimizer", "sums"), Field("a dictionary", (dict,)))
STATE |= {"scaler": SCALES, "best_score": SCORE, "results": VALUES._replace(needed=True), "summed": whole()}
LOG_STEPS = 50  # steps between log lines, which are also the only points where the loop waits for a GPU
ADVICE = f"{STATE_NAME} is from before it; a lower --learning_rate or --precision fp32 may help"


class Plan:
    """Which examples each step trains on, fixed before the run starts.

    Args: load_epoch(k): the `Sequences` of pass k; sizes: number of examples in each pass, reused in turn;
    rows: of how many rows these are windows, None = of one each; unlabelled: number of rows without a label.
    `total_steps`: optimizer steps, including each pass's short last batch. Raises UserError where there are none.
    """

    def __init__(self, load_epoch, sizes, schedule, batching, unlabelled=0, rows=None):
        examples = round(sum(sizes) / len(sizes))  # of a pass
        self.counts = {"rows": rows or examples, "unlabelled": unlabelled, "examples": examples}
        self.load_epoch, self.schedule, self.batching = load_epoch, schedule, batching
        steps = [math.ceil(size / batching.train_batch_size) for size in sizes]
        epochs = schedule.num_train_epochs
        rounds, last = divmod(int(epochs), len(steps))
        # 1.5 epochs end in the middle of the second pass.
        whole = rounds * sum(steps) + sum(steps[:last]) + round((epochs - int(epochs)) * steps[last])
        self.pass_steps, self.total_steps = steps, min(whole, schedule.max_steps or math.inf)
        if not self.total_steps:
            raise UserError(f"--num_train_epochs {epochs}: nothing to train on")

    def batches(self, epoch):
        """(Sequences, [indices of each batch]) for one pass."""
        sequences = self.load_epoch(epoch)
        size, bucketed = self.batching.train_batch_size, not self.batching.pad_to_max_length
        return sequences, epoch_batches(sequences.lengths, size, self.schedule.seed, epoch, bucketed)

    def steps(self, start=0):
        """Yield (sequences, indices of the step's examples) from step `start` on."""
        # The order depends on the seed and the pass alone, so a resumed run skips ahead without reading earlier passes.
        first = 0
        for epoch in itertools.count():
            stop = min(first + self.pass_steps[epoch % len(self.pass_steps)], self.total_steps)
            if max(start, first) < stop:
                sequences, batches = self.batches(epoch)
                for indices in batches[max(start - first, 0) : stop - first]:
                    yield sequences, indices
            if stop == self.total_steps:
                return
            first = stop


class TrainingRun:
    """A training's state (model, optimizer, step, best score, results), the loop, and its files.

    Args: folder: output folder; learner: module with `student` (a BertPreTrainedModel) whose forward(batch) returns
    {name: mean loss over the batch}; rates: name of a BertAdam schedule; evaluate(): (score or None, {name: number}),
    called every `eval_step` steps and at the end; the weights with the best score are kept, without scores the latest;
    keep_step_files: number of evaluations whose weights also stay as step_N_pytorch_model.bin; keep(): writes what
    belongs to the weights just before they are kept.
    """

    def __init__(self, folder, learner, plan, processes, rates, evaluate=None, keep_step_files=0, keep=None):
        self.folder, self.learner, self.plan, self.processes = Path(folder), learner, plan, processes
        self.student = learner.student
        self.evaluate, self.keep_step_files = evaluate or (lambda: (None, {})), keep_step_files
        self.keep = keep or (lambda: None)
        schedule = plan.schedule
        groups = decay_groups(self.student, schedule.weight_decay)
        self.optimizer = BertAdam(groups, schedule.learning_rate, schedule.warmup_proportion, plan.total_steps, rates)
        # float16 has too few exponent bits for small gradients; bfloat16 needs no scaling.
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=processes.dtype == torch.float16)
        self.step, self.best_score, self.results = 0, None, {}
        self.sums, self.summed = {}, 0  # the losses since the last evaluation, by kind, and the number of steps
        self.history = History(self.folder, plan.total_steps, processes, plan.counts)

    def train(self):
        """Train from the saved state, if any, to the end of the plan. Returns the results of the weights kept."""
        if not self.load_state():
            self.save_state()  # so that even a failure in the first steps leaves a state to return to
        learner, guard = self.processes.wrap(self.learner.train()), Guard(self)
        if self.plan.batching.compile:
            learner = torch.compile(learner, dynamic=True)  # batches differ in length
        self.history.start(self.step)
        watched = progress_bar(self.plan.total_steps, self.step, "step", shown=self.processes.first)
        with guard.watching(), watched as bar:
            for step, (sequences, indices) in enumerate(self.plan.steps(self.step), self.step + 1):
                # Counted in optimizer steps, and always at the end. The reference counts parts of batches, and drops
                # what it learns after the last multiple.
                evaluating = step == self.plan.total_steps or step % self.plan.schedule.eval_step == 0
                logging_now = evaluating or step == 1 or step % LOG_STEPS == 0

                with guard.stopping_where_interrupted():
                    losses = self.forward_backward(learner, sequences, indices)
                # Before the update, while the weights are still those from before a bad loss.
                guard.note(indices, losses, look=logging_now)
                self.history.add_step(losses, len(indices), sequences.lengths[indices].sum())
                for name, loss in sum_by_kind(losses).items():
                    self.sums[name] = self.sums.get(name, 0) + loss
                self.summed += 1
                rate = self.optimizer.get_lr()[0]  # of this step: the update advances it
                self.update()
                bar.update()
                if logging_now:
                    self.history.log(step, rate)
                if evaluating:
                    self.evaluate_and_save()
                    self.history.resume()
                guard.stop_if_asked()
        return self.results

    def forward_backward(self, learner, sequences, indices):
        """Compute the gradient of a batch, of which this process takes every world_size-th example, in parts. Returns
        {name: loss}, this process's share of the mean over the whole batch."""
        processes = self.processes
        # Dropout has a seed per step, so that a resumed run draws the same masks as an uninterrupted one.
        torch.manual_seed(step_seed(self.plan.schedule.seed, self.step, processes.rank))
        mine = indices[processes.rank :: processes.world_size]
        size = math.ceil(len(mine) / self.plan.batching.gradient_accumulation_steps)
        parts = [mine[start : start + size] for start in range(0, len(mine), size or 1)]
        totals = {}
        for number, part in enumerate(parts or [indices[:1]]):
            batch = processes.to_device(sequences.batch(part))
            # Each loss is a mean over its part; these weights make their sum the mean over the whole batch. A process
            # without examples, in a short last batch, computes one with weight 0: the others wait for its gradients.
            weight = len(part) / len(indices) if parts else 0.0
            # Only the last part sends gradients to the other processes; the earlier ones add up locally.
            last = number == len(parts) - 1 or not parts
            with contextlib.nullcontext() if last or processes.world_size == 1 else learner.no_sync():
                with processes.autocast():
                    losses = learner(batch)
                loss = sum(losses.values()) * (weight * processes.world_size)  # gradients are averaged over processes
                self.scaler.scale(loss).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value.detach() * weight
        self.scaler.unscale_(self.optimizer)  # BertAdam clips the gradients at their true size
        return totals

    def update(self):
        """Take one optimizer step. Where float16 overflowed, the step counts but the weights stay as they are."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.optimizer.advance_to(self.step)  # the optimizer did not count a step that the scaler skipped

    def save_state(self):
        """Write everything that a resumed run needs into one file. Raises UserError for weights that are not finite."""
        self.check_weights()
        sums = {name: self.processes.sum(total.clone()) for name, total in self.sums.items()}
        if self.processes.first:
            parts = {"model": self.student, "optimizer": self.optimizer, "scaler": self.scaler}
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= {"step": self.step, "best_score": self.best_score, "results": self.results}
            state |= {"sums": sums, "summed": self.summed}
            with atomic_write(self.folder / STATE_NAME, "wb") as file:
                torch.save(state, file)

    def has_state(self):
        """Whether a stopped run left a state to resume from."""
        return (self.folder / STATE_NAME).is_file()

    def load_state(self):
        """Resume from a saved state. Returns False where there is none."""
        path = self.folder / STATE_NAME
        if not self.processes.from_first(self.has_state):
            return False
        if not self.has_state():
            raise UserError(f"{path}: not here, but where the first process runs; all machines need one output folder")
        try:
            state = read_pickle(path, self.processes.device)
            check(state, STATE | {"step": whole(0, self.plan.total_steps, needed=True)}, "the state")
            check_tensors(state["model"], "the weights")
            self.student.load_state_dict(state["model"])
            self.load_moments(state["optimizer"]["state"])
            self.scaler.load_state_dict(state["scaler"])
            self.step, self.best_score, self.results = state["step"], state["best_score"], state["results"]
            self.optimizer.advance_to(self.step)
            self.summed = state.get("summed", 0)
            sums = state.get("sums", {})  # over all processes, so the others start from 0
            if not all(torch.is_floating_point(each) and each.shape == () for each in sums.values()):
                raise ValueError("sums of losses that are no numbers")
            self.sums = sums if self.processes.first else {name: torch.zeros_like(each) for name, each in sums.items()}
        except Exception as error:  # torch.load raises many types for a damaged file
            if out_of_memory(error):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path}: damaged ({reason}); without that file the run starts again") from error
        logger.info("going on from step %d of %d", self.step, self.plan.total_steps)
        return True

    def load_moments(self, moments):
        """Load the optimizer's moments, which have their parameters' shapes. Its settings are the run's own."""
        named = {f"{name} {index}": each for index, both in moments.items() for name, each in both.items()}
        check_tensors(named, "the optimizer")
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        for param, both in self.optimizer.state.items():
            if both.keys() != {"next_m", "next_v"} or any(each.shape != param.shape for each in both.values()):
                raise ValueError("an optimizer's moments for other weights")

    def evaluate_and_save(self):
        """Evaluate, keep the weights if they are the best so far, then save the state."""
        self.check_weights()  # before anything overwrites good weights
        self.learner.eval()
        score, results = self.evaluate()
        self.learner.train()
        self.history.add_evaluation(self.step, results)
        means = self.mean_losses()
        if score is None or self.best_score is None or score > self.best_score or math.isnan(self.best_score):
            self.best_score, self.results = score, {"global_step": self.step, **results, **means}
            if self.processes.first:
                self.keep_weights()
        self.save_state()  # last: a run killed before this point repeats the steps since the previous one

    def mean_losses(self):
        """The mean losses of the steps since the last evaluation, each kind's and "loss", their sum. Starts anew."""
        sums = {name: self.processes.sum(total).item() for name, total in self.sums.items()}
        means = {name: total / self.summed for name, total in sums.items()}
        self.sums, self.summed = {}, 0
        return {**means, "loss": sum(means.values())} if means else {}

    def keep_weights(self):
        """Write the current weights, and with `keep_step_files` a copy under the step's name."""
        weights = self.student.state_dict()
        if self.keep_step_files:
            save_weights(weights, self.folder / f"step_{self.step}_{WEIGHTS_NAME}")
            found = (re.fullmatch(rf"step_(\d+)_{WEIGHTS_NAME}", path.name) for path in self.folder.iterdir())
            for step in sorted(int(match[1]) for match in found if match)[: -self.keep_step_files]:
                (self.folder / f"step_{step}_{WEIGHTS_NAME}").unlink()
        self.keep()
        save_weights(weights, self.folder / WEIGHTS_NAME)

    def check_weights(self):
        """Raise UserError if the last update left weights that are not finite."""
        for name, weight in self.student.state_dict().items():
            if not weight.isfinite().all():
                raise UserError(f"step {self.step}: its update left {name} with NaN or infinite numbers; {ADVICE}")

    def finish(self):
        """Draw the curves of a run that is complete, and remove its state."""
        if self.processes.first:
            self.history.draw()
            (self.folder / STATE_NAME).unlink(missing_ok=True)  # last: a kill while drawing must repeat no training


class Guard:
    """Handles what can go wrong in the loop: losses that are not finite, Ctrl-C and SIGTERM."""

    def __init__(self, run):
        self.run, self.processes = run, run.processes
        self.unseen = []  # (step, examples, loss) not checked yet: reading a loss waits for the GPU
        self.signal = 0

    @contextlib.contextmanager
    def watching(self):
        """Let Ctrl-C and SIGTERM end the loop after the current step, with a saved state. A second one ends it now."""

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

    @contextlib.contextmanager
    def stopping_where_interrupted(self):
        """Stop at the step before where a step's losses fail after a signal."""
        try:
            yield
        except Exception as error:
            # Ctrl-C in a terminal reaches every process of a run, also the compiler's with --compile, without which the
            # step fails. Other ranks may be elsewhere, so several processes end with the error.
            if not self.signal or self.processes.world_size > 1 or isinstance(error, UserError):
                raise
            self.stop()

    def note(self, indices, losses, look):
        """Record a step's losses before its update. `look`: check all that are recorded."""
        self.unseen.append((self.run.step, indices, sum(losses.values())))
        if look or self.processes.device.type == "cpu":  # on a CPU checking costs no wait
            self.check()

    def check(self):
        """Raise UserError for the first recorded step whose loss is not finite, after saving weights that still are."""
        if not self.unseen:
            return
        losses = self.processes.sum(torch.stack([loss for *_, loss in self.unseen])).tolist()
        for (step, indices, _), loss in zip(self.unseen, losses, strict=True):
            if not math.isfinite(loss):
                # On a GPU later updates may have spoiled the weights already; then the last saved state stays.
                weights = self.run.student.state_dict().values()
                if step == self.run.step and all(weight.isfinite().all() for weight in weights):
                    self.run.save_state()
                rows = ", ".join(map(str, indices.tolist()))
                raise UserError(f"step {step + 1}: the loss is {loss}, of the rows (counted from 0) {rows}; {ADVICE}")
        self.unseen.clear()

    def stop_if_asked(self):
        """Save and exit if any process got a signal. All stop at the same step; otherwise some would wait forever."""
        signum = self.processes.max_number(self.signal)
        if signum and self.run.step < self.run.plan.total_steps:
            self.signal = signum
            self.check()
            self.stop()

    def stop(self):
        """Save, and exit with the signal's status."""
        self.run.save_state()
        logger.info("stopped at step %d; the same command goes on from here", self.run.step)
        sys.exit(128 + self.signal)


def step_seed(seed, step, rank):
    """The seed of one step's dropout in one process."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]) >> 1

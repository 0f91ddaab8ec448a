"""The training loop of all scripts, with what it needs: device, processes, precision, one state, one save, one log.

The scripts say what is learned: a `learner`, a module whose forward turns a batch into named losses. The loop says how:
which examples come when, gradients, optimizer, logging, evaluation, saving, and going on after a stop.
"""

import contextlib
import ctypes
import functools
import json
import logging
import math
import os
import random
import re
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from transformer import drawing
from transformer.data import epoch_batches, sorted_batches
from transformer.distillation import ATTENTION_LOSSES, TransformerLearner
from transformer.files import UserError, atomic_write
from transformer.modeling import WEIGHTS_NAME, save_weights
from transformer.stages import flag, format_seconds

logger = logging.getLogger(__name__)

STATE_NAME, HISTORY_NAME, CURVES_NAME = "training_state.bin", "train_log.jsonl", "curves.png"
LOG_STEPS = 50  # steps between two log lines; also the only places where the loop waits for the device
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def add_training_flags(parser):
    """The flags that both distillation scripts have."""
    group = parser.add_argument_group("training")
    flag(group, "--train_batch_size", type=int, help="examples of one optimizer step, over all processes (32)")
    flag(group, "--eval_batch_size", type=int, help="examples of one evaluation batch")
    flag(group, "--learning_rate", type=float, help="peak rate of BertAdam")
    flag(group, "--weight_decay", "--wd", type=float, help="decoupled weight decay, 0 = off (1e-4)")
    flag(group, "--num_train_epochs", type=float, help="passes over the data; fractions are allowed")
    flag(group, "--warmup_proportion", type=float, help="fraction of all steps in which the rate rises (0.1)")
    flag(group, "--gradient_accumulation_steps", type=int, help="parts a batch is computed in, to save memory (1)")
    flag(group, "--eval_step", type=int, help="evaluate and save every so many optimizer steps")
    flag(
        group,
        "--pad_to_max_length",
        action="store_true",
        help="pad every batch to the maximum and average over the padding, as the reference does",
    )
    flag(group, "--compile", action="store_true", help="compile the models: minutes at the start, faster steps on GPUs")
    group = parser.add_argument_group("what the student learns from")
    flag(
        group,
        "--layer_map",
        help="which teacher layers teach: uniform, last, top, bottom, or their numbers from 1, "
        "one for each student layer: 3,6,9,12 (uniform)",
    )
    flag(
        group,
        "--attention_loss",
        choices=ATTENTION_LOSSES,
        help="scores, as in the paper, or MiniLMv2's relations, for which the head counts may differ (scores)",
    )
    flag(group, "--attention_weight", type=float, help="factor of the attention losses (1)")
    flag(group, "--hidden_weight", type=float, help="factor of the losses of hidden states and embeddings (1)")
    group = parser.add_argument_group("device")
    flag(group, "--no_cuda", action="store_true", help="stay on the CPU")
    flag(
        group,
        "--local_rank",
        type=int,
        help="this process's number on its machine; torchrun sets it (-1 = one process)",
    )
    flag(group, "--fp16", action="store_true", help="short for --precision fp16")


@dataclass
class Launch:
    """Where this process runs: its device, its place among the processes, its arithmetic."""

    device: torch.device
    rank: int
    world_size: int
    dtype: torch.dtype
    group: object = None  # the processes as `cpu_group` makes them

    def __str__(self):
        processes = f", {self.world_size} processes" if self.world_size > 1 else ""
        return f"{self.device.type} ({str(self.dtype).removeprefix('torch.')}{processes})"

    @property
    def first(self):
        """True in the one process that logs and writes."""
        return self.rank == 0

    def autocast(self):
        """Mixed precision where asked for: weights stay float32, matrix products run in `dtype`."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def to_device(self, batch):
        if self.device.type == "cpu":
            return batch
        # Only from pinned memory does the copy run beside the computation.
        return {
            name: value.pin_memory().to(self.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }


def launch(args):
    """Choose the device, join the other processes where torchrun started several, seed, and tune. Returns a Launch."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", getattr(args, "local_rank", -1)))
    cuda = torch.cuda.is_available() and not args.no_cuda
    device = torch.device("cuda", max(local_rank, 0)) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TF32
    else:
        keep_freed_memory()
    if world_size > 1 and not distributed.is_initialized():
        threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
        distributed.init_process_group("nccl" if cuda else "gloo")
    set_seed(args.seed)
    return Launch(device, rank, world_size, choose_precision(args.precision, device))


def end_with_parent(parent):
    """End this process when `parent` has ended: torchrun's processes outlive one that was killed, and would go on
    writing beside the run that is started in its place."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def choose_precision(name, device):
    """The dtype of --precision; "auto" is bf16 on a GPU that has it, else float32."""
    if name == "auto":
        name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return PRECISIONS[name]


def set_seed(seed):
    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    torch.manual_seed(seed)


def step_seed(seed, step, rank):
    """The seed of one step's dropout on one process."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]) >> 1


def keep_freed_memory():
    """Let glibc keep freed blocks. Tensors of a few MiB that come and go otherwise cost a page fault for every 4 KiB of
    them, each step anew: half of the CPU time on short batches."""
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
        mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
        mallopt(mmap_threshold, 32 << 20)  # the highest that glibc takes
        mallopt(trim_threshold, 512 << 20)
    except (OSError, AttributeError):
        pass  # another C library: slower, nothing else


def transformer_learner(student, teacher, args):
    """The learner of general distillation and of the intermediate step, as the flags have it."""
    return TransformerLearner(
        student,
        teacher,
        args.pad_to_max_length,
        args.layer_map,
        args.attention_loss,
        args.attention_weight,
        args.hidden_weight,
    )


def claim(record, outputs, overwrite, place):
    """`OutputRecord.claim`, decided by the first process for all of them."""
    answer = None
    if place.first:
        try:
            answer = record.claim(outputs, overwrite)
        except UserError as error:
            answer = error
    answer = from_first(answer, place)
    if isinstance(answer, UserError):
        raise answer
    return answer


def from_first(value, place):
    """The first process's value, in every process."""
    if place.world_size == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def gather(value, place):
    """The values of all processes in the first one, in their order; None in the others. Not through GPUs' memory."""
    if place.world_size == 1:
        return [value]
    values = [None] * place.world_size if place.first else None
    distributed.gather_object(value, values, group=cpu_group(place))
    return values


def cpu_group(place):
    """The processes as they talk past their GPUs; all of them must come by here for the first time together."""
    if place.group is None:
        place.group = distributed.new_group(backend="gloo")
    return place.group


def sum_over_processes(tensor, place):
    """The sum of all processes' tensors, in every process."""
    if place.world_size > 1:
        distributed.all_reduce(tensor)
    return tensor


def begin(record, place):
    """`OutputRecord.begin` in the first process; the others wait, so that none goes on from a state that it removes."""
    if place.first:
        record.begin()
    wait_for_all(place)


def wait_for_all(place):
    """Let every process come this far."""
    if place.world_size > 1:
        distributed.barrier()


def leave(place):
    """Part from the other processes, all at once: one that goes while another still listens can make that one abort."""
    if place.world_size > 1:
        distributed.barrier()
        distributed.destroy_process_group()


def mean_losses(learner, sequences, batch_size, place, pad_token_id, pad_to=None):
    """A learner's losses over a data set, without training: {name: mean over its examples}."""
    sums = {}
    for indices in sorted_batches(sequences.lengths, batch_size):
        batch = place.to_device(sequences.batch(indices, pad_token_id, pad_to))
        with torch.inference_mode(), place.autocast():
            for name, value in learner(batch).items():
                sums[name] = sums.get(name, 0) + value * len(indices)
    return sum_by_kind({name: value.item() / len(sequences) for name, value in sums.items()})


def sum_by_kind(losses):
    """{"att_loss": the sum over its layers, ...} of {"att_loss/1": ..., "att_loss/2": ..., ...}."""
    sums = {}
    for name, value in losses.items():
        kind = name.split("/")[0]
        sums[kind] = sums.get(kind, 0) + value
    return sums


class Plan:
    """Which examples each step trains on, fixed before the run starts.

    Args: load_epoch(k): the `Sequences` of pass k; sizes: examples of each pass, used in turn; epochs: passes,
    fractions allowed; max_steps: a shorter run, or None. `total_steps` counts optimizer steps, the last short batch
    included.
    """

    def __init__(self, load_epoch, sizes, batch_size, epochs, seed, max_steps=None, bucketed=True):
        self.load_epoch, self.batch_size, self.seed, self.bucketed = load_epoch, batch_size, seed, bucketed
        steps = [math.ceil(size / batch_size) for size in sizes]
        whole = int(epochs)
        passes = [steps[epoch % len(steps)] for epoch in range(whole + 1)]
        passes[whole] = round((epochs - whole) * passes[whole])
        self.epoch_steps = passes
        self.total_steps = sum(self.epoch_steps)
        if max_steps is not None:
            self.total_steps = min(self.total_steps, max_steps)
        if not self.total_steps:
            raise UserError(f"--num_train_epochs {epochs}: nothing to train on")

    def batches(self, epoch):
        sequences = self.load_epoch(epoch)
        return sequences, epoch_batches(sequences.lengths, self.batch_size, self.seed, epoch, self.bucketed)

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
    {name: loss}, means over the batch's examples; optimizer; plan: Plan; place: Launch; eval_step; accumulation: parts
    of a batch; pad_to: length of every batch, or None for the longest of it; pad_token_id; evaluate(): (score or None,
    {name: number}), called every `eval_step` steps and at the end; the weights with the best score are kept, without a
    score the latest; keep_step_files: so many evaluations' weights stay as step_N_pytorch_model.bin, the latest ones;
    compiled: through torch.compile.
    """

    def __init__(
        self,
        folder,
        learner,
        optimizer,
        plan,
        place,
        *,
        eval_step,
        accumulation=1,
        pad_to=None,
        pad_token_id=0,
        evaluate=None,
        keep_step_files=0,
        compiled=False,
    ):
        self.folder, self.learner, self.optimizer, self.plan, self.place = Path(folder), learner, optimizer, plan, place
        self.eval_step, self.accumulation, self.keep_step_files = eval_step, accumulation, keep_step_files
        self.pad_to, self.pad_token_id, self.compiled = pad_to, pad_token_id, compiled
        self.evaluate = evaluate or (lambda: (None, {}))
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=place.dtype == torch.float16)
        self.step, self.best_score, self.results = 0, None, {}
        self.stop_signal = None
        self.history = History(self.folder, place)

    # --- the one state

    def save_state(self):
        """Write everything the run needs to go on, into one file. Raises UserError for weights that are no numbers."""
        self._check_weights()
        if self.place.first:
            state = {
                "model": self.learner.student.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "step": self.step,
                "best_score": self.best_score,
                "results": self.results,
            }
            with atomic_write(self.folder / STATE_NAME, "wb") as file:
                torch.save(state, file)

    def has_state(self):
        """Whether a stopped run left a state to go on from."""
        return (self.folder / STATE_NAME).is_file()

    def load_state(self):
        """Go on from a saved state, if there is one. Returns whether there was."""
        path = self.folder / STATE_NAME
        if not from_first(self.has_state(), self.place):
            return False
        if not self.has_state():
            raise UserError(f"{path}: not here, but where the first process runs; all machines need one output folder")
        try:
            state = torch.load(path, map_location=self.place.device, weights_only=True)
            self.learner.student.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.step, self.best_score, self.results = state["step"], state["best_score"], state["results"]
        except Exception as error:  # a damaged file raises many kinds
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path}: damaged ({reason}); without that file the run starts again") from error
        return True

    def evaluate_and_save(self):
        """Evaluate, keep the weights that deserve it, then save the state: a stop in between repeats this step."""
        self._check_weights()  # ahead of everything that replaces good ones
        self.learner.eval()
        score, results = self.evaluate()
        self.learner.train()
        if results:
            logger.info("step %d | %s", self.step, format_results(results))
            self.history.add({"step": self.step, "evaluation": results})
        better = score is None or self.best_score is None or score > self.best_score or math.isnan(self.best_score)
        if better and self.place.first:
            weights = self.learner.student.state_dict()
            if self.keep_step_files:
                self._save_step_file(weights)
            save_weights(weights, self.folder / WEIGHTS_NAME)
        if better:
            self.best_score, self.results = score, {"global_step": self.step, **results}
        self.save_state()

    def _save_step_file(self, weights):
        save_weights(weights, self.folder / f"step_{self.step}_{WEIGHTS_NAME}")
        found = (re.fullmatch(rf"step_(\d+)_{WEIGHTS_NAME}", path.name) for path in self.folder.iterdir())
        for step in sorted(int(match[1]) for match in found if match)[: -self.keep_step_files]:
            (self.folder / f"step_{step}_{WEIGHTS_NAME}").unlink()

    # --- the loop

    def train(self):
        """Run from wherever the state stands to the end of the plan; returns the results of the weights kept."""
        found = self.load_state()
        wait_for_all(self.place)  # all have looked before the first one writes
        if found:
            logger.info("going on from step %d of %d", self.step, self.plan.total_steps)
        else:
            self.save_state()
        learner = self._distributed_learner()
        if self.compiled:
            learner = torch.compile(learner, dynamic=True)  # batches differ in length
        self.history.start(self.step)
        meter = Meter(self.plan.total_steps, self.step, self.place)
        suspects = []  # steps whose losses nobody has looked at: looking waits for the device
        self.learner.train()
        quiet = None if self.place.first else True  # None: a bar on terminals only
        bar = tqdm(total=self.plan.total_steps, initial=self.step, unit="step", disable=quiet)
        with self._catch_signals(), bar, logging_redirect_tqdm():
            for sequences, indices in self.plan.steps(self.step):
                # Each step draws from its own seed: a run that goes on draws what an uninterrupted one would.
                torch.manual_seed(step_seed(self.plan.seed, self.step, self.place.rank))
                losses = self._forward_backward(learner, sequences, indices)
                meter.add(losses, len(indices), sequences.lengths[indices].sum())
                suspects.append((self.step, indices, sum(losses.values())))
                if self.place.device.type == "cpu":  # where looking costs no wait
                    self._check_finite(suspects)
                rate = self.optimizer.get_lr()
                self.scaler.step(self.optimizer)
                self.scaler.update()
                self.optimizer.zero_grad(set_to_none=True)
                self.step += 1
                self.optimizer.advance_to(self.step)  # where float16 overflowed, no update was made
                bar.update()
                last = self.step == self.plan.total_steps
                # Once in so many optimizer steps and always at the end; the reference asks at each part of a batch, and
                # keeps nothing of what comes after the last multiple.
                evaluating = last or self.step % self.eval_step == 0
                if evaluating or self.step % LOG_STEPS == 0:
                    # Before saving: weights that are no numbers must not replace good ones.
                    self._check_finite(suspects)
                    self.history.add(meter.log(self.step, rate))
                if evaluating:
                    self.evaluate_and_save()
                    meter.resume()
                stop = self._stop_signal_of_any()
                if stop and not last:
                    self._check_finite(suspects)
                    self.save_state()
                    logger.info("stopped at step %d; the same command goes on from here", self.step)
                    sys.exit(128 + stop)
        return self.results

    def _forward_backward(self, learner, sequences, indices):
        """Gradient of one global batch, of which this process computes every world_size-th example, in parts."""
        mine = indices[self.place.rank :: self.place.world_size]
        size = math.ceil(len(mine) / self.accumulation)
        parts = [mine[start : start + size] for start in range(0, len(mine), size or 1)]
        totals = {}
        for number, part in enumerate(parts or [indices[:1]]):
            batch = self.place.to_device(sequences.batch(part, self.pad_token_id, self.pad_to))
            # Losses are means over examples; these weights make the parts' sum the mean over the global batch. A
            # process without examples (in a last short batch) goes through the motions with weight 0.
            weight = len(part) / len(indices) if parts else 0.0
            last = number == len(parts) - 1 or not parts
            with contextlib.nullcontext() if last or self.place.world_size == 1 else learner.no_sync():
                with self.place.autocast():
                    losses = learner(batch)
                loss = sum(losses.values()) * (weight * self.place.world_size)  # DDP averages over the processes
                self.scaler.scale(loss).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value.detach() * weight
        self.scaler.unscale_(self.optimizer)
        return totals

    def _check_finite(self, suspects):
        """Raise UserError for the first of some steps, (number, its examples, loss), whose loss is no number; forget
        them otherwise. Where the weights are still good, those before that step, they are saved."""
        if not suspects:
            return
        losses = sum_over_processes(torch.stack([loss for *_, loss in suspects]), self.place).tolist()
        for (step, indices, _), loss in zip(suspects, losses, strict=True):
            if not math.isfinite(loss):
                weights = self.learner.student.state_dict().values()
                if step == self.step and all(weight.isfinite().all() for weight in weights):
                    self.save_state()
                rows = ", ".join(map(str, indices.tolist()))
                raise UserError(
                    f"step {step + 1}: the loss is {loss}, of the rows (counted from 0) {rows}; {STATE_NAME} is from "
                    "before it; a lower --learning_rate or --precision fp32 may help"
                )
        suspects.clear()

    def _check_weights(self):
        """Raise UserError where the last update left weights that are no numbers."""
        for name, weight in self.learner.student.state_dict().items():
            if not weight.isfinite().all():
                raise UserError(
                    f"step {self.step}: its update left {name} with NaN or infinite numbers; {STATE_NAME} is from "
                    "before it; a lower --learning_rate or --precision fp32 may help"
                )

    def _stop_signal_of_any(self):
        """The signal that some process got, 0 = none: all stop at the same step, or the others would wait for ever."""
        if self.place.world_size == 1:
            return self.stop_signal or 0
        signals = torch.tensor([self.stop_signal or 0])  # between the CPUs, so that nobody waits for a GPU
        distributed.all_reduce(signals, op=distributed.ReduceOp.MAX, group=cpu_group(self.place))
        return int(signals)

    def _distributed_learner(self):
        if self.place.world_size == 1:
            return self.learner
        devices = [self.place.device] if self.place.device.type == "cuda" else None
        return DistributedDataParallel(self.learner, device_ids=devices, find_unused_parameters=True)

    @contextlib.contextmanager
    def _catch_signals(self):
        """Ctrl-C and SIGTERM end the loop after the step at hand, with a saved state; a second one ends it at once."""

        def note(signum, frame):
            if self.stop_signal is not None:
                raise KeyboardInterrupt
            self.stop_signal = signum

        before = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def finish(self):
        """The run's files are complete: nothing is left to go on from."""
        if self.place.first:
            (self.folder / STATE_NAME).unlink(missing_ok=True)
            try:
                self.history.draw()
            except Exception as error:  # a matplotlib that is there and broken must not cost a run its end
                logger.warning("no %s: %s", CURVES_NAME, error)


class Meter:
    """Averages of the losses between two log lines, and speed, time left and memory."""

    def __init__(self, total_steps, first_step, place):
        self.total_steps, self.first_step, self.place = total_steps, first_step, place
        self.started = time.monotonic()
        self._restart()

    def _restart(self):
        self.sums, self.steps, self.examples, self.tokens, self.since = {}, 0, 0, 0, time.monotonic()

    def resume(self):
        """An evaluation is over: its time is no training step's."""
        self.since = time.monotonic()

    def add(self, losses, examples, tokens):
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.steps, self.examples, self.tokens = self.steps + 1, self.examples + examples, self.tokens + int(tokens)

    def log(self, step, rate):
        """One line; returns its numbers, each layer's losses too."""
        if self.place.world_size > 1:
            for value in self.sums.values():  # each process has the sum over its own examples
                distributed.all_reduce(value)
        # .item() waits for the device; this is the only place of the loop that does.
        losses = {name: value.item() / self.steps for name, value in self.sums.items()}
        now = time.monotonic()
        seconds = max(now - self.since, 1e-9)
        left = (now - self.started) / max(step - self.first_step, 1) * (self.total_steps - step)
        logger.info(
            "step %d/%d | %s | lr %.2e | %.0f examples/s %.0f tokens/s | %s left | %.2f GB",
            step,
            self.total_steps,
            format_results(sum_by_kind(losses)),
            rate,
            self.examples / seconds,
            self.tokens / seconds,
            format_seconds(left),
            peak_memory(self.place.device),
        )
        entry = {
            "step": step,
            "losses": losses,
            "learning_rate": rate,
            "examples_per_second": self.examples / seconds,
            "tokens_per_second": self.tokens / seconds,
            "memory_gb": peak_memory(self.place.device),
        }
        self._restart()
        return entry


class History:
    """train_log.jsonl, what the log lines tell as numbers and each layer's losses too, and curves.png drawn from it.

    Only the first process writes.
    """

    def __init__(self, folder, place):
        self.path, self.curves, self.place = folder / HISTORY_NAME, folder / CURVES_NAME, place

    def start(self, step):
        """Forget what a killed run noted after its last saved step: it comes again."""
        if self.place.first:
            entries = drawing.read_history(self.path) if self.path.is_file() else []
            with atomic_write(self.path) as file:
                file.writelines(json.dumps(entry) + "\n" for entry in entries if entry["step"] <= step)

    def add(self, entry):
        if self.place.first:
            try:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")
            except OSError as error:
                raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error

    def draw(self):
        """Losses and evaluations by step, where matplotlib is installed."""
        curves = drawing.read_curves(self.path)
        panels = [
            functools.partial(drawing.lines, title=kind, curves=found, log=kind == "losses")
            for kind, found in curves.items()
            if found
        ]
        drawing.save_panels(self.curves, panels)


def peak_memory(device):
    """Peak memory of this process so far in GB: the GPU's where one is used."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def format_results(results):
    return " ".join(
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}" for name, value in results.items()
    )

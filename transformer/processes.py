"""The processes of a run: device, rank, precision, and communication between them."""

import contextlib
import ctypes
import functools
import os
import random
import threading
import time
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from transformer.files import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Processes:
    """This process's rank among those that torchrun started (or alone), its device and its precision."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    dtype: torch.dtype = torch.float32
    teacher_precision: str | None = None  # fp32, bf16 or int8; None = as the models

    def __str__(self):
        processes = f", {self.world_size} processes" if self.world_size > 1 else ""
        return f"{self.device.type} ({str(self.dtype).removeprefix('torch.')}{processes})"

    @property
    def first(self):
        """True in the process that logs and writes, rank 0."""
        return self.rank == 0

    def autocast(self):
        """A context for mixed precision: weights stay float32, matrix products run in `dtype`."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def narrow(self, teacher):
        """A teacher with its weights in `dtype`, on a GPU only. Mixed precision, which suits weights that are trained,
        would convert them anew in every step, and the hidden states twice a layer."""
        return teacher.to(self.dtype) if self.device.type == "cuda" else teacher

    def to_device(self, batch):
        """Move a batch, {name: tensor or None}, to the device."""
        if self.device.type == "cpu":
            return batch
        # Only copies from pinned memory overlap with computation.
        return {
            name: value.pin_memory().to(self.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }

    def from_first(self, function):
        """Call `function` in the first process. Every process returns its result or raises its error."""
        if self.world_size == 1:
            return function()
        answer = [None]
        if self.first:
            try:
                answer = [function()]
            except Exception as error:  # otherwise the others would wait forever
                answer = [error]
        distributed.broadcast_object_list(answer)
        if isinstance(answer[0], Exception):
            raise answer[0]
        return answer[0]

    def gather(self, value):
        """The values of all processes by rank, in the first process; None in the others. Uses no GPU memory."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size if self.first else None
        distributed.gather_object(value, values, group=self.cpu_group)
        return values

    def sum(self, tensor):
        """Add up a tensor over all processes, in place. Returns it in every process."""
        if self.world_size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def max_number(self, number):
        """The largest of all processes' integers, in every process. Does not wait for a GPU."""
        if self.world_size == 1:
            return number
        numbers = torch.tensor([number])
        distributed.all_reduce(numbers, op=distributed.ReduceOp.MAX, group=self.cpu_group)
        return int(numbers)

    @functools.cached_property
    def cpu_group(self):
        """The group for communication on the CPU. All processes must make the first access together."""
        return distributed.new_group(backend="gloo")

    def barrier(self):
        """Wait until every process is here."""
        if self.world_size > 1:
            distributed.barrier()

    def leave(self):
        """Leave the process group."""
        if self.world_size > 1:
            distributed.barrier()  # a process that leaves early can make the others abort
            distributed.destroy_process_group()

    def wrap(self, module):
        """The module, with gradients averaged over the processes."""
        if self.world_size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=True)


def start(seed, precision="auto", no_cuda=False, local_rank=-1, teacher_precision=None):
    """Choose the device, join the other processes that torchrun started, and seed. Returns `Processes`."""
    rank, world_size, local_rank = places(local_rank)
    cuda = torch.cuda.is_available() and not no_cuda
    device = torch.device("cuda", max(local_rank, 0)) if cuda else torch.device("cpu")
    teacher_precision = choose_teacher_precision(teacher_precision, device)
    if cuda:
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TF32
        # cuDNN's attention is planned anew for every length of a batch, which takes longer than a step.
        torch.backends.cuda.enable_cudnn_sdp(False)
    else:
        keep_freed_memory()
    if world_size > 1 and not distributed.is_initialized():
        threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
        # Hours, because the others wait while the first process uploads a finished output.
        distributed.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(hours=6))
    set_seed(seed)
    return Processes(device, rank, world_size, choose_precision(precision, device), teacher_precision)


def places(local_rank):
    """(rank, number of processes, rank on this machine). Raises UserError where the environment has other values than
    torchrun sets, or only a part of them."""
    usual = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": local_rank}
    found = {name: value for name, value in os.environ.items() if name in (*usual, "MASTER_ADDR")}
    with contextlib.suppress(ValueError):
        rank, world_size, local_rank = (int(found.get(name, number)) for name, number in usual.items())
        together = ("RANK" in found) == ("WORLD_SIZE" in found) and (world_size == 1 or "MASTER_ADDR" in found)
        if together and 0 <= rank < world_size:
            return rank, world_size, local_rank
    told = " ".join(f"{name}={value}" for name, value in found.items())
    raise UserError(f"{told} in the environment: expected all that torchrun sets, or nothing; unset what is left of it")


def end_with_parent(parent):
    """End this process when `parent` has ended."""
    # Workers outlive a killed torchrun, and would keep writing to the output of the run that is started next.
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def choose_precision(name, device):
    """The dtype for --precision; "auto" is bf16 on a GPU that supports it, else float32."""
    if name == "auto":
        name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return PRECISIONS[name]


def choose_teacher_precision(name, device):
    """The meaning of --teacher_precision: fp32, bf16, int8, or None for that of the models. Raises UserError for int8
    on a GPU. "auto" asks what the processor has and measures nothing, so that a resumed run chooses the same."""
    if name == "int8" and device.type != "cpu":
        raise UserError("--teacher_precision int8: for CPUs only; expected auto, fp32 or bf16 on a GPU, or --no_cuda")
    if name == "auto":
        return "int8" if device.type == "cpu" and torch.backends.cpu.get_cpu_capability().startswith("AVX") else None
    return name


def set_seed(seed):
    """Seed all global random generators."""
    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    torch.manual_seed(seed)


def keep_freed_memory():
    """Let glibc keep freed blocks, which its allocator otherwise returns to the system."""
    # Tensors of a few MiB would cost a page fault per 4 KiB in every step: half of the CPU time on short batches.
    with contextlib.suppress(OSError, AttributeError, TypeError):  # other C libraries stay as they are
        mallopt = ctypes.CDLL(None).mallopt
        mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
        mallopt(mmap_max, 0)  # a block mapped on its own, such as an embedding's gradient, would be returned
        mallopt(trim_threshold, 512 << 20)

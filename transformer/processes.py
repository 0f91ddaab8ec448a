"""The processes of a run: device, rank, precision, and everything that several of them do together."""

import contextlib
import ctypes
import functools
import os
import random
import threading
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Processes:
    """This process among those that torchrun started (or alone), its device and its arithmetic."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    dtype: torch.dtype = torch.float32

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
        """A batch, {name: tensor or None}, on the device."""
        if self.device.type == "cpu":
            return batch
        # Only from pinned memory does the copy run beside the computation.
        return {
            name: value.pin_memory().to(self.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }

    def from_first(self, function):
        """What `function()` gives in the first process, in every process; an error of it is raised in every process."""
        if self.world_size == 1:
            return function()
        answer = [None]
        if self.first:
            try:
                answer = [function()]
            except Exception as error:  # the others must not wait for an answer that never comes
                answer = [error]
        distributed.broadcast_object_list(answer)
        if isinstance(answer[0], Exception):
            raise answer[0]
        return answer[0]

    def gather(self, value):
        """The values of all processes in the first one, by rank; None in the others. Not through GPUs' memory."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size if self.first else None
        distributed.gather_object(value, values, group=self.cpu_group)
        return values

    def sum(self, tensor):
        """The sum of all processes' tensors, in place, in every process."""
        if self.world_size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def max_number(self, number):
        """The largest of all processes' whole numbers, in every process. Nobody waits for a GPU."""
        if self.world_size == 1:
            return number
        numbers = torch.tensor([number])
        distributed.all_reduce(numbers, op=distributed.ReduceOp.MAX, group=self.cpu_group)
        return int(numbers)

    @functools.cached_property
    def cpu_group(self):
        """The processes as they talk past their GPUs; all of them must ask for the first time together."""
        return distributed.new_group(backend="gloo")

    def barrier(self):
        """Let every process come this far."""
        if self.world_size > 1:
            distributed.barrier()

    def leave(self):
        """Part from the others, all at once: one that goes while another still listens can make that one abort."""
        if self.world_size > 1:
            distributed.barrier()
            distributed.destroy_process_group()

    def wrap(self, module):
        """The module with gradients that are averaged over the processes."""
        if self.world_size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=True)


def start(seed, precision="auto", no_cuda=False, local_rank=-1):
    """Choose the device, join the other processes where torchrun started several, seed, and tune. Returns Processes."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", local_rank))
    cuda = torch.cuda.is_available() and not no_cuda
    device = torch.device("cuda", max(local_rank, 0)) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TF32
    else:
        keep_freed_memory()
    if world_size > 1 and not distributed.is_initialized():
        threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
        distributed.init_process_group("nccl" if cuda else "gloo")
    set_seed(seed)
    return Processes(device, rank, world_size, choose_precision(precision, device))


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
    """Seed every generator that is not passed on as an argument."""
    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    torch.manual_seed(seed)


def keep_freed_memory():
    """Let glibc keep freed blocks. Tensors of a few MiB that come and go otherwise cost a page fault for every 4 KiB of
    them, each step anew: half of the CPU time on short batches."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library: slower, nothing else
        mallopt = ctypes.CDLL(None).mallopt
        mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
        mallopt(mmap_threshold, 32 << 20)  # the highest that glibc takes
        mallopt(trim_threshold, 512 << 20)

"""int8 models for CPUs: matrices as whole numbers with a float32 scale for each row. They cannot be trained.

Activations are quantized as they come, each token by its own range: nothing has to be calibrated, and no answer depends
on the rest of its batch. Shapes: O x I a matrix.
"""

import logging
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from transformer.processes import PRECISIONS

INT8 = "int8"  # `quantized` in config.json


class Int8(nn.Module):
    """A matrix (O, I) in int8. Names and types of its tensors are those of the model folder."""

    def __init__(self, matrix):
        super().__init__()
        matrix = matrix.detach()
        # A row of zeros, [PAD]'s for one, must not be divided by 0.
        scale = (matrix.abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        numbers = (matrix / scale[:, None]).round().to(torch.int8)
        self.int8_weight = nn.Parameter(numbers, requires_grad=False)
        self.register_buffer("scale", scale)

    def matrix(self):
        """The matrix in float32."""
        return self.int8_weight * self.scale[:, None]


class Int8Embedding(Int8):
    def forward(self, ids):
        return F.embedding(ids, self.int8_weight) * F.embedding(ids, self.scale[:, None])


class Int8Linear(Int8):
    def __init__(self, linear):
        super().__init__(linear.weight)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        self.packed = self.sums = None  # the matrix in the layout of the CPU's kernel, and the sums of its rows
        self.register_load_state_dict_post_hook(lambda module, _: setattr(module, "packed", None))

    def forward(self, hidden):
        on_cpu = hidden.device.type == "cpu"
        if on_cpu and self.packed is None and torch.backends.quantized.engine != "none":
            self.prepare()
        if not on_cpu or self.packed is None:
            return F.linear(hidden, self.matrix().to(hidden.dtype), self.bias)
        # The kernel has one range for all tokens. Each token is stretched to 0..1, so that the range is that of each.
        hidden = hidden.detach().float()  # some kernels cannot be recorded
        low = hidden.amin(-1, keepdim=True)
        width = (hidden.amax(-1, keepdim=True) - low).clamp_min(torch.finfo(torch.float32).tiny)
        # Activations get 7 bits: with 8 the sums of a CPU without VNNI instructions overflow.
        product = torch.ops.quantized.linear_dynamic((hidden - low).div_(width), self.packed, reduce_range=True)
        product = product.mul_(width).addcmul_(low, self.sums)
        return product if self.bias is None else product.add_(self.bias)

    def prepare(self, engine=None):
        """Bring the matrix into the layout of a kernel, see `pack`."""
        matrix = self.matrix()
        self.packed, self.sums = pack(matrix, self.scale, engine), matrix.sum(1)


def pack(matrix, scale, engine=None):
    """The object that PyTorch's int8 kernel takes for a linear map. `engine`: the kernel's name, None or where there is
    none of that name PyTorch's own choice."""
    chosen = torch.backends.quantized.engine
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor")  # the only type of weight that it takes
        zeros = torch.zeros(len(scale), dtype=torch.long)
        quantized = torch.quantize_per_channel(matrix, scale, zeros, 0, torch.qint8)
    try:
        if engine in torch.backends.quantized.supported_engines:
            torch.backends.quantized.engine = engine
        return torch.ops.quantized.linear_prepack(quantized, None)
    finally:
        torch.backends.quantized.engine = chosen


def quantize(model, embeddings=True):
    """Replace the linear maps and, if wanted, the embeddings inside a model by int8 ones. Returns the model."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.Linear):
                setattr(parent, name, Int8Linear(module))
            elif embeddings and isinstance(module, nn.Embedding):
                setattr(parent, name, Int8Embedding(module.weight))
    return model


def set_precision(teacher, here):
    """Bring a frozen teacher into the precision in which it teaches, in place. Returns the teacher."""
    if not here.teacher_precision:
        return here.narrow(teacher)
    logging.info("teacher in %s (--teacher_precision)", here.teacher_precision)
    if here.teacher_precision == INT8:
        quantize(teacher.bert, embeddings=False)  # the embeddings cost no time, and errors there reach every layer
        # oneDNN's kernel is a tenth faster for hundreds of tokens than what PyTorch chooses on a processor without VNNI
        # instructions; for a single text it is slower.
        for module in teacher.bert.modules() if torch.backends.quantized.engine in ("x86", "fbgemm") else ():
            if isinstance(module, Int8Linear):
                module.prepare("onednn")
    else:
        teacher.to(PRECISIONS[here.teacher_precision])
    for module in (teacher, teacher.bert):  # what is mixed around it, --precision, is the student's
        module.forward = torch.autocast(here.device.type, enabled=False)(module.forward)
    return teacher

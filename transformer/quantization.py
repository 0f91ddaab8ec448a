"""int8 models for CPUs: matrices as whole numbers with a float32 scale for each row. They cannot be trained.

Activations are quantized as they come, by the range of their batch, so nothing has to be calibrated. Shapes: O x I a
matrix.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import nn

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
        self.packed = None  # the matrix in the layout of the CPU's kernel
        self.register_load_state_dict_post_hook(lambda module, _: setattr(module, "packed", None))

    def forward(self, hidden):
        on_cpu = hidden.device.type == "cpu"
        if on_cpu and self.packed is None and torch.backends.quantized.engine != "none":
            self.packed = pack(self.matrix(), self.scale, self.bias)
        if not on_cpu or self.packed is None:
            return F.linear(hidden, self.matrix().to(hidden.dtype), self.bias)
        # Activations get 7 bits: with 8 the sums of a CPU without VNNI instructions overflow.
        return torch.ops.quantized.linear_dynamic(hidden.float(), self.packed, reduce_range=True)


def pack(matrix, scale, bias):
    """The object that PyTorch's int8 kernel takes for a linear map."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor")  # the only type of weight that it takes
        zeros = torch.zeros(len(scale), dtype=torch.long)
        quantized = torch.quantize_per_channel(matrix, scale, zeros, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(quantized, bias)


def quantize(model):
    """Replace the linear maps and embeddings inside a model by int8 ones. Returns the model."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.Linear):
                setattr(parent, name, Int8Linear(module))
            elif isinstance(module, nn.Embedding):
                setattr(parent, name, Int8Embedding(module.weight))
    return model

"""The one reader of arrays and tensors. Nothing is allocated before a file's own size has confirmed what it claims.

Torch is imported where it is used: pregeneration reads arrays and starts ten times as fast without it.
"""

import math
import os
import pickle
import warnings
import zipfile

import numpy as np

from transformer.console import out_of_memory
from transformer.files import UserError


def read_array(path, dtypes, ndim=1):
    """The array in a .npy file, mapped, not read. Raises ValueError for other dtypes, dimensions or sizes, OSError."""
    with open(path, "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        except Exception as error:  # NumPy raises many kinds for a damaged header
            raise ValueError("no array of NumPy's in it") from error
        size = os.stat(path).st_size - file.tell()
    if dtype not in dtypes or len(shape) != ndim or math.prod(shape) * dtype.itemsize != size:
        wanted = " or ".join(map(str, dtypes))
        raise ValueError(f"an array {shape} of {dtype}, expected {ndim} dimensions of {wanted} that fill the file")
    return np.load(path, mmap_mode="r", allow_pickle=False)


def read_tensors(path):
    """The tensors of a checkpoint, {key: tensor}. Raises UserError: damaged, code inside, anything but plain weights.
    Reads .safetensors, and else what torch.save wrote."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = read_pickle(path)
    except ImportError:
        raise UserError(f"{path}: needs the safetensors package: pip install safetensors") from None
    except pickle.UnpicklingError:
        raise UserError(f"{path}: holds more than tensors (or is damaged), refused") from None
    except Exception as error:  # both readers raise many kinds of errors for a damaged file, none of them documented
        if out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot be read as weights: {reason}") from error
    check_tensors(state, path)
    return state


def read_pickle(path, device="cpu"):
    """What torch.save wrote, unchecked. Raises whatever torch does, pickle.UnpicklingError for anything but data."""
    import torch

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > os.stat(path).st_size:
                raise ValueError("its parts are larger than the file")  # compressed, which torch.save never does
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about strange files; what is wrong with them is told in one line
        # weights_only: a pickle can contain code, and a downloaded model must not run any
        return torch.load(path, map_location=device, weights_only=True)


def check_tensors(state, path):
    """Raise UserError where {key: tensor} holds anything but weights that fit into float32, and ids."""
    import torch

    floats = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    texts = isinstance(state, dict) and all(isinstance(key, str) for key in state)
    if not texts or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: expected a dictionary of tensors")
    for key, value in state.items():
        dense = value.layout == torch.strided and not (value.is_nested or value.is_meta or value.is_quantized)
        stored = dense and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
        whole = {"_ids": torch.int64, "int8_weight": torch.int8}  # by the end of a key
        if not stored or value.dtype not in (*floats, *(kind for end, kind in whole.items() if key.endswith(end))):
            kind = "nested" if value.is_nested else f"{value.layout}, {value.device.type}".removeprefix("torch.")
            found = f"a tensor of {value.dtype} ({kind}{', repeated' * (dense and not stored)})"
            raise UserError(f"{path}: {key} is {found}, expected plain floating-point numbers")
        if not torch.isfinite(value.float()).all():
            raise UserError(f"{path}: {key} holds NaN or infinite numbers: damaged, or its training failed")

"""What is wrong in broken files, made from the descriptions that their readers are held against: a field that a
description gains is tried from then on. Shared by test_fuzz.py and benchmarks/broken_files.py."""

import importlib
import io
import json
import math
import warnings

import numpy as np
import torch
from hypothesis import strategies as st
from tiny import ROOT

from transformer.json_file import NULL, Field

ANYTHING = (None, True, 7, -1, 0, 0.5, math.nan, math.inf, 10**400, 10**18, "x", "", [], {}, [[]], {"a": {}})
ANYTHING += ("9" * 10_001,)
# Texts that are no file of any kind.
NO_OBJECTS = {
    "empty": b"",
    "half": b'{"a": 1, "b": [',
    "a list": b"[]",
    "null": b"null",
    "deep lists": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a": ' * 100_000,
    "60 deep": b'{"a": ' + b"[" * 60 + b"]" * 60 + b"}",
    "5,000 digits": b'{"a": ' + b"7" * 5000 + b"}",
    "not UTF-8": b'{"a": "\xff"}',
    "zeros": bytes(1000),
    "too large": b'{"a": [' + b"[]," * (12 << 20) + b"[]]}",
}


def descriptions():
    """{room and name: {key: Field}} of every description in the scripts and the package."""
    found = {}
    paths = [*ROOT.glob("*.py"), *(ROOT / "transformer").rglob("*.py")]
    for path in sorted(path for path in paths if path.name != "__init__.py" and "Field" in path.read_text()):
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for name, value in vars(module).items():
            fields = isinstance(value, dict) and value and all(isinstance(field, Field) for field in value.values())
            if fields and not any(value is each for each in found.values()):  # an import of another room's
                found[f"{module.__name__}.{name}"] = value
    return found


def wrong_values(field):
    """Values that a field does not allow: other types, beyond its bounds, one wrong item."""
    values = [*ANYTHING, field.low and field.low - 1, field.high + 1, field.high * 2]
    if field.of:
        values += [[each] for each in wrong_values(field.of)] + [{"a": each} for each in wrong_values(field.of)]
    return [value for value in values if not field.fits(value)]


def wrong_objects(valid, fields, every=5):
    """{what is wrong: bytes of the file} of a valid object with one thing wrong: of each field's wrong values one in
    `every`, other ones for each field."""
    files = {}
    for number, (key, field) in enumerate(fields.items()):
        if field.needed:
            files[f"no {key}"] = {name: value for name, value in valid.items() if name != key}
        for value in wrong_values(field)[number % every :: every]:
            files[f"{key} {json.dumps(value)[:20]}"] = {**valid, key: value}
    return {name: json.dumps(value).encode() for name, value in files.items()}


def valid(field):
    """A strategy for the values that a field allows."""
    low, high = (-math.inf, math.inf) if field.low is None else (field.low, field.high)
    least, most = max(0, int(max(low, 0))), int(min(high, max(low, 0) + 4))
    inner = st.integers() if field.of is None else valid(field.of)
    unique = str if field.distinct else None
    kinds = {
        NULL: st.none(),
        bool: st.booleans(),
        int: st.integers(None if low < -1e300 else math.ceil(low), None if high > 1e300 else math.floor(high)),
        float: st.floats(low, high, allow_nan=False),
        str: st.text(st.characters(exclude_categories=["Cs"]), min_size=least, max_size=most),
        list: st.lists(inner, min_size=least, max_size=most, unique_by=unique),
        dict: st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, min_size=least, max_size=most),
    }
    values = st.sampled_from(field.choices) if field.choices else st.one_of(*(kinds[kind] for kind in field.kinds))
    return values.filter(field.fits)


def valid_objects(fields):
    """A strategy for the objects that a description allows."""
    needed = {key: valid(field) for key, field in fields.items() if field.needed}
    return st.fixed_dictionaries(needed, optional={key: valid(fields[key]) for key in fields.keys() - needed})


def one_wrong(fields):
    """A strategy for (an object with one thing wrong, the key)."""
    wrong = {key: wrong_values(field) for key, field in fields.items()}

    @st.composite
    def spoilt(draw):
        found, key = draw(valid_objects(fields)), draw(st.sampled_from(sorted(fields)))
        if fields[key].needed and draw(st.booleans()):
            return {name: value for name, value in found.items() if name != key}, key
        return {**found, key: draw(st.sampled_from(wrong[key]))}, key

    return spoilt()


def wrong_tensors(shape=(3, 5)):
    """{what is wrong: a tensor of this shape that cannot be a weight}."""
    plain = torch.ones(shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of these are experimental
        tensors = {
            "sparse": plain.to_sparse(),
            "compressed": plain.to_sparse_csr() if len(shape) == 2 else plain.to_sparse(),
            "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "quantized": torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
            "meta": plain.to("meta"),
            "complex": plain.to(torch.complex64),
            "boolean": plain.bool(),
            "float8": plain.to(torch.float8_e4m3fn),
            "int8": plain.to(torch.int8),
            "int64": plain.long(),
            "float64 beyond float32": plain.double() * 1e300,
            "NaN": plain * math.nan,
            "infinite": plain / 0,
            "a number repeated": torch.ones(1).expand(shape),
            "terabytes": torch.ones(1).expand(10**6, 10**6),
        }
    return tensors


def wrong_arrays(array):
    """{what is wrong: bytes of the .npy file} made from a valid array."""
    files = {"empty": b"", "PK": b"PK\x03\x04" + bytes(100), "text": b"no array", "zeros": bytes(500)}

    def saved(value, save=np.save):
        file = io.BytesIO()
        save(file, value)
        return file.getvalue()

    whole = saved(array)
    files |= {"npz": saved(array, np.savez), "half": whole[: len(whole) // 2], "only the magic": whole[:6]}
    files |= {"a byte more": whole + b"\0", "cut": whole[:-1]}
    others = {"2-D for 1-D, 1-D for 2-D": array[None] if array.ndim == 1 else array.ravel(), "scalar": np.array(5)}
    others |= {"objects": np.array([{}, 1], dtype=object), "complex": np.ones(3, complex), "texts": np.array(["a"])}
    others |= {"int64": np.arange(5), "float64": np.ones((3, 5))[: array.ndim], "none": array[:0]}
    files |= {name: saved(value) for name, value in others.items()}
    shapes = {"terabytes": (1 << 42,), "negative": (-5,), "overflow": (1 << 62, 8), "no shape": "(" * 900}
    for title, shape in shapes.items():
        file = io.BytesIO()
        described = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, described)
        files[title] = file.getvalue() + bytes(64)
    return files

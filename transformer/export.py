"""--do_export: a finished student for use elsewhere, each form in a folder of its own: int8/, onnx/, safetensors/.

An export is an output like any other: it is left alone when it is finished, and refused when it was made from weights
that the student no longer has. Shapes: B batch, L tokens, C head outputs.
"""

import contextlib
import copy
import importlib.util
import io
import logging
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from transformer.checkpoint import CONFIG_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME, check_float
from transformer.console import out_of_memory
from transformer.evaluation import Candidate, Runner
from transformer.files import UserError, atomic_write
from transformer.flags import EVALUATION
from transformer.outputs import Output, fingerprint, read_record
from transformer.quantization import INT8, quantize

EXPORT = "export"  # the script in the record
SCRIPT_NAME, ONNX_NAME, ONNX_INT8_NAME = "model.pt", "model.onnx", "model_int8.onnx"
# {form: (the file that is written last, the packages that it takes)}
FORMS = {
    "int8": (WEIGHTS_NAME, ()),
    "onnx": (ONNX_INT8_NAME, ("onnx", "onnxscript", "onnxruntime")),
    "safetensors": (SAFE_WEIGHTS_NAME, ("safetensors",)),
}
WITH_WEIGHTS = (WEIGHTS_NAME, SAFE_WEIGHTS_NAME, SCRIPT_NAME, ONNX_NAME, ONNX_INT8_NAME)
WRITTEN = (*WITH_WEIGHTS, CONFIG_NAME, "vocab.txt", "tokenizer_config.json")  # what an export replaces
# {form: {column of the report: file}}
PROGRAMS = {"int8": {"int8 model.pt": SCRIPT_NAME}, "onnx": {"onnx": ONNX_NAME, "onnx int8": ONNX_INT8_NAME}}
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def export(run, student, place, forms):
    """Write a student in these forms, each into its folder in `place`. Raises UserError: a model without a head for the
    run's task, a missing package, an existing export of another student. Only the first process may call it."""
    for form in forms:
        if missing := find_missing(form):
            raise UserError(f"--do_export {form}: needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    model, tokenizer = run.load_finished(student)
    check_float(model.config, student)
    for form in dict.fromkeys(forms):
        own = replace(run.provenance, script=EXPORT, settings={"do_export": form}, counted=frozenset(["do_export"]))
        folder = Path(place) / form
        with Output(folder / FORMS[form][0], own, {"student_model": student}, replaces=WRITTEN) as output:
            if not output.finished:
                output.begin()
                written = copy.deepcopy(model).eval().cpu()
                WRITERS[form](written, folder)
                written.config.save_pretrained(folder, model.architecture)
                tokenizer.save_pretrained(folder, model.config.max_position_embeddings)
                files = [folder / name for name in WITH_WEIGHTS if (folder / name).is_file()]
                sizes = (f"{file.name} {file.stat().st_size / 1e6:.1f} MB" for file in files)
                output.finish(f"{form}: {', '.join(sizes)}")


def find_missing(form):
    """The packages that a form takes and that are not installed."""
    return [name for name in FORMS[form][1] if importlib.util.find_spec(name) is None]


class LogitsOf(nn.Module):
    """A classifier as others call it: named inputs (B, L), logits (B, C) or, of each token, (B, L, C); where these
    have names of their own, a tuple of (B, L)."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids):
        logits = self.model(input_ids, token_type_ids, attention_mask)[0]
        return logits.unbind(-1) if self.model.output_names[1:] else logits


def example_inputs():
    """A small batch to trace a model with, with padding in it: input ids, attention mask, token types."""
    ids = torch.ones(2, 3, dtype=torch.long)
    mask = ids.clone()
    mask[1, 2] = 0
    return ids, mask, torch.zeros_like(ids)


@contextlib.contextmanager
def silence():
    """Keep the exporters' notes on their own insides from the user's log."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.filterwarnings("ignore")
            yield
    finally:
        logging.disable(level)


def write_int8(model, folder):
    """Write the weights for this suite, and model.pt, which PyTorch runs without it."""
    quantize(model.bert)
    model.config.quantized = INT8
    # torch.export cannot save the int8 kernels' packed weights; TorchScript can.
    with silence(), torch.no_grad(), atomic_write(folder / SCRIPT_NAME, "wb") as file:
        logits_of = LogitsOf(model)
        logits_of(*example_inputs())  # packs the weights, so that the trace finds them packed
        torch.jit.save(torch.jit.freeze(torch.jit.trace(logits_of, example_inputs()).eval()), file)
    model.save_pretrained(folder)


def write_onnx(model, folder):
    """Write model.onnx in float32 and model_int8.onnx, with inputs and output named as Hugging Face Optimum does."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    export_onnx(model, folder / ONNX_NAME)
    # onnxruntime has one scale for all embeddings of a matrix, which is coarse; ours have one for each row.
    quantize(model.bert.embeddings)
    export_onnx(model, folder / ONNX_INT8_NAME)
    # Weights of 7 bits: with 8 the sums of a CPU without VNNI instructions overflow.
    types = {"per_channel": True, "reduce_range": True, "weight_type": QuantType.QInt8}
    path = str(folder / ONNX_INT8_NAME)
    with silence():
        quantize_dynamic(path, path, op_types_to_quantize=["MatMul", "Gemm"], **types)


def export_onnx(model, path):
    """Write a classifier's graph with its weights in one file, for any batch size and length."""
    anything = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    names = {"input_names": INPUTS, "output_names": model.output_names}
    names["dynamic_shapes"] = dict.fromkeys(INPUTS, anything)
    with silence():
        program = torch.onnx.export(LogitsOf(model).eval(), example_inputs(), dynamo=True, verbose=False, **names)
    proto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.initializer, proto.graph):
        del part.metadata_props[:]  # the lines of Python that a node comes from, with the paths of this machine
    with atomic_write(path, "wb") as file:
        file.write(proto.SerializeToString())


def write_safetensors(model, folder):
    """Write the weights in Hugging Face's own format."""
    from safetensors.torch import save

    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    with atomic_write(folder / SAFE_WEIGHTS_NAME, "wb") as file:
        file.write(save(state, {"format": "pt"}))


WRITERS = {"int8": write_int8, "onnx": write_onnx, "safetensors": write_safetensors}


def exported(run, student):
    """{column: Candidate} of the exports in the folder of a student, a `Candidate`; those made from other weights than
    it has now are left out with a warning."""
    candidates, now = {}, fingerprint(student.folder)
    for form in ("int8", "onnx"):
        folder = student.folder / form
        record = read_record(folder)
        if not record.get("finished"):
            continue
        again = f"made again by: {run.provenance.command_of(EVALUATION, do_export=form, overwrite_output=True)}"
        if record["inputs"].get("student_model") != now:
            told = f"{folder}: made from other weights than the student has now, so it is not in the report"
            logging.warning("%s; %s", told, again)
            continue
        if missing := find_missing(form):
            logging.warning("%s: not in the report, which needs %s", folder, " and ".join(missing))
            continue
        candidates |= {"int8": run.candidate(folder)} if form == "int8" else {}
        for title, name in PROGRAMS[form].items():
            file = folder / name
            try:
                runner = Runner(call_of(file), student.model)
                answers, size = run.evaluator.answers(run.task, runner, student.dev), file.stat().st_size
                candidates[title] = Candidate(folder, runner, student.tokenizer, student.dev, answers, size)
            except Exception as error:  # PyTorch and onnxruntime raise many kinds of errors for a damaged file
                if out_of_memory(error):
                    raise
                told = f"{file}: missing, damaged or another model ({type(error).__name__})"
                raise UserError(f"{told}; {again}") from error
    return candidates


def call_of(path):
    """What a `Runner` calls, of an exported file: (input ids, token types, attention mask), on the CPU, to logits."""
    if path.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

        def outputs_of(*inputs):
            arrays = [each.numpy() for each in inputs]
            return tuple(map(torch.from_numpy, session.run(None, dict(zip(INPUTS, arrays, strict=True)))))

    else:
        with silence():
            outputs_of = torch.jit.load(path)

    def call(ids, types, mask):
        outputs = outputs_of(ids, mask, types)  # whole or in parts, see `LogitsOf`
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return torch.stack(outputs, dim=-1) if outputs[1:] else outputs[0]

    return call

"""The scripts on broken files of every kind that the suite reads, made from the descriptions of their readers.

Prints: a table by kind of file, and the cases that break the rule; ends with status 1 where there is one

    python tests/benchmarks/broken_files.py

The rule: within 20 seconds and 1.5 GB a script ends in 0, or in 2 with one line. Each case runs in a process of its
own on a copy of a tiny pipeline, in which one file has one thing wrong.
"""

import argparse
import collections
import contextlib
import functools
import io
import itertools
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from unittest import mock

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from broken import ANYTHING, NO_OBJECTS, wrong_arrays, wrong_objects, wrong_tensors  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tiny import call_script, make_all, scripts  # noqa: E402

from transformer import (  # noqa: E402  # noqa: E402
    configuration,
    corpus,
    epochs,
    history,
    outputs,
    own_tasks,
    tokenization,
)
from transformer.files import UserError  # noqa: E402
from transformer.json_file import Field  # noqa: E402

SECONDS, BYTES = 20, 1_500_000_000
TEXTS = {
    "empty": b"",
    "not UTF-8": b"a\xff\t1\n",
    "zeros": bytes(99),
    "half": b"sentence",
    "no rows": b"sentence\tlabel\n",
}
MISSING = object()
NAMES = b"the O\ngood B-X\nfilm I-X\n\nbad B-X\n"
LAYOUTS = {
    "three columns once": NAMES + b"\na b O\n",
    "no tags": b"the\nfilm\n",
    "an empty tag": b"the\tO\nfilm\t\n",
    "comments only": b"# a\n# b\n",
    "one tag": b"a O\n\nb O\n",
    "a long sentence": b"film O\n" * 10**5 + NAMES,
    "a long token": b"a" * 10**6 + b" O\n" + NAMES,
    "spaces": b" \n \t\n" + NAMES,
}
TEXTS |= {
    "long line": b"a" * 10**6,
    "other line ends": b"sentence\tlabel\rx\t1\r",
    "a tab more": b"sentence\tlabel\na\t1\t\n",
}


def prepare(folder):
    """A tiny pipeline with every kind of file, some as stopped runs leave them. Returns {name: command}."""
    make_all(folder)
    own = folder / "glue" / "mine"
    own.mkdir()
    rows = [{"text": f"the film is {word}", "label": word == "good"} for word in ["good", "bad"] * 9]
    for name in ("train", "dev"):
        text = "\n".join(json.dumps({**row, "label": int(row["label"])}) for row in rows)
        (own / f"{name}.jsonl").write_text(f"{text}\n", encoding="utf-8")
    (own / "task.json").write_text(json.dumps({"text": "text", "label": "label", "labels": [0, 1]}), encoding="utf-8")
    lines = ({"text": text.replace("\n", " ")} for text in (folder / "corpus.txt").read_text().split("\n\n"))
    (folder / "corpus.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    commands = scripts(folder)
    packed = commands["pregenerate"][1].copy()
    packed[packed.index(folder / "2")] = folder / "2p"
    commands["packed"] = "pregenerate_training_data.py", [*packed, "--packed"]
    lines = commands["pregenerate"][1].copy()
    lines[lines.index(folder / "2")], lines[lines.index(folder / "corpus.txt")] = folder / "2j", folder / "corpus.jsonl"
    commands["lines"] = "pregenerate_training_data.py", lines
    general = commands["general"][1].copy()
    general[general.index(folder / "2")], general[general.index(folder / "3")] = folder / "2p", folder / "3p"
    commands["mapped"] = "general_distill.py", general
    flags = commands["augment"][1].copy()
    flags[flags.index("SST-2")] = "mine"
    commands["own"] = "data_augmentation.py", flags
    for name, files in (("names", {".conll": NAMES}), ("asked", {".json": json.dumps(asked()).encode()})):
        (folder / "glue" / name).mkdir()
        for stem, (suffix, data) in itertools.product(("train", "dev"), files.items()):
            (folder / "glue" / name / f"{stem}{suffix}").write_bytes(data)
        flags = commands["augment"][1].copy()
        flags[flags.index("SST-2")] = name
        commands[name] = "data_augmentation.py", flags
    commands["baseline"] = commands["evaluate"][0], [*commands["evaluate"][1], "--baseline", "--max_steps", 2]
    for name in ("augment", "pregenerate", "packed", "general", "finetune", "intermediate", "prediction"):
        run(commands[name])
    stopped = {"stopped": ("general", folder / "3s"), "stopped prediction": ("prediction", folder / "5s")}
    for name, (like, output) in stopped.items():
        script, flags = commands[like][0], commands[like][1].copy()
        flags[flags.index("--output_dir") + 1] = output
        commands[name] = script, flags
        with mock.patch("transformer.training.TrainingRun.finish", side_effect=UserError("stopped")):
            assert call_script(script, *flags).returncode == 2
    np.save(folder / "5s" / "teacher_logits.npy", np.zeros((0, 2), np.float32))
    state = torch.load(folder / "3s" / "training_state.bin", weights_only=True)
    torch.save({**state, "step": 2}, folder / "3s" / "training_state.bin")
    return commands


def run(command):
    done = call_script(command[0], *command[1])
    assert not done.returncode, done.stderr


def replaced(place, files, command, kind=None):
    """Cases of a file that is replaced by each of `files`, {what is wrong: bytes}."""
    for what, data in files.items():
        name = kind or place.rpartition("/")[2]
        yield name, what, command, lambda root, data=data: (root / place).write_bytes(data)


def moved(place, suffix, files, command, kind):
    """Cases of a file in whose place there is one of `files` with another suffix."""
    for *case, edit in replaced(str(Path(place).with_suffix(suffix)), files, command, kind):
        yield *case, lambda root, edit=edit: ((root / place).unlink(), edit(root))


def asked():
    """A file of questions in SQuAD's layout, two of them, one without an answer."""
    answer = {"text": "film", "answer_start": 4}
    questions = [{"id": "1", "question": "what is good ?", "answers": [answer], "is_impossible": False}]
    questions.append({"id": "2", "question": "what is bad ?", "answers": [], "is_impossible": True})
    return {"version": "v2.0", "data": [{"title": "x", "paragraphs": [{"context": "the film is", "qas": questions}]}]}


def wrong_parts(value, whole=None, path=()):
    """{what is wrong: bytes} of a JSON value: each of its parts missing, or in its place something else, of everything
    else one in four, other ones for each part."""
    whole, files = value if whole is None else whole, {}
    for first, (key, part) in enumerate(value.items() if isinstance(value, dict) else enumerate(value)):
        for number, other in enumerate([MISSING, *ANYTHING[(first + len(path)) % 4 :: 4]]):
            copied = json.loads(json.dumps(whole))
            inner = functools.reduce(lambda at, step: at[step], path, copied)
            if other is MISSING:
                del inner[key]
            else:
                inner[key] = other
            files[f"{'.'.join(map(str, (*path, key)))} {number}"] = json.dumps(copied).encode()
        if isinstance(part, dict | list):
            files |= wrong_parts(part, whole, (*path, key))
    return files


def objects(folder, place, fields, command, kind=None):
    """Cases of a JSON file: no object, or one wrong value."""
    found = json.loads((folder / place).read_text(encoding="utf-8"))
    yield from replaced(place, NO_OBJECTS | wrong_objects(found, fields), command, kind)


def cases(folder):
    """Yield (kind of file, what is wrong, name of the command, edit(folder))."""
    for part in (config_cases, record_cases, sequence_cases, tensor_cases, stopped_cases, text_cases):
        yield from part(folder)


def config_cases(folder):
    """Cases of config.json, tokenizer files and vocabularies."""
    yield from objects(folder, "teacher/config.json", configuration.FIELDS, "general")
    shapes = {"hidden_size": 4096, "num_hidden_layers": 999, "vocab_size": 1 << 23, "intermediate_size": 1 << 18}
    shapes |= {"max_position_embeddings": 1 << 20, "type_vocab_size": 999, "to_dict": 1, "self": 1, "__class__": "x"}
    config = json.loads((folder / "teacher/config.json").read_text())
    odd = {f"{key} {value}": json.dumps({**config, key: value}).encode() for key, value in shapes.items()}
    yield from replaced("teacher/config.json", odd, "general")
    yield from objects(
        folder, "student/config.json", {"hidden_size": configuration.FIELDS["hidden_size"]}, "general_again"
    )
    yield from objects(folder, "teacher/tokenizer_config.json", tokenization.FIELDS, "pregenerate_again")
    vocab = (folder / "teacher/vocab.txt").read_bytes()
    for text in (b"", vocab + b"\xff", vocab + vocab, vocab[:30], b"\n" * 99, bytes(99), vocab + b"a\n" * 9):
        yield (
            "vocab.txt",
            f"{len(text)} bytes",
            "general",
            lambda root, text=text: (root / "teacher/vocab.txt").write_bytes(text),
        )
    tokens = {token: number for number, token in enumerate(vocab.decode().split())}
    for value in (None, {}, [], {**tokens, "a": 0.5}, {**tokens, "a": "x"}, dict.fromkeys(tokens, 0), {"a": 1e400}):
        yield (
            "tokenizer.json",
            str(value)[-20:],
            "general",
            lambda root, value=value: fast(root, {"model": {"vocab": value}}),
        )
    for what, data in NO_OBJECTS.items():
        yield "tokenizer.json", what, "general", lambda root, data=data: fast(root, data)


def record_cases(folder):
    """Cases of records, descriptions of tasks, metrics and histories."""
    yield from objects(folder, "3/run.json", outputs.RECORD, "general")
    yield from objects(folder, "4/run.json", outputs.RECORD, "prediction")
    record = json.loads((folder / "5/run.json").read_text())
    settings = wrong_objects(record["settings"], outputs.SETTINGS)
    files = {what: json.dumps({**record, "settings": json.loads(data)}).encode() for what, data in settings.items()}
    yield from replaced("5/run.json", files, "evaluate")
    # What of it is only compared, or is another training's recipe, may be anything else too.
    for place, command in (("5/run.json", "baseline"), ("teacher/SST-2/run.json", "prediction")):
        record = json.loads((folder / place).read_text())
        spoilt = ((key, value) for key in record["settings"] for value in (None, "x", -1))
        files = {f"{key} {value}": {**record, "settings": {**record["settings"], key: value}} for key, value in spoilt}
        yield from replaced(place, {what: json.dumps(value).encode() for what, value in files.items()}, command)
    yield from objects(folder, "glue/mine/task.json", own_tasks.KEYS, "own")
    for place, command in (("2/epoch_0_metrics.json", "general"), ("2p/epoch_0_metrics.json", "mapped")):
        yield from objects(folder, place, epochs.METRICS, command, "epoch_N_metrics.json")
    log = (folder / "3s/train_log.jsonl").read_bytes().splitlines()
    entry = json.loads(log[0])
    lines = {what: data + b"\n" for what, data in (NO_OBJECTS | wrong_objects(entry, history.ENTRY)).items()}
    names = {"layer": b'{"step": 1, "losses": {"att_loss/x": 1, "other/3": 2, "/": 3, "att_loss/-1": NaN}}\n'}
    yield from replaced("3s/train_log.jsonl", lines | names, "stopped")
    yield from replaced("5/train_log.jsonl", lines | names, "evaluate")


def sequence_cases(folder):
    """Cases of epochs, as JSON and packed."""
    good = (folder / "2/epoch_0.json").read_bytes()
    sequence = json.loads(good.splitlines()[0])
    spoilt = NO_OBJECTS | wrong_objects(sequence, epochs.SEQUENCE)
    for ids in ([5] * 9, [0.5], [1, 0] * 9, ["0"], [[]], [None], [1e400], [True]):
        spoilt[f"segment_ids {ids[0]}"] = json.dumps({**sequence, "segment_ids": ids}).encode()
    for tokens in ([5], [[]], [{}], ["absent"], [None], [["the"]]):
        spoilt[f"tokens {tokens}"] = json.dumps({**sequence, "tokens": tokens, "segment_ids": [0]}).encode()
    files = {what: b"\n".join([data, *good.split(b"\n")[1:]]) for what, data in spoilt.items()}
    yield from replaced("2/epoch_0.json", files, "general_again", "epoch_N.json")
    for name in ("ids", "sequences"):
        files = wrong_arrays(np.load(folder / f"2p/epoch_0_{name}.npy"))
        yield from replaced(f"2p/epoch_0_{name}.npy", files, "mapped", "epoch_N_*.npy")


def tensor_cases(folder):
    """Cases of weights and their indexes."""
    state = torch.load(folder / "teacher/pytorch_model.bin", weights_only=True)
    key = "bert.encoder.layer.0.output.dense.weight"
    for what, value in wrong_tensors(tuple(state[key].shape)).items():
        yield "pytorch_model.bin", what, "general", lambda root, value=value: saved(root, {**state, key: value})
    strange = {"a list": [1], "a tensor": torch.ones(2), "numbers": {"a": 1}, "keys": {**state, 3: torch.ones(2)}}
    strange |= {"nothing": {}, "a dictionary inside": {"model": state}, "a code": {"a": print}}
    strange |= {f"{name} is lacking": {k: v for k, v in state.items() if k != name} for name in list(state)[:7]}
    strange |= {f"{name} is longer": {**state, name: torch.cat([state[name]] * 2)} for name in list(state)[:7]}
    for what, value in strange.items():
        yield "pytorch_model.bin", what, "general", lambda root, value=value: saved(root, value)
    yield from replaced("teacher/pytorch_model.bin", NO_OBJECTS | {"PK": b"PK\x03\x04" + bytes(99)}, "general")
    whole = (folder / "teacher/pytorch_model.bin").read_bytes()
    for share in (0.01, 0.3, 0.6, 0.9, 0.999):
        cut = whole[: int(len(whole) * share)]
        yield from replaced("teacher/pytorch_model.bin", {f"{share:.1%} of it": cut}, "general")
    for what in ("boolean", "complex", "float8", "int8", "int64", "float64 beyond float32", "NaN", "infinite"):
        value = wrong_tensors(tuple(state[key].shape))[what].contiguous()
        yield "model.safetensors", what, "general", lambda root, value=value: safe(root, {**state, key: value})
    header = json.dumps({key: {"dtype": "F32", "shape": [1 << 40, 3], "data_offsets": [0, 3 << 42]}}).encode()
    claimed = {"terabytes": len(header).to_bytes(8, "little") + header, "long header": b"\xff" * 8 + b"{}"}
    for what, data in (NO_OBJECTS | claimed).items():
        yield "model.safetensors", what, "general", lambda root, data=data: safe(root, data)
    for value in (None, [], {}, {"a": 1}, {"a": "../b.bin"}, {"a": "absent.bin"}, {"a": ["x"]}, {"a": "b.txt"}):
        data = json.dumps({"weight_map": value}).encode()
        yield "*.index.json", str(value), "general", lambda root, data=data: index(root, data)
    for what, data in NO_OBJECTS.items():
        yield "*.index.json", what, "general", lambda root, data=data: index(root, data)


def stopped_cases(folder):
    """Cases of what a stopped run left."""
    saved_state = torch.load(folder / "3s/training_state.bin", weights_only=True)
    values = {name: (None, 5, "x", [], {}, -1, 1e300) for name in saved_state}
    values["step"] = (None, "x", -1, 10**6, 0.5, True)
    moments = saved_state["optimizer"]["state"]
    values["optimizer"] += tuple(
        {"state": each, "param_groups": []} for each in ({}, {0: {}}, {"x": 3}, {999: moments[0]})
    )
    values["optimizer"] += (
        {"state": {**moments, 0: {name: torch.ones(2) for name in moments[0]}}, "param_groups": []},
    )
    for tensors in wrong_tensors(tuple(moments[0]["next_m"].shape)).values():
        values["optimizer"] += ({"state": {**moments, 0: {**moments[0], "next_m": tensors}}},)
    values["sums"] += ({"loss": "x"}, {"loss": torch.ones(3)}, {"loss": torch.ones((), dtype=torch.complex64)})
    values["results"] += ({"acc": "x"}, {"acc": [1]}, {3: None})
    place = Path("3s/training_state.bin")
    for name, wrong in values.items():
        for value in wrong:
            spoilt = {**saved_state, name: value}
            yield (
                place.name,
                f"{name} {str(value)[:20]}",
                "stopped",
                lambda root, spoilt=spoilt: saved(root, spoilt, place),
            )
        less = {each: value for each, value in saved_state.items() if each != name}
        yield place.name, f"no {name}", "stopped", lambda root, less=less: saved(root, less, place)
    yield from replaced(str(place), NO_OBJECTS, "stopped")
    logits = wrong_arrays(np.zeros((29, 2), np.float32)) | {
        "NaN": wrong_arrays(np.full((29, 2), np.nan))["a byte more"]
    }
    yield from replaced("5s/teacher_logits.npy", logits, "stopped prediction")


def text_cases(folder):
    """Cases of tables, corpora, vectors and results."""
    for name, command in (("train", "finetune_again"), ("dev", "evaluate")):
        yield from replaced(f"glue/SST-2/{name}.tsv", TEXTS, command, "*.tsv")
    row = {"text": "the film", "label": 1}
    fields = {"text": own_tasks.KEYS["label"], "label": own_tasks.LABEL}
    rows = {what: data + b"\n" for what, data in (NO_OBJECTS | wrong_objects(row, fields)).items()}
    yield from replaced("glue/mine/train.jsonl", rows, "own", "*.jsonl")
    yield from replaced("glue/names/train.conll", TEXTS | LAYOUTS, "names", "*.conll")
    lists = {"tokens": ["a", "film"], "tags": ["O", "B-X"]}
    wrong = wrong_objects(lists, dict.fromkeys(lists, Field("a list", (list,), 1, of=Field("a text", low=1))), every=1)
    lists = {what: json.dumps(lists).encode() + b"\n" + data + b"\n" for what, data in wrong.items()}
    yield from moved("glue/names/train.conll", ".jsonl", lists, "names", "token labels, *.jsonl")
    yield from replaced("glue/asked/train.json", NO_OBJECTS | wrong_parts(asked()), "asked", "SQuAD's *.json")
    lines = {
        what: data + b"\n" for what, data in (NO_OBJECTS | wrong_objects({"text": "a b"}, corpus.DOCUMENT)).items()
    }
    yield from replaced("corpus.jsonl", lines, "lines", "corpus.jsonl")
    yield from replaced("glove.txt", TEXTS, "augment_again")
    yield from replaced("5/eval_results.txt", TEXTS | {"digits": b"acc = " + b"7" * 5000}, "evaluate")


def saved(root, value, place="teacher/pytorch_model.bin"):
    torch.save(value, root / place)


def fast(root, value):
    (root / "teacher/vocab.txt").unlink()
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    (root / "teacher/tokenizer.json").write_bytes(data)


def safe(root, value):
    (root / "teacher/pytorch_model.bin").unlink()
    if isinstance(value, bytes):
        (root / "teacher/model.safetensors").write_bytes(value)
    else:
        value = {name: each.clone().contiguous() for name, each in value.items()}  # tied tensors are refused
        save_file(value, root / "teacher/model.safetensors")


def index(root, data):
    (root / "teacher/pytorch_model.bin").unlink()
    (root / "teacher/pytorch_model.bin.index.json").write_bytes(data)


def attempt(folder, copy, command, edit):
    """(what broke the rule or "", the script's last line) of one case, run in a child process."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        with contextlib.suppress(BaseException):
            os.write(writing, inside(folder, copy, command, edit).encode("utf-8", "replace")[:4000])
        os._exit(0)
    os.close(writing)
    started = time.monotonic()
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.alarm(10 * SECONDS)  # generous, so that a busy machine is told from a slow reader by the child's own time
    with open(reading, "rb") as pipe:
        told = pipe.read().decode()
    _, _, usage = os.wait4(child, 0)
    signal.alarm(0)
    used = usage.ru_utime + usage.ru_stime
    problem, _, line = told.partition("\n")
    if not told:
        problem = f"died after {time.monotonic() - started:.0f} s"
    elif used > SECONDS:
        problem = f"{used:.0f} s"
    elif usage.ru_maxrss * 1024 > BYTES:
        problem = f"{usage.ru_maxrss / 1e6:.2f} GB"
    return problem, line


def inside(folder, copy, command, edit):
    """The child's part: what broke the rule, a line end, the script's line."""
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    edit(folder)
    script, flags = command
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            done = call_script(script, *flags)
    except BaseException as error:
        return f"{type(error).__name__}\n{traceback.format_exc(limit=-2)!r}"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode == 0:
        return "\n" + "ended in 0"
    if done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < 1000:
        return "\n" + lines[0]
    return f"status {done.returncode}, {len(lines)} lines\n{' '.join(lines)[-300:]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a pattern: only kinds of files whose name it matches")
    parser.add_argument("--show", action="store_true", help="print every case with its line")
    args = parser.parse_args()
    torch.set_num_threads(1)
    counts, broken = collections.defaultdict(collections.Counter), []
    with tempfile.TemporaryDirectory() as place:
        folder, copy = Path(place) / "run", Path(place) / "copy"
        commands = prepare(folder)
        for name in ("pregenerate", "augment", "finetune", "general"):
            commands[f"{name}_again"] = commands[name][0], [*commands[name][1], "--overwrite_output"]
        shutil.copytree(folder, copy)
        for kind, what, name, edit in cases(copy):
            if not re.search(args.only, kind):
                continue
            problem, line = attempt(folder, copy, commands[name], edit)
            counts[kind]["0" if line == "ended in 0" else "2"] += 1
            if problem:
                broken.append(f"{kind}, {what}: {problem}: {line}")
            if args.show or problem:
                print(f"{'BROKEN ' if problem else ''}{kind}, {what}: {problem} {line}", file=sys.stderr, flush=True)
    print("| file | cases | ended in 0 | in 2 with one line |\n|---|---|---|---|")
    for kind, found in counts.items():
        print(f"| {kind} | {found.total()} | {found['0']} | {found['2']} |")
    print(f"{sum(found.total() for found in counts.values())} cases; break the rule: {len(broken)}")
    print("\n".join(broken))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

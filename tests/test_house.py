"""The house: which room may use which, and how large rooms and functions may be."""

import ast
import re

import pytest
from tiny import ROOT

# A room uses rooms of lower floors, and on its own floor those that stand left of a bar before it.
FLOORS = (
    "files | json_file remote console drawing | tensor_file downloads",
    "flags outputs processes history | settings",
    "checkpoint tokenization optimization data corpus tables workers quantization"
    " | configuration epochs vectors | modeling instances | published",
    "distillation initialization vocabulary teacher_states",
    "tasks tasks.kind | tasks.classification tasks.regression | tasks.multilabel tasks.tokens tasks.spans"
    " | tasks.task | glue | own_tasks",
    "training evaluation",
    "task_run proposals tfidf | finetuning",
    "export comparison predict | report",
    "data_augmentation pregenerate_training_data general_distill task_distill",
)
PLACES = {
    room: (floor, part)
    for floor, parts in enumerate(FLOORS)
    for part, rooms in enumerate(parts.split(" | "))
    for room in rooms.split()
}
STEP_0 = "file_utils"  # a program of its own, and the names of before
SCRIPTS = FLOORS[-1].split()
# Dataclasses of a stage's own that may be called settings.
OWN_SETTINGS = {"instances.InstanceMaker.__init__"}
LINES, FUNCTION_LINES, SCRIPT_LINES = 450, 50, 300


def paths():
    """{room: path} of the scripts and the package."""
    rooms = {name: ROOT / f"{name}.py" for name in SCRIPTS}
    for path in sorted((ROOT / "transformer").rglob("*.py")):
        parts = path.relative_to(ROOT / "transformer").with_suffix("").parts
        rooms[".".join(parts).removesuffix("__init__").rstrip(".")] = path
    return rooms


PATHS = paths()
TREES = {room: ast.parse(path.read_text(encoding="utf-8")) for room, path in PATHS.items()}


def imports_of(room):
    """The rooms that a room imports from, at its top or inside a function."""
    found = set()
    for node in ast.walk(TREES[room]):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{room}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.removeprefix("transformer.").split(".")
            if name.split(".")[0] != "transformer" and parts[0] not in SCRIPTS:
                continue  # another package
            while parts and ".".join(parts) not in PATHS:
                parts.pop()
            found.add(".".join(parts))
    return found - {room}


def functions_of(room):
    """(qualified name, node) of every function of a room, those in classes and in functions too."""

    def walk(node, prefix):
        for child in ast.iter_child_nodes(node):
            name = f"{prefix}.{child.name}" if hasattr(child, "name") else prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield name, child
            yield from walk(child, name)

    return walk(TREES[room], room)


def test_every_room_has_a_floor():
    assert set(PATHS) - {"", STEP_0, "stages"} == set(PLACES)  # stages: names of before


@pytest.mark.parametrize("room", sorted(PLACES))
def test_imports_go_down(room):
    imported = imports_of(room)
    assert STEP_0 not in imported, "step 0 stands beside the house"
    assert not {f"{room} imports {other}" for other in imported if PLACES[other] >= PLACES[room]}


def test_step_0_uses_the_ground_floor_only():
    assert {PLACES[room][0] for room in imports_of(STEP_0)} == {0}


def test_no_rooms_stand_in_a_circle():
    waiting = {room: imports_of(room) for room in PATHS}
    while free := {room for room, below in waiting.items() if not below & waiting.keys()}:
        waiting = {room: below for room, below in waiting.items() if room not in free}
    assert not waiting, f"in or above a circle: {sorted(waiting)}"


@pytest.mark.parametrize("room", sorted(PATHS))
def test_rooms_and_functions_are_small(room):
    length = len(PATHS[room].read_text(encoding="utf-8").splitlines())
    assert length <= (SCRIPT_LINES if room in SCRIPTS else LINES)
    long = {name for name, node in functions_of(room) if node.end_lineno - node.lineno + 1 > FUNCTION_LINES}
    assert not long


@pytest.mark.parametrize("room", sorted(PATHS))
def test_no_comment_speaks_to_the_formatter(room):
    assert not re.search(r"#\s*fmt\b", PATHS[room].read_text(encoding="utf-8"))


@pytest.mark.parametrize("room", sorted(PATHS))
def test_functions_take_what_they_need_not_all_settings(room):
    for name, node in functions_of(room):
        every = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg)
        for argument in filter(None, every):
            annotation = ast.unparse(argument.annotation) if argument.annotation else ""
            assert argument.arg not in ("args", "namespace") and "Namespace" not in annotation, f"{name} takes args"
            of_settings = argument.arg == "settings" or "Settings" in annotation
            assert room == "settings" or name in OWN_SETTINGS or not of_settings, f"{name} takes settings"


READERS = {"json.load", "json.loads", "json.JSONDecoder", "pickle.load", "pickle.loads", "pickle.Unpickler"}
READERS |= {"torch.load", "torch.jit.load", "torch.from_file", "safetensors"}
READERS |= {
    f"numpy.{name}" for name in ("load", "memmap", "fromfile", "genfromtxt", "loadtxt", "lib.format.read_array")
}
READERS |= {"numpy.lib.format.open_memmap", "numpy.lib.npyio", "onnxruntime.InferenceSession"}
DOORS = {"json_file": {"json.JSONDecoder"}, "tensor_file": {"numpy.load", "torch.load", "safetensors"}}
# The settings are copied as their record will read back; nothing is read.
DOORS["outputs"] = {"json.loads"}
# To write; and to run what an export wrote, programs and no arrays.
DOORS["export"] = {"safetensors", "torch.jit.load", "onnxruntime.InferenceSession"}
# Files that this very run wrote, or the one that it goes on from: their sizes are held against its state.
DOORS |= {"data": {"numpy.memmap"}, "corpus": {"numpy.memmap"}}
DOORS["vectors"] = {"numpy.loadtxt"}  # numbers out of lines that were read before, each of a bounded length
DOORS["lesson"] = {"json.loads"}  # no stage: it shows the reader a line that the sample's own run wrote
LESSON = ast.parse((ROOT / "1_pre_data" / "sample" / "lesson.py").read_text(encoding="utf-8"))


def readers_in(tree):
    """Those of READERS that a module names, by whatever name it imports them."""
    known, found = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):  # `import a.b` brings the name a
            known |= {each.asname or each.name.partition(".")[0]: each.name for each in node.names if each.asname}
            known |= {
                each.name.partition(".")[0]: each.name.partition(".")[0] for each in node.names if not each.asname
            }
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            known |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
            found |= {f"{node.module}.{each.name}" for each in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            found.add(f"{known.get(first, first)}.{rest}")
    return {reader for reader in READERS for name in found if f"{name}.".startswith(f"{reader}.")}


@pytest.mark.parametrize("room", sorted({**PATHS, "lesson": LESSON}))
def test_files_come_in_through_two_doors(room):
    assert readers_in({**TREES, "lesson": LESSON}[room]) == DOORS.get(room, set())


@pytest.mark.parametrize(
    "code, reader",
    [
        ("from json import load", "json.load"),
        ("import json as j\nj.loads('1')", "json.loads"),
        ("from json import decoder, JSONDecoder as D", "json.JSONDecoder"),
        ("def f():\n    import numpy\n    return numpy.memmap('a')", "numpy.memmap"),
        ("import numpy as np\nread = np.fromfile", "numpy.fromfile"),
        ("from numpy.lib import format as f\nf.open_memmap('a')", "numpy.lib.format.open_memmap"),
        ("from torch import load as read", "torch.load"),
        ("import safetensors.torch", "safetensors"),
        ("from safetensors import safe_open", "safetensors"),
        ("import pickle\npickle.loads(b'')", "pickle.loads"),
    ],
)
def test_a_reader_is_seen_under_any_name(code, reader):
    assert readers_in(ast.parse(code)) == {reader}


def test_the_reader_of_imports_sees_those_inside_functions():
    assert "drawing" in imports_of("history") and "processes" in imports_of("training")
    assert "tasks.task" in imports_of("glue") and "data" in imports_of("tasks.kind")
    names = dict(functions_of("training"))
    assert "training.Guard.watching.note" in names and "training.step_seed" in names

"""Files that are written on from a saved size, and writes that fail."""

import contextlib
import resource
import signal

import numpy as np
import pytest
import torch

from transformer.files import UserError, append_to, atomic_write, write_json
from transformer.json_file import read_json


@pytest.mark.parametrize("size, left", [(5, b"saved!"), (0, b"!"), (14, b"saved and lost!")])
def test_appending_drops_what_stands_after_the_saved_size(tmp_path, size, left):
    path = tmp_path / "part"
    path.write_bytes(b"saved and lost")
    with append_to(path, size) as file:
        file.write(b"!")
    assert path.read_bytes() == left


def test_appending_at_zero_starts_a_file_that_is_not_there(tmp_path):
    with append_to(tmp_path / "part", 0) as file:
        file.write(b"new")
    assert (tmp_path / "part").read_bytes() == b"new"


def test_a_link_in_the_place_of_a_part_is_not_followed(tmp_path):
    (tmp_path / "precious").write_bytes(b"kept")
    (tmp_path / "part").symlink_to(tmp_path / "precious")
    for size in (0, 2):
        with pytest.raises(UserError, match="part: a link, expected a file of a stopped run or none"):
            append_to(tmp_path / "part", size)
    assert (tmp_path / "precious").read_bytes() == b"kept"


@contextlib.contextmanager
def small_files(size):
    """Limit the size of files, so that a real write fails; for a moment only, since pytest writes its output too."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def fail(error):
    raise error


ARRAY = np.arange(5000.0)  # 40 KB
WRITERS = {
    "torch": lambda file: torch.save({"a": torch.from_numpy(ARRAY), "b": torch.from_numpy(ARRAY + 1)}, file),
    "array": lambda file: fail(OSError("5 requested and 0 written")),  # np.save's
    "arrays": lambda file: np.savez(file, a=ARRAY, b=ARRAY),
    "bytes": lambda file: file.write(ARRAY.tobytes()),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_write_that_fails_anywhere_is_a_one_line_error_and_leaves_the_old_file(tmp_path, name):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    for size in range(0, 40_000, 2503):
        told = "file: cannot be written .(File too large|5 requested)"
        with pytest.raises(UserError, match=told), small_files(size), atomic_write(path, "wb") as file:
            WRITERS[name](file)
        assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_an_error_of_another_kind_passes_through_a_write(tmp_path):
    with pytest.raises(RuntimeError, match="a fault"), atomic_write(tmp_path / "file") as file:
        file.write("text")
        raise RuntimeError("a fault")


def test_names_that_are_not_utf8_are_written_and_read_back(tmp_path):
    name = b"a\xff.txt".decode(errors="surrogateescape")
    write_json(tmp_path / name, {"path": name})
    assert read_json(tmp_path / name) == {"path": name}

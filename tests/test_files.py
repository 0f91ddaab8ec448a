"""Files that are written on from a saved size."""

import pytest

from transformer.files import append_to


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

"""What a script says: its log, how it ends, and how numbers are written."""

import os
import subprocess
import sys

import numpy as np
import pytest
from tiny import ROOT, call_script

import pregenerate_training_data
from transformer.console import format_results, format_seconds, log_to, watched
from transformer.file_utils import UserError


def test_importing_a_script_changes_no_logging_and_makes_no_file(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import data_augmentation, general_distill, pregenerate_training_data, task_distill, logging, signal\n"
        "assert not logging.getLogger().handlers\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_ends_with_status_130_and_one_line(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(pregenerate_training_data, "main", interrupted)
    process = call_script("pregenerate_training_data.py")
    assert process.returncode == 130
    assert process.stderr.count("\n") == 1 and "Traceback" not in process.stderr


@pytest.mark.parametrize("last", ["print(7 * 'texts')", "raise BrokenPipeError(32, 'Broken pipe')"])
def test_a_closed_pipe_ends_a_script_without_a_word(last):
    code = f"import sys; from transformer import console; console.run(lambda: exec({last!r}))"
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as closed:
        process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=closed, stderr=subprocess.PIPE)
    assert (process.returncode, process.stderr) == (141, b"")


def numpy_out_of_memory():
    with pytest.raises(MemoryError) as caught:
        np.zeros(1 << 60, np.uint8)
    return caught.value


@pytest.mark.parametrize(
    "error, line",
    [
        (UserError("two\nlines"), "two lines"),
        (PermissionError(13, "Permission denied", "a/file"), "a/file: Permission denied; the same command goes on"),
        (OSError(28, "No space left on device"), "a file cannot be read or written: No space left on device"),
        (RuntimeError("cannot allocate memory"), "out of memory; a smaller batch size"),
        (MemoryError(), "out of memory; a smaller batch size"),
        (numpy_out_of_memory(), "out of memory; a smaller batch size"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_user_can_mend_ends_with_status_2_and_one_line(monkeypatch, error, line):
    def fail():
        raise error

    monkeypatch.setattr(pregenerate_training_data, "main", fail)
    process = call_script("pregenerate_training_data.py")
    assert process.returncode == 2 and process.stderr.count("\n") == 1
    assert process.stderr.startswith(f"error: {line}")
    with pytest.raises(type(error)):
        call_script("pregenerate_training_data.py", "--debug")


def test_the_first_of_several_processes_tells_the_error_and_the_others_wait(monkeypatch):
    def fail():
        raise UserError("told")

    waits = []
    monkeypatch.setattr(pregenerate_training_data, "main", fail)
    monkeypatch.setattr("time.sleep", waits.append)
    for rank, waited in (("0", 0), ("1", 1)):
        monkeypatch.setenv("RANK", rank)
        process = call_script("pregenerate_training_data.py")
        assert (process.returncode, process.stderr, len(waits)) == (2, "error: told\n", waited)


def test_a_name_that_is_not_utf8_costs_no_line_of_the_log(tmp_path):
    code = "from transformer import console; import logging, sys; console.set_up_logging(); console.log_to('log')\n"
    code += "logging.info('wrote %s', sys.argv[1])"
    command = [sys.executable, "-c", code, b"a\xff"]
    process = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert process.stdout.endswith(b"wrote a\\udcff\n") and process.stderr == b""
    assert (tmp_path / "log").read_bytes().endswith(b"wrote a\\udcff\n")


def test_a_fault_of_the_code_shows_its_traceback(monkeypatch):
    monkeypatch.setattr(pregenerate_training_data, "main", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call_script("pregenerate_training_data.py")


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be written .Is a directory"):
        log_to(tmp_path)


@pytest.mark.parametrize("seconds, text", [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3661, "1:01:01")])
def test_times_are_written_as_on_a_clock(seconds, text):
    assert format_seconds(seconds) == text


def test_without_a_terminal_batches_are_told_once_a_minute(monkeypatch, caplog):
    caplog.set_level("INFO")
    assert list(watched("abc")) == list("abc") and not caplog.messages
    monkeypatch.setattr("transformer.console.REPORT_SECONDS", 0)
    assert list(watched("abc")) == list("abc")
    assert caplog.messages == ["1 of 3 batches, 0:00 left", "2 of 3 batches, 0:00 left"]


def test_results_are_written_with_four_decimals():
    assert format_results({"global_step": 7, "acc": 0.91237}) == "global_step 7 acc 0.9124"

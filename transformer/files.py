"""What everything else stands on: the error that users see, atomic writes, folders and their locks."""

import contextlib
import glob
import json
import logging
import os
import re
import shutil
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows the user has to keep two runs out of one folder
    fcntl = None

LOCK_SECONDS = 5  # how long the workers of a killed run may take to notice that it is gone
LOCKS = {}  # {folder that this process writes into: its descriptor}; the end of the process releases the lock too


class UserError(Exception):
    """Bad input; the scripts print it as one line and exit with status 2."""

    def __str__(self):
        return without_secrets(super().__str__())


def without_secrets(text):
    """`text`, in whose addresses "..." stands for what may be a password or a token: all before an @ and after a ?."""
    return re.sub(r"(https?://[^\s'\"?]*\?)[^\s'\"]+", r"\1...", re.sub(r"(?<=://)[^/\s?]*@", "...@", text))


@contextlib.contextmanager
def atomic_write(path, mode="w"):
    """Open a temporary file that replaces `path` when the block ends without an error; a kill leaves the old file.

    `mode` is "w" (UTF-8, "\\n" line ends) or "wb". It waits until the data is on the disk, so that a power cut leaves
    the old file or the new one, too. Text that UTF-8 lacks, as in odd file names, is written as \\udcff, which JSON
    reads back. Raises UserError when `path` cannot be written (disk full, no such folder).
    """
    path = Path(path)
    text = {} if mode == "wb" else {"encoding": "utf-8", "newline": "\n", "errors": "backslashreplace"}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    _remove_leftovers(path)
    try:
        with open(temporary, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch.save covers a failed write with an error of its own; np.save's has a message only.
        cause = error if isinstance(error, OSError) else error.__context__
        # The block may fail for another reason, or because of another file; that error is not about this path.
        if not isinstance(cause, OSError) or cause.filename not in (None, str(temporary)):
            raise
        raise UserError(f"{path}: cannot be written ({cause.strerror or cause})") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _remove_leftovers(path):
    """Remove the temporary files that killed writers of `path` left behind."""
    if os.name != "posix":  # elsewhere os.kill(pid, 0) ends the process instead of looking for it
        return
    for temporary in path.parent.glob(f"{glob.escape(path.name)}.*.tmp"):
        try:
            os.kill(int(temporary.stem.rpartition(".")[2]), 0)
        except ProcessLookupError:
            temporary.unlink(missing_ok=True)
        except (OSError, OverflowError, ValueError):
            continue


def write_json(path, obj):
    """Write `obj` as indented JSON, atomically."""
    with atomic_write(path) as file:
        file.write(json.dumps(obj, indent=2, ensure_ascii=False) + "\n")


def append_to(path, size):
    """Open a file for binary writing after its first `size` bytes; the rest is cut off. Raises UserError for a link."""
    if Path(path).is_symlink():
        raise UserError(f"{path}: a link, expected a file of a stopped run or none; remove it")
    file = open(path, "r+b" if Path(path).exists() and size else "wb")  # noqa: SIM115 (the caller closes it)
    if size:
        file.truncate(size)
        file.seek(size)
    return file


def make_folder(path):
    """Create a folder and return its Path. Raises UserError when it cannot be created."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be created ({error.strerror})") from None
    return Path(path)


def copy_file(file, target):
    """Copy a file atomically, creating the folder of `target`."""
    if target.exists() and target.samefile(file):
        return
    make_folder(target.parent)
    with open(file, "rb") as source, atomic_write(target, "wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)


def lock_folder(folder):
    """Keep other runs out of an output folder until `unlock_folder` or the end of this process. Raises UserError if
    another run is using it."""
    folder = Path(folder).resolve()
    if fcntl is None or folder in LOCKS:
        return
    LOCKS[folder] = os.open(folder, os.O_RDONLY)
    stop = time.monotonic() + LOCK_SECONDS
    while not _take_lock(LOCKS[folder]):
        if time.monotonic() > stop:
            unlock_folder(folder)
            raise UserError(f"{folder}: another run is writing there; wait until it ends or stop it")
        time.sleep(0.05)


def unlock_folder(folder):
    """Let other runs write into a folder again."""
    if (folder := Path(folder).resolve()) in LOCKS:
        os.close(LOCKS.pop(folder))


def wait_for_lock(file):
    """Lock an open file, waiting for any process that holds the lock; closing the file releases it."""
    if fcntl is not None and not _take_lock(file):
        logging.info("%s: another process is using it, waiting", file.name)
        fcntl.flock(file, fcntl.LOCK_EX)


def _take_lock(file):
    """Lock an open file, or a folder by its descriptor; False if another process holds the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # a file system without locks: two processes do the work twice, and the last rename wins
        return not isinstance(error, BlockingIOError)
    return True

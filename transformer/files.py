"""The ground floor: the error that users see, atomic writes, JSON, folders and their locks."""

import contextlib
import glob
import json
import logging
import os
import shutil
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are the user's care
    fcntl = None

LOCK_SECONDS = 5  # how long the workers of a killed run may take to notice its end
LOCKS = {}  # {folder that this process writes into: its open descriptor}; the process's end, however it comes, unlocks


class UserError(Exception):
    """Bad input; the scripts print it as one line and exit with status 2."""


@contextlib.contextmanager
def atomic_write(path, mode="w", durable=True):
    """Open a temporary file that takes the place of `path` when the block ends without an error.

    `mode` is "w" (UTF-8, "\\n" line ends) or "wb"; the folder must exist. A killed or failed write leaves the old file.
    `durable`: a power cut leaves the old file or the new one too; what can be made again and is checked need not wait.
    Raises UserError naming `path` when it cannot be written (disk full, read-only, no such folder).
    """
    path = Path(path)
    text = {} if mode == "wb" else {"encoding": "utf-8", "newline": "\n"}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    _remove_leftovers(path)
    try:
        with open(temporary, mode, **text) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # The block may fail over another file, or a connection: that is not this path's fault.
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _remove_leftovers(path):
    """Remove the temporary files of writers of `path` that were killed."""
    if os.name != "posix":  # elsewhere os.kill(pid, 0) is no question: it ends the process
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


def read_json(path):
    """The object in a JSON file; UserError naming file and line when it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}), expected JSON") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}), expected a JSON file") from error


def append_to(path, size):
    """Open a file for binary writing behind its first `size` bytes; what stands after them is dropped."""
    file = open(path, "r+b" if Path(path).exists() and size else "wb")  # noqa: SIM115 (the caller closes it)
    file.truncate(size)
    file.seek(size)
    return file


def make_folder(path):
    """Create a folder. Raises UserError where that cannot be done."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be created ({error.strerror})") from None
    return Path(path)


def copy_file(file, target):
    """Copy a file, atomically; the folder of `target` is made."""
    if target.exists() and target.samefile(file):
        return
    make_folder(target.parent)
    with open(file, "rb") as source, atomic_write(target, "wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)


def lock_folder(folder):
    """Keep other runs out of an output folder until this process ends. Raises UserError where another is in it."""
    folder = Path(folder).resolve()
    if fcntl is None or folder in LOCKS:
        return
    LOCKS[folder] = os.open(folder, os.O_RDONLY)
    stop = time.monotonic() + LOCK_SECONDS
    while not _take_lock(LOCKS[folder]):
        if time.monotonic() > stop:
            os.close(LOCKS.pop(folder))
            raise UserError(f"{folder}: another run is writing there; wait for its end or stop it")
        time.sleep(0.05)


def wait_for_lock(file):
    """Take the lock of an open file, which closing it frees, as soon as no other process holds it."""
    if fcntl is not None and not _take_lock(file):
        logging.info("%s: another process is at it, waiting", file.name)
        fcntl.flock(file, fcntl.LOCK_EX)


def _take_lock(file):
    """Lock an open file, or a folder by its descriptor; False where another process holds the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # without locks in the file system two processes do the work twice; the last rename wins
        return not isinstance(error, BlockingIOError)
    return True

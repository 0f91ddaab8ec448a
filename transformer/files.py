"""The ground floor: the error that users see, atomic writes, JSON, folders and their locks."""

import contextlib
import json
import logging
import os
import time
from pathlib import Path

log = logging.getLogger(__name__)

LOCK_SECONDS = 5  # how long the workers of a killed run may take to notice its end
LOCKS = {}  # {folder that this process writes into: its open descriptor}; the process's end, however it comes, unlocks


class UserError(Exception):
    """Bad input; the scripts print it as one line and exit with status 2."""


@contextlib.contextmanager
def atomic_write(path, mode="w", durable=True, **open_kwargs):
    """Open a temporary file that takes the place of `path` when the block ends without an error.

    `mode` is "w" (UTF-8, "\\n" line ends) or "wb"; the folder must exist. A killed or failed write leaves the old file.
    `durable`: wait until a power cut would leave the new one; what can be made again and is checked need not wait.
    Raises UserError naming `path` when it cannot be written (disk full, read-only, no such folder).
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"atomic_write replaces whole files: mode is 'w' or 'wb', not {mode!r}")
    path = Path(path)
    if mode == "w":
        open_kwargs = {"encoding": "utf-8", "newline": "\n", **open_kwargs}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    _remove_leftovers(path)
    try:
        with open(temporary, mode, **open_kwargs) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            _sync_folder(path.parent)
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
    if os.name != "posix":  # os.kill(pid, 0) is no question elsewhere
        return
    for temporary in path.parent.glob("*.tmp"):
        name, _, pid = temporary.name[: -len(".tmp")].rpartition(".")
        if name == path.name and pid.isdigit():
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                temporary.unlink(missing_ok=True)
            except (OSError, OverflowError):
                continue


def _sync_folder(folder):
    """Make a rename in `folder` survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path, obj):
    """Write `obj` as indented JSON, atomically."""
    text = json.dumps(obj, indent=2, ensure_ascii=False)  # before the file is opened: it may raise
    with atomic_write(path) as file:
        file.write(text + "\n")


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


def lock_folder(folder):
    """Keep other runs out of an output folder until this process ends. Raises UserError where another is in it."""
    try:
        import fcntl
    except ImportError:
        return  # Windows: two runs in one folder are the user's care
    folder = Path(folder).resolve()
    if folder in LOCKS:
        return
    LOCKS[folder] = os.open(folder, os.O_RDONLY)
    stop = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(LOCKS[folder], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > stop:
                os.close(LOCKS.pop(folder))
                raise UserError(f"{folder}: another run is writing there; wait for its end or stop it") from None
            time.sleep(0.05)
        except OSError:
            return  # a file system without locks


def wait_for_lock(file):
    """Take the lock of an open file, which closing it frees, as soon as no other process holds it."""
    try:
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: another process is at it, waiting", file.name)
            fcntl.flock(file, fcntl.LOCK_EX)
    except (ImportError, OSError):
        pass  # no such locks here: two processes may do the work twice, and the last rename wins

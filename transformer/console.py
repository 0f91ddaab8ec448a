"""What a script says to whoever started it: its log, and how it ends."""

import contextlib
import logging
import os
import signal
import sys

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from transformer.files import UserError

GOES_ON = "the same command goes on from the last saved state"
FORMAT, TIME = "%(asctime)s  %(message)s", "%H:%M:%S"  # of a line of the log


def run(main):
    """Call a script's main(). Bad input ends in one line and status 2, an interruption in status 130 or 143."""
    signal.signal(signal.SIGTERM, _end_at_once)
    signal.signal(signal.SIGINT, _end_at_once)
    try:
        main()
    except KeyboardInterrupt:
        print(f"interrupted: {GOES_ON}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        line = None if "--debug" in sys.argv else _explain(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)


def _explain(error):
    """One line about an error that the user can mend; None for a fault of the code."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror is not None:  # a file that may not be read, a disk that is full
        place = f"{error.filename}: " if error.filename else "a file cannot be read or written: "
        return f"{place}{error.strerror}; {GOES_ON}"
    # Compared by name, because torch is loaded only where a model runs.
    if "OutOfMemory" in type(error).__name__ or "allocate memory" in str(error):
        return f"out of memory; a smaller batch size, or more --gradient_accumulation_steps, may help; {GOES_ON}"
    return None


def _end_at_once(signum, frame):
    """Ctrl-C and SIGTERM outside a training loop (which saves first).

    An exception raised here could come up in the middle of a library's locks and leave the process waiting for ever.
    Every file bears an end at any moment, so the process simply ends.
    """
    word = "terminated" if signum == signal.SIGTERM else "interrupted"
    os.write(2, f"{word}: {GOES_ON}\n".encode())
    os._exit(128 + signum)


def set_up_logging(quiet=False):
    """Log to the terminal. `quiet`: warnings only (all processes but the first)."""
    level = logging.WARNING if quiet else logging.INFO
    logging.basicConfig(stream=sys.stdout, level=level, format=FORMAT, datefmt=TIME, force=True)
    logging.raiseExceptions = False  # a log that cannot be written, on a full disk, is no reason for a traceback


def log_to(path):
    """From here on log to this file as well, and to no other file; None = to the terminal only."""
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, logging.FileHandler)]:
        root.removeHandler(handler)
        handler.close()
    if path is not None:
        try:
            handler = logging.FileHandler(path, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None
        handler.setFormatter(logging.Formatter(FORMAT, TIME))
        root.addHandler(handler)


@contextlib.contextmanager
def progress_bar(total, done, unit, shown=True, **options):
    """A bar where somebody watches the terminal; log lines go above it. `shown`: in this process; options: tqdm's."""
    bar = tqdm(total=total, initial=done, unit=unit, disable=None if shown else True, **options)  # None: on terminals
    with bar, logging_redirect_tqdm():
        yield bar


def format_seconds(seconds):
    """0:07, 12:30 or 1:02:03."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def format_results(results):
    """`acc 0.9375 global_step 30`."""
    texts = {name: f"{value:.4f}" if isinstance(value, float) else value for name, value in results.items()}
    return " ".join(f"{name} {text}" for name, text in texts.items())

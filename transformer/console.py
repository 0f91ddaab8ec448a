"""A script on the terminal: log, progress bars, error messages and exit status."""

import contextlib
import logging
import os
import shlex
import signal
import sys
import time

from transformer.files import UserError, without_secrets

GOES_ON = "the same command goes on from the last saved state"
OTHERS_WAIT = 5  # seconds before another process than the first tells its error
REPORT_SECONDS = 60  # between progress lines in the log, where no bar is shown
FORMAT, TIME = "%(asctime)s  %(message)s", "%H:%M:%S"  # of a log line


def run(main, debug=False):
    """Call a script's main(). Exit status: 2 with one line for bad input, 130 or 143 interrupted, 141 a closed pipe.

    `debug`: show an error's traceback, as --debug does.
    """
    signal.signal(signal.SIGTERM, _end_at_once)
    signal.signal(signal.SIGINT, _end_at_once)
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads standard output any more, as with `| head`
        os._exit(141)  # as a signal would end it; Python's own exit would write there again
    except KeyboardInterrupt:
        print(f"interrupted: {GOES_ON}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        line = None if debug or "--debug" in sys.argv else _explain(error)
        if line is None:
            raise
        if os.environ.get("RANK", "0") != "0":
            # The first process usually tells the same, and torchrun then ends this one.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(OTHERS_WAIT)
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)


def _explain(error):
    """One line about an error that the user can fix; None for a bug."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror is not None:  # no permission, a full disk
        place = f"{error.filename}: " if error.filename else "a file cannot be read or written: "
        return f"{place}{error.strerror}; {GOES_ON}"
    if out_of_memory(error):
        return f"out of memory; a smaller batch size, or more --gradient_accumulation_steps, may help; {GOES_ON}"
    return None


def out_of_memory(error):
    """Whether an error says that memory ran out: Python's, NumPy's or torch's (by name: not every script loads it)."""
    named = "OutOfMemory" in type(error).__name__ or "allocate memory" in str(error)
    return named or isinstance(error, MemoryError)


def _end_at_once(signum, frame):
    """Handle Ctrl-C and SIGTERM outside a training loop (which saves first)."""
    # An exception here could surface while a library holds a lock, and the process would hang. All files are safe
    # against a kill at any moment, so the process can simply end.
    word = "terminated" if signum == signal.SIGTERM else "interrupted"
    os.write(2, f"{word}: {GOES_ON}\n".encode())
    os._exit(128 + signum)


def set_up_logging(quiet=False, stream=None):
    """Log to the terminal. `quiet`: warnings only (all processes but the first); stream: in place of sys.stdout."""
    level = logging.WARNING if quiet else logging.INFO
    stream = stream or sys.stdout
    with contextlib.suppress(AttributeError):  # a name that the terminal cannot show must not cost its line
        stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(stream=stream, level=level, format=FORMAT, datefmt=TIME, force=True)
    logging.raiseExceptions = False  # no tracebacks when a full disk stops the log


def log_to(path):
    """Also log to this file from now on, instead of any earlier one; None = to the terminal only."""
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, logging.FileHandler)]:
        root.removeHandler(handler)
        handler.close()
    if path is not None:
        try:
            handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None
        handler.setFormatter(logging.Formatter(FORMAT, TIME))
        root.addHandler(handler)


def command_line(processes):
    """This process's command, ready to paste where it was started, but for passwords in addresses."""
    several = processes.world_size > 1
    start = ["torchrun", f"--nproc_per_node={processes.world_size}"] if several else ["python"]
    return shlex.join([*start, *map(without_secrets, map(str, sys.argv))])


@contextlib.contextmanager
def progress_bar(total, done, unit, shown=True, **options):
    """A progress bar, on terminals only; log lines appear above it. `shown`: in this process; options: tqdm's."""
    from tqdm import tqdm  # late: the commands that show no bar start without it
    from tqdm.contrib.logging import logging_redirect_tqdm

    bar = tqdm(total=total, initial=done, unit=unit, disable=None if shown else True, **options)  # None = no terminal
    with bar, logging_redirect_tqdm():
        yield bar


def watched(batches):
    """Yield batches below a progress bar; without a terminal a log line tells now and then how far they are."""
    started = told = time.monotonic()
    with progress_bar(len(batches), 0, "batch", leave=False) as bar:
        for done, batch in enumerate(batches):
            now = time.monotonic()
            if bar.disable and done and now - told >= REPORT_SECONDS:
                told, left = now, (now - started) / done * (len(batches) - done)
                logging.info("%d of %d batches, %s left", done, len(batches), format_seconds(left))
            yield batch
            bar.update()


def format_seconds(seconds):
    """0:07, 12:30 or 1:02:03."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def format_results(results):
    """`acc 0.9375 global_step 30`."""
    texts = {name: f"{value:.4f}" if isinstance(value, float) else value for name, value in results.items()}
    return " ".join(f"{name} {text}" for name, text in texts.items())

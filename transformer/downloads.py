"""Downloading once: a cache of files at http, https and s3 addresses, and the model folders made from it; uploads."""

import contextlib
import hashlib
import importlib.util
import logging
import os
import re
import shutil
import time
from pathlib import Path
from urllib.parse import urlsplit

from transformer.files import UserError, atomic_write, make_folder, read_json, wait_for_lock, write_json
from transformer.remote import Missing, Refused, Transient, Unavailable, hub, is_hub, open_http, open_s3, upload_s3

log = logging.getLogger(__name__)

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
TRIES = 5  # in a row without one new byte
BACKOFF = 1.0  # seconds before the second try, doubled for each further one


def cached_path(url_or_path, cache_dir=None, sha256=None):
    """The path of a local file, or of the cached copy of an http://, https:// or s3:// address.

    A cached copy is kept as long as the server says that it is current (ETag), and used as it is when the server cannot
    be reached. `cache_dir` defaults to $TINYBERT_CACHE or ~/.cache/tinybert. Raises UserError in one line.
    """
    address = str(url_or_path)
    if re.match("(https?|s3)://", address):
        target = cache_folder(cache_dir) / f"{_digest(address)}-{_safe(urlsplit(address).path.rsplit('/', 1)[-1])}"
        _fetch(address, target, sha256)
        return target
    if re.match(r"\w[\w+.-]+://", address):
        raise UserError(f"{address}: expected a local path or an http://, https:// or s3:// address")
    path = Path(address).expanduser()
    if not path.exists():
        raise UserError(f"{address}: no such file or folder")
    if sha256 and sha256_of(path) != sha256:
        raise UserError(f"{address}: the sha256 sum differs from {sha256}")
    return path


def _fetch(url, target, sha256=None, offline=False):
    """Make `target` the file at `url`; False when the server could not be asked and the copy had to do."""
    offline = offline or (is_hub(url) and os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"))
    make_folder(target.parent)
    with locked(target):
        copy = _record(target)
        copy = copy if copy.get("url") == url else {}
        held = bool(copy.get("absent")) or (target.is_file() and target.stat().st_size == copy.get("size"))
        copy = copy if held else {}
        if sha256 and copy.get("sha256") == sha256:
            return True
        try:
            if offline:
                raise Transient("is not asked (offline)")
            _download(url, target, {} if copy.get("absent") else copy, sha256, tries=1 if copy else TRIES)
        except Missing:  # worth remembering: without a connection, an optional file is then known to be absent
            write_json(_beside(target, "json"), {"url": url, "absent": True})
            raise
        except OSError as error:
            raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
        except Transient as error:
            if not copy:
                raise Unavailable(f"{url}: {error}, and it is not in the cache ({target.parent})") from error
            if not offline:
                log.info("%s: %s; using the copy in %s", url, error, target.parent)
            if copy.get("absent"):
                raise Missing(f"{url}: was not there when it was last asked for") from error
            return False
    return True


def _download(url, target, copy, sha256, tries):
    """Bring `target` up to date through a .part file that a later try, or run, goes on with."""
    part, part_record = _beside(target, "part"), _beside(target, "part.json")
    failures, farthest = 0, 0
    while True:
        held = read_json(part_record) if part_record.exists() else {}
        try:
            start = part.stat().st_size if part.exists() else 0
            answer = (open_s3 if url.startswith("s3://") else open_http)(url, copy, start, held.get("validator"))
            if answer.unchanged:
                break
            write_json(part_record, {"url": url, "validator": answer.validator})
            _receive(url, answer, part)
            _check_and_place(url, answer, part, target, sha256)
            break
        except Transient as error:
            if error.restart:
                part.unlink(missing_ok=True)
            size = part.stat().st_size if part.exists() else 0
            if size > farthest:  # a poor line that still moves is no failure
                failures, farthest = 0, size
            failures += 1
            if failures >= tries:
                raise
            wait = BACKOFF * 2 ** (failures - 1) if error.wait is None else error.wait
            log.info("%s: %s; trying again in %g s", url, error, wait)
            time.sleep(wait)
    part.unlink(missing_ok=True)
    part_record.unlink(missing_ok=True)


def _receive(url, answer, part):
    """Append the answer's bytes to `part`, or start it anew when the answer is the whole file."""
    from tqdm import tqdm

    small = answer.size is not None and answer.size < 1_000_000
    name = urlsplit(url).path.rsplit("/", 1)[-1]
    if not small:
        log.info("downloading %s (%s)", url, f"{answer.size / 1e6:.0f} MB" if answer.size else "size unknown")
    bar = tqdm(
        desc=name, total=answer.size, initial=answer.start, unit="B", unit_scale=True, disable=True if small else None
    )  # None: no bar where nobody watches
    with open(part, "ab" if answer.start else "wb") as file, bar:
        for chunk in answer.chunks:
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())


def _check_and_place(url, answer, part, target, sha256):
    """Verify size and sum of the finished `part`, then give it its name and its record."""
    size, expected = part.stat().st_size, sha256 or answer.sha256
    if answer.size is not None and size != answer.size:
        raise Transient(f"sent {size} of {answer.size} bytes", restart=size > answer.size)
    found = sha256_of(part)
    if expected and found != expected:
        part.unlink()
        raise UserError(f"{url}: the sha256 sum of what came is {found}, expected {expected}; run it again")
    os.replace(part, target)
    write_json(_beside(target, "json"), {"url": url, "validator": answer.validator, "size": size, "sha256": found})


@contextlib.contextmanager
def locked(target):
    """Hold the lock of `target`, so that two processes do not download the same file; a killed holder frees it.

    Raises UserError where the folder cannot be written.
    """
    try:
        lock = open(_beside(target, "lock"), "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{target.parent}: cannot be written ({error.strerror})") from error
    with lock:
        wait_for_lock(lock)
        yield


def _beside(target, suffix):
    return target.with_name(f".{target.name}.{suffix}")


def _record(target):
    """What is known about a downloaded file: url, validator, size, sha256; empty when nothing."""
    with contextlib.suppress(UserError):
        return read_json(_beside(target, "json"))
    return {}


def forget(target):
    """Remove a cached file and what is known about it, but not its lock: another process may wait on that."""
    target.unlink(missing_ok=True)
    _beside(target, "json").unlink(missing_ok=True)


def cache_folder(cache_dir):
    return Path(cache_dir or os.environ.get("TINYBERT_CACHE") or "~/.cache/tinybert").expanduser()


def _digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _safe(name):
    return re.sub(r"[^\w.-]", "_", name)[-80:] or "file"


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def model_folder(name_or_path, cache_dir=None, need_weights=True):
    """The folder of a model: a local one, or the cached copy of a hub name, an https:// or an s3:// folder.

    With `need_weights` a folder without weights is a UserError that says where to get them.
    """
    name = str(name_or_path).rstrip("/") or "/"
    local = Path(name).expanduser()
    if local.is_dir():
        if need_weights and not any((local / file).is_file() for file in WEIGHTS):
            raise UserError(f"{name}: no weights there ({' or '.join(reversed(WEIGHTS))}); {_advice(local)}")
        return local
    if local.exists():
        raise UserError(f"{name}: a file, expected a model folder")
    if re.match("(https?|s3)://", name):
        return _fetch_model(
            name, name, cache_folder(cache_dir) / "models" / f"{_digest(name)}-{_safe(name)}", need_weights
        )
    stage = re.match("[1-5]_|teacher_model|student_model", local.name) or ("/" in name and local.parent.is_dir())
    if stage or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise UserError(f"{name}: no such folder; {_advice(local)}")
    folder = cache_folder(cache_dir) / "models" / name.replace("/", "--")
    return _fetch_model(name, f"{hub()}/{name}/resolve/main", folder, need_weights)


def _advice(folder):
    if folder.name == "teacher_model":
        return "`python -m transformer.file_utils teacher` fetches the teacher"
    if folder.name == "student_model":
        return "it is the student's configuration, with which general_distill.py trains weights"
    writers = {"3_": "general_distill.py", "4_": "task_distill.py", "5_": "task_distill.py --pred_distill"}
    return f"run {writers.get(folder.name[:2], 'the step that writes it')} first, or name another folder"


def weights_in_order():
    """The names to try for weights: safetensors only where it can be read."""
    return WEIGHTS if importlib.util.find_spec("safetensors") else WEIGHTS[::-1]


def _fetch_model(name, base, folder, need_weights):
    """Fetch the files of a model at the address `base` into `folder`, the weights last."""
    offline = False  # after the first file, so that an unreachable server costs one wait and one line
    try:
        for file in ("config.json", "vocab.txt"):
            offline = not _fetch(f"{base}/{file}", folder / file, offline=offline)
        with contextlib.suppress(Refused):  # without it the casing follows the vocabulary
            offline = not _fetch(f"{base}/tokenizer_config.json", folder / "tokenizer_config.json", offline=offline)
    except Unavailable as error:
        if name == base:
            raise
        raise UserError(f"{name}: no such folder here, and no such model to be had ({error})") from error
    for file in weights_in_order() if need_weights else ():
        with contextlib.suppress(Refused):
            _fetch(f"{base}/{file}", folder / file, offline=offline)
            return folder
    if need_weights:
        raise UserError(f"{name}: neither {WEIGHTS[0]} nor {WEIGHTS[1]} is at {base}")
    return folder


def upload(paths, data_url):
    """Copy finished files and folders to `data_url`, a folder or `s3://bucket/prefix`; nothing when that is empty.

    A file keeps its name, a folder its own and its files' relative ones, as with `cp -r`.
    """
    if not data_url:
        return
    scheme = urlsplit(str(data_url)).scheme
    if "://" in str(data_url) and scheme != "s3":
        raise UserError(f"{data_url}: cannot upload to {scheme}://, expected a folder or s3://bucket/prefix")
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        path = Path(os.path.abspath(path))
        if not path.exists():
            raise UserError(f"{path}: no such file or folder to upload to {data_url}")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and file.suffix not in (".tmp", ".part", ".lock"):
                name = file.relative_to(path.parent).as_posix()
                (upload_s3 if scheme == "s3" else _copy)(file, str(data_url), name)
    log.info("copied to %s", data_url)


def _copy(file, folder, name):
    target = Path(folder).expanduser() / name
    if target.exists() and target.samefile(file):
        return
    make_folder(target.parent)
    try:
        source = open(file, "rb")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    with source, atomic_write(target, "wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)

"""Downloads: a cache of files from http, https and s3 addresses, and model folders made from it. Uploads."""

import contextlib
import hashlib
import importlib.util
import logging
import os
import re
import time
from pathlib import Path

from transformer.files import UserError, append_to, copy_file, make_folder, wait_for_lock, without_secrets, write_json
from transformer.json_file import FLAG, NULL, Field, read_json, whole
from transformer.remote import Missing, Transient, ask_http, ask_s3, failure_of, hub, is_hub, upload_s3

RECORD_NAME = "run.json"  # in an output folder; see outputs.py
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
VALIDATOR = Field("an ETag, a date or null", (str, NULL))
PART = {"validator": VALIDATOR}
COPY = {"url": Field("an address", needed=True), "sha256": Field("a sum", needed=True), "size": whole(), **PART}
# What a record tells the next stage.
MADE = {"finished": FLAG, "command": Field("a command"), "results": Field("names", (list,), of=Field("a file's name"))}
WEIGHT_MAP = Field("the name of a file for each key", (dict,), 1, of=Field("a name"))
INDEX = ".index.json"  # after the name of weights that lie in several files, the shards: which key is in which
# {what a model is read from: the files, any of which will do}
MODEL_PARTS = {
    "weights": (*WEIGHTS[::-1], *(name + INDEX for name in WEIGHTS[::-1])),
    "vocabulary": ("vocab.txt", "tokenizer.json"),
    "configuration": ("config.json",),
}
# {file or folder: (its name in step 0, where step 0 puts it)}
FETCHED = {
    "teacher_model": ("teacher", "teacher_model"),
    "bert-base-chinese": ("bert-base-chinese", "teacher_model/bert-base-chinese"),
    "glove.6B.100d.txt": ("glove", "1_pre_data"),
    "vocab_21128.txt": ("vocab_21128", "1_pre_data"),
}
STAGES = "(3_general_distill|4_task_distill_mid|5_task_distill_out)$"
WRITERS = {"3_": "general_distill.py", "4_": "task_distill.py", "5_": "task_distill.py --pred_distill"}
TRIES = 5  # in a row without a new byte
OVERWRITE = "--overwrite_output"
BACKOFF = 1.0  # seconds before the second try, doubled for each later one


class NotBert(UserError):
    """A model of another kind."""


def cached_path(url_or_path, cache_dir=None, sha256=None):
    """The path of a local file, or of the cached copy of an http://, https:// or s3:// address, which is used while the
    server says that it is current (ETag) and when the server cannot be reached. Raises UserError."""
    address = str(url_or_path)
    if re.match("(https?|s3)://", address):
        target = cache_folder(cache_dir) / _entry(address, re.sub("[?#].*", "", address).rsplit("/", 1)[-1])
        _fetch(address, target, sha256)
        return target
    if re.match(r"\w[\w+.-]+://", address):
        raise UserError(f"{address}: expected a local path or an http://, https:// or s3:// address")
    path = Path(os.path.expanduser(address))  # Path's own raises RuntimeError for ~nobody
    if not path.exists():
        raise UserError(f"{address}: no such file or folder")
    if sha256 and sha256_of(path) != sha256:
        raise UserError(f"{address}: the sha256 sum differs from {sha256}")
    return path


def _fetch(url, target, sha256=None, offline=False):
    """Make `target` the file at `url`; False where the old copy is used: without the server, or on a read-only disk."""
    offline = offline or (is_hub(url) and os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"))
    mask = os.umask(0o077)  # others may have no right to what a password or a token fetches
    try:
        make_folder(target.parent)
        with open(_beside(target, "lock"), "w") as lock:
            wait_for_lock(lock)  # two processes do not download the same file
            copy = _copy_of(url, target, sha256)
            if sha256 and copy:
                return True
            if offline:
                raise Transient("is not asked (offline)")
            _download(url, target, copy, sha256, tries=1 if copy else TRIES)
            return True
    except (OSError, Transient) as error:  # a disk for reading only has no lock, but may have a copy
        if not _copy_of(url, target, sha256):
            told = f"{url}: {error}, and it is not in the cache ({target.parent})"
            if isinstance(error, OSError):
                told = f"{target}: cannot be written ({error.strerror or error})"
            raise (Missing if offline else UserError)(told) from error
        if not offline:
            logging.info("%s: %s; using the copy in %s", without_secrets(url), error, target.parent)
        return False
    finally:
        os.umask(mask)


def _copy_of(url, target, sha256):
    """The record of a complete copy of `url` (with the sum `sha256`, if known), {} without one."""
    copy = read_or_empty(_beside(target, "json"), COPY)
    complete = target.is_file() and target.stat().st_size == copy.get("size")
    same = copy.get("url") == without_secrets(url) and sha256 in (None, copy.get("sha256"))
    return copy if complete and same else {}


def _download(url, target, copy, sha256, tries):
    """Bring `target` up to date; give up after `tries` attempts in a row without a new byte."""
    part, failures, farthest = _beside(target, "part"), 0, 0
    while True:
        try:
            return _try(url, target, copy, sha256)
        except Transient as error:
            size = part.stat().st_size if part.exists() else 0
            failures = failures + 1 if size <= farthest else 1  # a slow line that makes progress may go on
            farthest = max(size, farthest)
            if failures >= tries:
                raise
            wait = BACKOFF * 2 ** (failures - 1)
            logging.info("%s: %s; trying again in %g s", without_secrets(url), error, wait)
            time.sleep(wait)


def _try(url, target, copy, sha256):
    """Bring `target` up to date through a .part file, which a later try or run continues."""
    part, part_record = _beside(target, "part"), _beside(target, "part.json")
    start = part.stat().st_size if part.exists() else 0
    version = read_or_empty(part_record, PART).get("validator")
    headers = {"Accept-Encoding": "identity"}  # so that lengths are those of the file
    if copy.get("validator"):  # an ETag or a date
        headers["If-None-Match" if '"' in copy["validator"] else "If-Modified-Since"] = copy["validator"]
    if start and version and not version.startswith("W/"):
        headers.update({"Range": f"bytes={start}-", "If-Range": version})
    status, received, linked, chunks = (ask_s3 if url.startswith("s3://") else ask_http)(url, headers)
    validator = received.get("etag") or received.get("last-modified")
    same = copy and (validator == copy["validator"] is not None or linked == copy["sha256"])
    if not (status == 304 and copy) and not (status == 200 and same):
        # A part's own length does not tell whether the file ends with it; the total does.
        total = re.fullmatch(rf"bytes {start}-\d+/(\d{{1,18}})", received.get("content-range", ""), re.ASCII)
        resumed = "Range" in headers and status == 206 and validator == version and total
        outdated = "Range" in headers and status in (206, 412, 416) and not resumed
        if outdated or status == 200:  # before a record of the new version is written beside it
            part.unlink(missing_ok=True)
        if outdated:
            return _try(url, target, copy, sha256)
        if status in (404, 410) and is_hub(url):
            target.unlink(missing_ok=True)  # else what the hub took back would still be read
        if status != 200 and not resumed:
            raise failure_of(url, status)
        about = {"url": without_secrets(url), "validator": validator}
        write_json(part_record, about)
        encoded = received.get("content-encoding", "identity") != "identity"
        length = total[1] if resumed else None if encoded else received.get("content-length")
        if not re.fullmatch(r"\d{1,18}", length or "0", re.ASCII):
            raise UserError(f"{url}: the server says Content-Length: {length[:80]!r}, expected a number of bytes")
        _receive(url, chunks, part, start if resumed else 0, None if length is None else int(length))
        found, expected = sha256_of(part), sha256 or linked
        if expected and found != expected:
            part.unlink()
            raise UserError(f"{url}: the download has the sha256 sum {found}, expected {expected}; run it again")
        os.replace(part, target)
        write_json(_beside(target, "json"), {**about, "size": target.stat().st_size, "sha256": found})
    part.unlink(missing_ok=True)
    part_record.unlink(missing_ok=True)


def _receive(url, chunks, part, start, size):
    """Append the received bytes to `part`, which holds `start` bytes; `size` is that of the whole file, if known."""
    from tqdm import tqdm

    url = without_secrets(url)
    small = size is not None and size < 1_000_000
    if not small:
        logging.info("downloading %s (%s)", url, f"{size / 1e6:.0f} MB" if size else "size unknown")
    shown = {"desc": url.rpartition("/")[2], "total": size, "initial": start, "unit": "B", "unit_scale": True}
    with append_to(part, start) as file, tqdm(**shown, disable=small or None) as bar:  # None: no bar without a terminal
        for chunk in chunks:
            file.write(chunk)
            bar.update(len(chunk))
    if size not in (None, part.stat().st_size):
        raise Transient(f"sent {part.stat().st_size} of {size} bytes")


def _beside(target, suffix):
    return target.with_name(f".{target.name}.{suffix}")


def read_or_empty(path, fields=None):
    """The object in a JSON file that step 0 wrote; {} if it is missing or not valid."""
    with contextlib.suppress(UserError):
        return read_json(path, fields)
    return {}


def cache_folder(cache_dir):
    return Path(os.path.expanduser(cache_dir or os.environ.get("TINYBERT_CACHE") or "~/.cache/tinybert"))


def _entry(address, name):
    digest = hashlib.sha256(address.encode()).hexdigest()[:16]
    readable = re.sub(r"[^\w.-]", "_", without_secrets(name))[-80:] or "file"
    return f"{digest}-{readable}"


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def model_folder(name_or_path, cache_dir=None, need_weights=True):
    """The folder of a model: a local one, or the cached copy of a hub name, an https:// or an s3:// folder. Raises
    UserError where there is no model, or `need_weights` and no weights or no config.json."""
    name = str(name_or_path).rstrip("/") or "/"
    local, models = Path(os.path.expanduser(name)), cache_folder(cache_dir) / "models"
    if local.is_dir():
        for part in ("weights", "configuration") if need_weights else ():
            need(part, local)
        check_finished(local)
        if (local / "config.json").is_file():
            check_model_type(local / "config.json")
        return local
    if local.exists():
        raise UserError(f"{name}: a file, expected a model folder")
    if re.match("(https?|s3)://", name):
        return fetch_model(name, models / _entry(name, name), need_weights)
    ours = any(re.match("[1-5]_|teacher_model|student_model", part) for part in local.parts)
    if ours or ("/" in name and local.parent.is_dir()) or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        advice = advice_on(local) or "run the step that writes it first, or name another folder"
        raise UserError(f"{name}: no such {'file' if local.suffix == '.txt' else 'folder'}; {advice}")
    try:
        return fetch_model(f"{hub()}/{name}/resolve/main", models / name.replace("/", "--"), need_weights)
    except NotBert:
        raise
    except UserError as error:
        raise UserError(f"{name}: no such folder here, and no such model to download ({error})") from error


def need(part, folder):
    """Raise UserError where a model folder lacks a part: "weights", "vocabulary" or "configuration"."""
    files = MODEL_PARTS[part]
    found = next((file for file in files if (Path(folder) / file).is_file()), None)
    if found is None:
        advice = advice_on(folder) or f"copy {files[0]} from where the model came from"
        raise UserError(f"{folder}: no {part} there ({' or '.join(files[:2])}); {advice}")
    for name in shards(Path(folder) / found) if found.endswith(INDEX) else ():
        if not (Path(folder) / name).is_file():
            raise UserError(f"{folder}: no {name} there, which {found} names; copy it from where the model came from")


def missing_files(folder, names):
    """Those of a record's "results" that its folder lacks. Any file of MODEL_PARTS will do for a part of a model, as
    weights may have been converted."""
    parts = {file: files for files in MODEL_PARTS.values() for file in files}
    return [name for name in names if not any((Path(folder) / file).is_file() for file in parts.get(name, (name,)))]


def check_finished(folder):
    """Raise UserError where the record in an input folder says that its run has not finished, or names a file that is
    gone; with the command that makes it whole."""
    record = read_or_empty(Path(folder) / RECORD_NAME, MADE)
    if not record.get("finished", True):
        command = record.get("command", "the command that began it")
        raise UserError(f"{folder}: its run is at work or was stopped; finished by: {command}")
    if lost := missing_files(folder, record.get("results", ())):  # records of before have none
        told = f"missing, though its run finished; put it back, or: {advice_on(folder)}"
        raise UserError(f"{Path(folder) / lost[0]}: {told}")


def shards(index):
    """The names of the files that together hold the weights, from their index. Raises UserError for a malformed one,
    and for names outside of its folder."""
    keys = read_json(index).get("weight_map")
    names = list(keys.values()) if WEIGHT_MAP.fits(keys) else []
    if not names or not all(re.fullmatch(r"[\w.-]+\.(bin|safetensors)", name) for name in names):
        raise UserError(f"{index}: expected a weight_map from each key to the name of a file beside it")
    return sorted(set(names))


def check_model_type(path):
    """Raise UserError where a config.json is that of another kind of model, RoBERTa say; without a type it is BERT."""
    found = read_json(path).get("model_type") or "bert"
    if found != "bert":
        raise NotBert(f"{path}: model_type is {found!r}; this suite reads BERT (model_type 'bert')")


def advice_on(path):
    """How to get what is missing or incomplete, by its name, ending with the command; None where nothing brings it."""
    if command := read_or_empty(Path(path) / RECORD_NAME, MADE).get("command"):
        return f"made again by: {command}{'' if OVERWRITE in command else f' {OVERWRITE}'}"
    *_, above, name = ("", *Path(os.path.abspath(os.path.expanduser(path))).parts)
    if name in FETCHED:
        return fetch_advice(*FETCHED[name])
    if name == "student_model":
        return "it is the student's configuration; to train weights: python general_distill.py"
    if above[:2] in ("4_", "5_") and not re.match("seed_|baseline", name):
        return f"made by: python {WRITERS[above[:2]]} --task_name {name}"
    return f"made by: python {WRITERS[name[:2]]}" if re.match(STAGES, name) else None


def fetch_advice(source, place):
    """The end of a message about something that step 0 fetches."""
    return f"fetched into {place}/ by: python -m transformer.file_utils {source}"


def weights_in_order():
    """The names of weights to try: safetensors first if it can be read."""
    return WEIGHTS if importlib.util.find_spec("safetensors") else WEIGHTS[::-1]


def fetch_model(address, folder, need_weights):
    """Fetch the files of the model at `address` into `folder`, which is returned; the weights last."""
    offline = False  # true after the first file that fails, so that an unreachable server costs one wait and one line

    def fetch(file):
        nonlocal offline
        offline = not _fetch(f"{address}/{file}", folder / file, offline=offline)

    fetch("config.json")
    check_model_type(folder / "config.json")  # before the vocabulary, which others have in other files
    fetch("vocab.txt")
    # Without it the vocabulary decides the casing. The weights come last: a copy with weights is complete.
    with contextlib.suppress(Missing):
        fetch("tokenizer_config.json")
    order = weights_in_order()
    for file in (*order, *(name + INDEX for name in order)) if need_weights else ():
        try:
            fetch(file)
        except Missing:
            continue
        found = {file, *(shards(folder / file) if file.endswith(INDEX) else ())}
        for shard in sorted(found - {file}):
            fetch(shard)
        for other in folder.glob("*") if not offline else ():  # older weights, which would be read in their place
            if other.name not in found and re.fullmatch(r"\w.*\.(bin|safetensors)(\.index\.json)?", other.name):
                other.unlink(missing_ok=True)
        return folder
    if need_weights:
        raise UserError(f"{address}: neither {WEIGHTS[0]} nor {WEIGHTS[1]} is there")
    return folder


def check_upload(data_url):
    """Whether `data_url` is an s3:// address and not a folder. Raises UserError where it is neither."""
    scheme, found, rest = str(data_url).partition("://")
    if (found and (scheme != "s3" or not rest.strip("/"))) or os.path.isfile(os.path.expanduser(data_url)):
        raise UserError(f"{data_url}: cannot upload to {scheme}{found}, expected a folder or s3://bucket/prefix")
    return bool(found)


def upload(paths, data_url, without=()):
    """Copy finished files and folders to `data_url`, a folder or s3://bucket/prefix, as `cp -r` does; nothing if that
    is empty. `without`: folders inside them that stay behind."""
    if not data_url:
        return
    found = check_upload(data_url)
    without = {Path(os.path.abspath(folder)) for folder in without}
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        path = Path(os.path.abspath(path))
        if not path.exists():
            raise UserError(f"{path}: no such file or folder to upload to {data_url}")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if without & {*file.parents} or file.suffix in (".tmp", ".part", ".lock"):
                continue
            if file.is_file():
                name = file.relative_to(path.parent).as_posix()
                if found:
                    upload_s3(file, data_url, name)
                else:
                    copy_file(file, Path(os.path.expanduser(data_url)) / name)
    logging.info("copied to %s", data_url)

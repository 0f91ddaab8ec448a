"""Step 0: fetch the teacher (bert-base-uncased), the GloVe vectors and GLUE tasks into their folders.

Reads public addresses (the table SOURCES); writes teacher_model/, 1_pre_data/glove.6B.100d.txt and a folder a task.
A download that was cut off goes on where it stopped; a file that is there and intact is not fetched again.
Without a name it lists what it can fetch and what is there already.
第 0 步:下载教师模型、GloVe 词向量和 GLUE 任务数据(支持断点续传)。

    python -m transformer.file_utils teacher glove SST-2
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

log = logging.getLogger(__name__)

HUB = "https://huggingface.co"  # HF_ENDPOINT replaces it
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
TRIES = 5  # in a row without one new byte
BACKOFF = 1.0  # seconds before the second try, doubled for each further one
TIMEOUT = 20.0  # seconds without an answer
CHUNK = 1 << 16  # bytes; what a cut connection can lose


class Source(NamedTuple):
    """What step 0 can fetch: the files it makes in `folder` and the addresses they come from."""

    folder: str
    files: tuple
    megabytes: float  # of the download
    addresses: tuple


GLUE = "https://dl.fbaipublicfiles.com/glue/data/"
SENTEVAL = "https://dl.fbaipublicfiles.com/senteval/senteval_data/"
TEACHER = "bert-base-uncased"
TSV = ("train.tsv", "dev.tsv", "test.tsv")
MNLI_TSV = ("train.tsv", "dev_matched.tsv", "dev_mismatched.tsv", "test_matched.tsv", "test_mismatched.tsv")
MRPC_RAW = (SENTEVAL + "msr_paraphrase_train.txt", SENTEVAL + "msr_paraphrase_test.txt", GLUE + "mrpc_dev_ids.tsv")

# TINYBERT_MIRROR=https://host/folder stands in for the scheme and host of every address here.
SOURCES = {
    "teacher": Source("teacher_model", ("config.json", "vocab.txt", "tokenizer_config.json", "weights"), 441, ()),
    "glove": Source("1_pre_data", ("glove.6B.100d.txt",), 862, ("https://nlp.stanford.edu/data/glove.6B.zip",)),
    "CoLA": Source("CoLA", TSV, 0.4, (GLUE + "CoLA.zip",)),
    "SST-2": Source("SST-2", TSV, 7.4, (GLUE + "SST-2.zip",)),
    "MRPC": Source("MRPC", TSV, 1.5, MRPC_RAW),
    "STS-B": Source("STS-B", TSV, 0.8, (GLUE + "STS-B.zip",)),
    "QQP": Source("QQP", TSV, 42, (GLUE + "QQP-clean.zip",)),
    "MNLI": Source("MNLI", MNLI_TSV, 313, (GLUE + "MNLI.zip",)),
    "QNLI": Source("QNLI", TSV, 11, (GLUE + "QNLIv2.zip",)),
    "RTE": Source("RTE", TSV, 0.7, (GLUE + "RTE.zip",)),
    "WNLI": Source("WNLI", TSV, 0.03, (GLUE + "WNLI.zip",)),
    "AX": Source("AX", ("AX.tsv",), 0.2, (GLUE + "AX.tsv",)),
}

# The teacher's weights are checked against the sum that the hub sends, GloVe against the archive's own.
CHECKSUMS = {
    "CoLA.zip": "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff",
    "SST-2.zip": "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa",
    "STS-B.zip": "e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85",
    "QQP-clean.zip": "40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0",
    "MNLI.zip": "e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633",
    "QNLIv2.zip": "e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5",
    "RTE.zip": "6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee",
    "WNLI.zip": "ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46",
    "msr_paraphrase_train.txt": "60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89",
    "msr_paraphrase_test.txt": "a04e271090879aaba6423d65b94950c089298587d9c084bf9cd7439bd785f784",
}


class UserError(Exception):
    """Bad input; the scripts print it as one line and exit with status 2."""


class _Unavailable(UserError):
    """The server cannot be asked, and the cache does not have the file."""


class _Refused(_Unavailable):
    """The server does not give this file (401, 403)."""


class _Missing(_Refused):
    """The server does not have this file (404)."""


class _Transient(Exception):
    """A failure worth another try, after `wait` seconds if the server named them."""

    def __init__(self, message, wait=None, restart=False):
        super().__init__(message)
        self.wait, self.restart = wait, restart


# Writing


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
                (_upload_s3 if scheme == "s3" else _copy)(file, str(data_url), name)
    log.info("copied to %s", data_url)


def _copy(file, folder, name):
    target = Path(folder).expanduser() / name
    if target.exists() and target.samefile(file):
        return
    _make_folder(target.parent)
    try:
        source = open(file, "rb")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    with source, atomic_write(target, "wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)


def _upload_s3(file, data_url, name):
    client, bucket, prefix = _s3(data_url)
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client.upload_file(str(file), bucket, f"{prefix.rstrip('/')}/{name}".lstrip("/"))
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise UserError(f"{file}: cannot be uploaded to {data_url} ({_one_line(error)})") from error


# Asking a server


@dataclasses.dataclass
class _Answer:
    """A server's answer: the whole file's size and validator (ETag or date), and its bytes from `start` on."""

    unchanged: bool = False
    start: int = 0
    size: int | None = None
    validator: str | None = None
    sha256: str | None = None
    chunks: Iterator[bytes] = iter(())


def _open_http(url, copy, start, part_validator):
    """Ask for `url` from byte `start` of the version `part_validator` on, unless the record `copy` still is current."""
    import requests

    headers = {"Accept-Encoding": "identity"}  # so that lengths are the file's
    if copy.get("validator"):
        headers["If-None-Match" if '"' in copy["validator"] else "If-Modified-Since"] = copy["validator"]
    if start and part_validator and not part_validator.startswith("W/"):
        headers.update({"Range": f"bytes={start}-", "If-Range": part_validator})
    if os.environ.get("HF_TOKEN") and _is_hub(url):
        headers["Authorization"] = f"Bearer {os.environ['HF_TOKEN']}"
    try:
        response = requests.get(url, headers=headers, stream=True, timeout=TIMEOUT)
    except requests.exceptions.SSLError as error:
        raise UserError(f"{url}: no secure connection ({_one_line(error)})") from error
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _Transient(f"cannot be reached ({type(error).__name__})") from error
    except requests.RequestException as error:
        raise UserError(f"{url}: {_one_line(error)}") from error

    # The hub names the file's sum on its redirect; the storage behind it may have an ETag of its own kind.
    linked = next(
        (r.headers["X-Linked-Etag"].strip('"') for r in [*response.history, response] if "X-Linked-Etag" in r.headers),
        "",
    )
    sha256 = linked if re.fullmatch("[0-9a-f]{64}", linked) else None
    validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
    same = bool(copy) and (validator == copy["validator"] is not None or sha256 == copy["sha256"])
    if response.status_code == 304 or (response.status_code == 200 and same):
        response.close()
        return _Answer(unchanged=True)
    begins = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if response.status_code == 206 and not (begins and int(begins[1]) == start and validator == part_validator):
        response.close()
        raise _Transient("sent another part than was asked for", restart=True)
    if response.status_code not in (200, 206):
        response.close()
        raise _failure(url, response.status_code, response.headers.get("Retry-After"))

    start = start if response.status_code == 206 else 0
    length = response.headers.get("Content-Length")
    encoded = response.headers.get("Content-Encoding", "identity") != "identity"
    size = None if length is None or encoded else start + int(length)

    def chunks():
        try:
            with response:
                yield from response.iter_content(CHUNK)
        except requests.RequestException as error:
            raise _Transient("broke off") from error

    return _Answer(start=start, size=size, validator=validator, sha256=sha256, chunks=chunks())


def _open_s3(url, copy, start, part_validator):
    """As `_open_http`, for an s3:// address."""
    client, bucket, key = _s3(url)
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

    try:
        head = client.head_object(Bucket=bucket, Key=key)
        etag = head["ETag"]
        if copy and copy["validator"] == etag:
            return _Answer(unchanged=True)
        start = start if part_validator == etag and start < head["ContentLength"] else 0
        wanted = {"Range": f"bytes={start}-"} if start else {}
        body = client.get_object(Bucket=bucket, Key=key, IfMatch=etag, **wanted)["Body"]
    except ClientError as error:
        raise _failure(url, error.response["ResponseMetadata"]["HTTPStatusCode"]) from error
    except (ConnectionError, HTTPClientError) as error:
        raise _Transient(f"cannot be reached ({type(error).__name__})") from error
    except BotoCoreError as error:
        raise UserError(f"{url}: {_one_line(error)}") from error

    def chunks():
        try:
            yield from body.iter_chunks(CHUNK)
        except BotoCoreError as error:
            raise _Transient("broke off") from error

    return _Answer(start=start, size=head["ContentLength"], validator=etag, chunks=chunks())


def _failure(url, status, retry_after=None):
    """The error for an HTTP status that is no success."""
    if status in (404, 410):
        return _Missing(f"{url}: no such file on the server ({status})")
    if status in (401, 403):
        hint = "set HF_TOKEN to a token that may read it" if _is_hub(url) else "check the address and the credentials"
        return _Refused(f"{url}: access refused ({status}); {hint}")
    if status == 416:
        return _Transient("does not have the rest of the file that is here", restart=True)
    if status in (408, 412, 429) or status >= 500:
        wait = min(int(retry_after), 60) if (retry_after or "").isdigit() else None
        return _Transient(f"the server answered {status}", wait)
    return UserError(f"{url}: the server answered {status}")


def _s3(url):
    """A client, the bucket and the key of an s3:// address."""
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise UserError(f"{url}: s3:// needs the boto3 package (pip install boto3)") from error
    bucket, _, key = url.removeprefix("s3://").partition("/")  # not urlsplit(): a key may have '?' and '#' in it
    if not bucket:
        raise UserError(f"{url}: expected s3://bucket/key")
    try:
        session = boto3.session.Session()
        # Public buckets are readable without an account.
        signed = {} if session.get_credentials() else {"signature_version": UNSIGNED}
        config = Config(connect_timeout=TIMEOUT, **signed)
        client = session.client("s3", endpoint_url=os.environ.get("AWS_ENDPOINT_URL") or None, config=config)
    except (BotoCoreError, ValueError) as error:
        raise UserError(f"{url}: {_one_line(error)}") from error
    return client, bucket, key


def s3_files(url):
    """The addresses of all objects under s3://bucket/prefix, in order. Raises UserError where they cannot be listed."""
    client, bucket, prefix = _s3(url)
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return sorted(f"s3://{bucket}/{item['Key']}" for page in pages for item in page.get("Contents", ()))
    except (BotoCoreError, ClientError) as error:
        raise UserError(f"{url}: cannot be listed ({_one_line(error)})") from error


def _hub():
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def _is_hub(url):
    return urlsplit(url).netloc == urlsplit(_hub()).netloc


def _one_line(error):
    return " ".join(str(error).split())[:300]


# Downloading once


def cached_path(url_or_path, cache_dir=None, sha256=None):
    """The path of a local file, or of the cached copy of an http://, https:// or s3:// address.

    A cached copy is kept as long as the server says that it is current (ETag), and used as it is when the server cannot
    be reached. `cache_dir` defaults to $TINYBERT_CACHE or ~/.cache/tinybert. Raises UserError in one line.
    """
    address = str(url_or_path)
    if re.match("(https?|s3)://", address):
        target = _cache(cache_dir) / f"{_digest(address)}-{_safe(urlsplit(address).path.rsplit('/', 1)[-1])}"
        _fetch(address, target, sha256)
        return target
    if re.match(r"\w[\w+.-]+://", address):
        raise UserError(f"{address}: expected a local path or an http://, https:// or s3:// address")
    path = Path(address).expanduser()
    if not path.exists():
        raise UserError(f"{address}: no such file or folder")
    if sha256 and _sha256(path) != sha256:
        raise UserError(f"{address}: the sha256 sum differs from {sha256}")
    return path


def _fetch(url, target, sha256=None, offline=False):
    """Make `target` the file at `url`; False when the server could not be asked and the copy had to do."""
    offline = offline or (_is_hub(url) and os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"))
    _make_folder(target.parent)
    with _locked(target):
        copy = _record(target)
        copy = copy if copy.get("url") == url else {}
        held = bool(copy.get("absent")) or (target.is_file() and target.stat().st_size == copy.get("size"))
        copy = copy if held else {}
        if sha256 and copy.get("sha256") == sha256:
            return True
        try:
            if offline:
                raise _Transient("is not asked (offline)")
            _download(url, target, {} if copy.get("absent") else copy, sha256, tries=1 if copy else TRIES)
        except _Missing:  # worth remembering: without a connection, an optional file is then known to be absent
            write_json(_beside(target, "json"), {"url": url, "absent": True})
            raise
        except OSError as error:
            raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
        except _Transient as error:
            if not copy:
                raise _Unavailable(f"{url}: {error}, and it is not in the cache ({target.parent})") from error
            if not offline:
                log.info("%s: %s; using the copy in %s", url, error, target.parent)
            if copy.get("absent"):
                raise _Missing(f"{url}: was not there when it was last asked for") from error
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
            answer = (_open_s3 if url.startswith("s3://") else _open_http)(url, copy, start, held.get("validator"))
            if answer.unchanged:
                break
            write_json(part_record, {"url": url, "validator": answer.validator})
            _receive(url, answer, part)
            _check_and_place(url, answer, part, target, sha256)
            break
        except _Transient as error:
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
        raise _Transient(f"sent {size} of {answer.size} bytes", restart=size > answer.size)
    found = _sha256(part)
    if expected and found != expected:
        part.unlink()
        raise UserError(f"{url}: the sha256 sum of what came is {found}, expected {expected}; run it again")
    os.replace(part, target)
    write_json(_beside(target, "json"), {"url": url, "validator": answer.validator, "size": size, "sha256": found})


@contextlib.contextmanager
def _locked(target):
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


def _beside(target, suffix):
    return target.with_name(f".{target.name}.{suffix}")


def _record(target):
    """What is known about a downloaded file: url, validator, size, sha256; empty when nothing."""
    with contextlib.suppress(UserError):
        return read_json(_beside(target, "json"))
    return {}


def _forget(target):
    """Remove a cached file and what is known about it, but not its lock: another process may wait on that."""
    target.unlink(missing_ok=True)
    _beside(target, "json").unlink(missing_ok=True)


def _cache(cache_dir):
    return Path(cache_dir or os.environ.get("TINYBERT_CACHE") or "~/.cache/tinybert").expanduser()


def _make_folder(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror})") from error


def _digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _safe(name):
    return re.sub(r"[^\w.-]", "_", name)[-80:] or "file"


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# Model folders


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
        return _fetch_model(name, name, _cache(cache_dir) / "models" / f"{_digest(name)}-{_safe(name)}", need_weights)
    stage = re.match("[1-5]_|teacher_model|student_model", local.name) or ("/" in name and local.parent.is_dir())
    if stage or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise UserError(f"{name}: no such folder; {_advice(local)}")
    folder = _cache(cache_dir) / "models" / name.replace("/", "--")
    return _fetch_model(name, f"{_hub()}/{name}/resolve/main", folder, need_weights)


def _advice(folder):
    if folder.name == "teacher_model":
        return "`python -m transformer.file_utils teacher` fetches the teacher"
    if folder.name == "student_model":
        return "it is the student's configuration, with which general_distill.py trains weights"
    writers = {"3_": "general_distill.py", "4_": "task_distill.py", "5_": "task_distill.py --pred_distill"}
    return f"run {writers.get(folder.name[:2], 'the step that writes it')} first, or name another folder"


def _weights_in_order():
    """The names to try for weights: safetensors only where it can be read."""
    return WEIGHTS if importlib.util.find_spec("safetensors") else WEIGHTS[::-1]


def _fetch_model(name, base, folder, need_weights):
    """Fetch the files of a model at the address `base` into `folder`, the weights last."""
    offline = False  # after the first file, so that an unreachable server costs one wait and one line
    try:
        for file in ("config.json", "vocab.txt"):
            offline = not _fetch(f"{base}/{file}", folder / file, offline=offline)
        with contextlib.suppress(_Refused):  # without it the casing follows the vocabulary
            offline = not _fetch(f"{base}/tokenizer_config.json", folder / "tokenizer_config.json", offline=offline)
    except _Unavailable as error:
        if name == base:
            raise
        raise UserError(f"{name}: no such folder here, and no such model to be had ({error})") from error
    for file in _weights_in_order() if need_weights else ():
        with contextlib.suppress(_Refused):
            _fetch(f"{base}/{file}", folder / file, offline=offline)
            return folder
    if need_weights:
        raise UserError(f"{name}: neither {WEIGHTS[0]} nor {WEIGHTS[1]} is at {base}")
    return folder


# Step 0


def unpack(archive, names, folder):
    """Write the members of a zip archive that are called `names` (at its top or one folder down) into `folder`.

    Only these names are ever written, so no member can land elsewhere. Raises UserError when one is missing or broken.
    """
    try:
        with zipfile.ZipFile(archive) as bundle:
            for name in names:
                member = next((m for m in bundle.namelist() if re.fullmatch(rf"([\w-]+/)?{re.escape(name)}", m)), None)
                if member is None:
                    raise UserError(f"{archive}: holds no {name}")
                _set_aside(folder / name)
                with bundle.open(member) as source, atomic_write(folder / name, "wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"{archive}: not a sound zip archive ({error})") from error


def make_mrpc(train, test, dev_ids, names, folder):
    """Write `names` (of train.tsv, dev.tsv, test.tsv) in GLUE's layout, from the corpus as Microsoft released it."""
    ids = {tuple(line.split("\t")) for line in _lines(dev_ids)}
    columns = "#1 ID\t#2 ID\t#1 String\t#2 String"
    out = {"train.tsv": [f"Quality\t{columns}"], "dev.tsv": [f"Quality\t{columns}"], "test.tsv": [f"index\t{columns}"]}
    for path in (train, test):
        for number, line in enumerate(_lines(path)[1:], start=2):
            row = line.split("\t")
            if len(row) != 5:
                raise UserError(f"{path}, line {number}: {len(row)} columns, expected 5 (quality, 2 ids, 2 sentences)")
            if path == test:  # GLUE keeps the test labels to itself and numbers the rows instead
                out["test.tsv"].append("\t".join([str(number - 2), *row[1:]]))
            else:
                out["dev.tsv" if (row[1], row[2]) in ids else "train.tsv"].append(line)
    for name in names:
        _set_aside(folder / name)
        with atomic_write(folder / name) as file:
            file.write("\n".join(out[name]) + "\n")


def _lines(path):
    # Split at "\n" only: the sentences hold other characters that splitlines() takes for line ends.
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
    return [line.strip("\r") for line in text.split("\n") if line.strip()]


def _set_aside(path):
    """Keep a file that was changed after it was fetched, under another name."""
    if path.exists() and path.stat().st_size:
        os.replace(path, f"{path}.old")
        log.info("%s: was changed after it was fetched; kept as %s.old", path, path.name)


def _mirrored(url):
    mirror = os.environ.get("TINYBERT_MIRROR")
    return mirror.rstrip("/") + urlsplit(url).path if mirror else url


def _file_states(name, root, cache):
    """The state of each file of a source: missing, intact, changed, or there (not fetched by us, so taken as it is)."""
    folder, files = root / SOURCES[name].folder, SOURCES[name].files
    fetched = read_json(cache / "fetched.json") if (cache / "fetched.json").exists() else {}
    states = {}
    for file in files:
        if file == "weights":
            file = next((w for w in WEIGHTS if (folder / w).exists()), _weights_in_order()[0])
        path = folder / file
        known = fetched.get(str(path.resolve()))
        if not path.is_file() or not path.stat().st_size:
            states[file] = "missing"
        elif known is None:
            states[file] = "there"
        else:
            intact = path.stat().st_size == known["size"] and _sha256(path) == known["sha256"]
            states[file] = "intact" if intact else "changed"
    return states


def _note_fetched(paths, cache):
    """Remember what was put into the folders, to tell later whether it is intact."""
    with _locked(cache / "fetched.json"):
        fetched = read_json(cache / "fetched.json") if (cache / "fetched.json").exists() else {}
        for path in paths:
            fetched[str(path.resolve())] = {"size": path.stat().st_size, "sha256": _sha256(path)}
        write_json(cache / "fetched.json", fetched)


def fetch_source(name, root, cache):
    """Fetch what is missing of one row of SOURCES into its folder under `root`."""
    source, states = SOURCES[name], _file_states(name, root, cache)
    wanted = [file for file, state in states.items() if state in ("missing", "changed")]
    folder = root / source.folder
    if not wanted:
        log.info("%s: already in %s/", name, source.folder)
        return
    _make_folder(folder)
    if name == "teacher":
        wanted = _fetch_teacher(wanted, folder, cache)
    else:
        raw = [cached_path(_mirrored(url), cache, CHECKSUMS.get(url.rsplit("/", 1)[-1])) for url in source.addresses]
        if name == "MRPC":
            make_mrpc(*raw, wanted, folder)
        elif source.addresses[0].endswith(".zip"):
            unpack(*raw, wanted, folder)
        else:
            _move(*raw, folder / wanted[0])
        for path in raw:  # what is unpacked is not kept twice
            _forget(path)
    _note_fetched([folder / file for file in wanted], cache)
    log.info("%s: %s in %s/", name, ", ".join(wanted), source.folder)


def _fetch_teacher(wanted, folder, cache):
    """Put the teacher's missing files into `folder`; the names of those that came."""
    came = []
    for file in wanted:
        candidates = _weights_in_order() if file in WEIGHTS else (file,)
        for candidate in candidates:
            url = _mirrored(f"{_hub()}/{TEACHER}/resolve/main/{candidate}")
            try:
                path = cached_path(url, cache)
            except _Refused:
                if candidate != candidates[-1]:
                    continue
                if file == "tokenizer_config.json":  # without it the casing follows the vocabulary
                    break
                raise
            _set_aside(folder / candidate)
            _move(path, folder / candidate)
            came.append(candidate)
            break
    return came


def _move(path, target):
    try:
        os.replace(path, target)
    except OSError:  # the cache may lie on another disk
        with open(path, "rb") as source, atomic_write(target, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    _forget(path)


def print_table(root, cache):
    """Print what can be fetched, where it goes, its size and whether it is there."""
    print(f"{'name':<9}{'goes to':<34}{'download':>9}  state")
    for name, source in SOURCES.items():
        states = _file_states(name, root, cache)
        bad = [f"{state}: {file}" for file, state in states.items() if state in ("missing", "changed")]
        goes_to = f"{source.folder}/" + (source.files[0] if len(source.files) == 1 else f" ({len(source.files)} files)")
        if len(bad) == len(states):
            summary = "missing" if set(states.values()) == {"missing"} else "changed"
        else:
            summary = ", ".join(bad) or ("intact" if set(states.values()) == {"intact"} else "there (your own files)")
        print(f"{name:<9}{goes_to:<34}{source.megabytes:>6g} MB  {summary}")


def parse_args(argv=None):
    """The command line of step 0."""
    parser = argparse.ArgumentParser(
        prog="python -m transformer.file_utils",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("names", nargs="*", help=f"what to fetch: {', '.join(SOURCES)}, or all (every GLUE task)")
    parser.add_argument("--dir", type=Path, default=root, help="folder of teacher_model/, SST-2/ ... (this suite's)")
    parser.add_argument("--cache_dir", help="where unfinished downloads lie ($TINYBERT_CACHE or ~/.cache/tinybert)")
    parser.add_argument("--list", action="store_true", help="only print what there is to fetch and what is there")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


def main(argv=None):
    """Fetch the named sources, or list them; the exit status."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cache = _cache(args.cache_dir)
    canonical = {name.lower(): name for name in SOURCES}
    glue = [name for name in SOURCES if name not in ("teacher", "glove")]
    try:
        names = []
        for name in args.names:
            if name.lower() != "all" and name.lower() not in canonical:
                raise UserError(f"{name}: unknown name, expected one of {', '.join(SOURCES)}, all")
            names += glue if name.lower() == "all" else [canonical[name.lower()]]
        if args.list or not names:
            print_table(args.dir, cache)
        else:
            for name in dict.fromkeys(names):
                fetch_source(name, args.dir, cache)
    except (UserError, OSError) as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

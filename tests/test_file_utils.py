"""Atomic writes, JSON, the download cache, model folders, uploads and step 0, against servers on this machine."""

import contextlib
import errno
import functools
import hashlib
import http.server
import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from tiny import TEACHER, call_script, make_sst2, make_student_config, make_teacher, tree

from transformer import downloads, file_utils, remote
from transformer.checkpoint import load_state_dict, weights_file
from transformer.corpus import corpus_files
from transformer.file_utils import (
    UserError,
    atomic_write,
    cached_path,
    main,
    model_folder,
    read_json,
    unpack,
    upload,
    write_json,
)
from transformer.glue import TASKS
from transformer.modeling import BertConfig, TinyBertForSequenceClassification

ROOT = Path(__file__).resolve().parent.parent


class FileServer(http.server.ThreadingHTTPServer):
    """Serves `files` (address -> bytes) with ETags and ranges; `troubles` (address -> list) go wrong first, in order.

    A trouble is a status, "cut:N", after so many bytes the connection is cut, "stall:N", after so many bytes nothing
    more comes, "redirect:ADDRESS", or a dict: "status", a header each, and "body", as they are.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.troubles, self.headers_of, self.log = {}, {}, {}, []
        self.ranges, self.etags, self.delay, self.stalls = True, True, 0.0, 1.5
        self.url = f"http://127.0.0.1:{self.server_port}"

    def statuses(self, address):
        return [status for path, status, _ in self.log if path == address]


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", length=None, **headers):
        self.server.log.append((self.path, status, dict(self.headers)))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        server, path = self.server, self.path
        trouble = server.troubles[path].pop(0) if server.troubles.get(path) else None
        if isinstance(trouble, int):
            return self.answer(trouble, b"trouble", **({"Retry_After": "0"} if trouble == 429 else {}))
        if isinstance(trouble, dict):
            return self.answer(trouble.pop("status"), trouble.pop("body", b""), **{"length": None, **trouble})
        if trouble and trouble.startswith("redirect:"):
            return self.answer(302, Location=trouble[len("redirect:") :], **server.headers_of.get(path, {}))
        if path not in server.files:
            return self.answer(404)
        body, headers = server.files[path], {}
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        if server.etags:
            headers["ETag"] = etag
        if self.headers.get("If-None-Match") == etag:
            return self.answer(304, **headers)
        time.sleep(server.delay)
        start, status = 0, 200
        current = self.headers.get("If-Range") == etag or server.ranges == "careless"
        if server.ranges and self.headers.get("Range") and current:
            start, status = int(self.headers["Range"][len("bytes=") : -1]), 206
            headers["Content_Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        end = start + int(trouble.split(":")[1]) if trouble else len(body)
        if trouble == "stall:0":
            time.sleep(server.stalls)  # before the headers
        self.answer(status, body[start:end], length=len(body) - start, **headers)
        if trouble:
            self.wfile.flush()
            time.sleep(server.stalls if trouble.startswith("stall") else 0)
            self.close_connection = True


@pytest.fixture
def server():
    server = FileServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def quick_and_isolated(monkeypatch, tmp_path):
    """No waiting between tries, no settings from outside, a cache of the test's own."""
    monkeypatch.setattr(downloads, "BACKOFF", 0.01)
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "TINYBERT_MIRROR", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TINYBERT_CACHE", str(tmp_path / "cache"))


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


def zipped(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, text in members.items():
            bundle.writestr(name, text)
    return buffer.getvalue()


def names_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


# Writing


def test_an_atomic_write_replaces_the_file_and_leaves_nothing_else(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with atomic_write(tmp_path / "a.txt") as file:
        assert str(os.getpid()) in file.name and file.name.endswith(".tmp")
        file.write("中文\n")
        assert (tmp_path / "a.txt").read_text() == "old"
    assert (tmp_path / "a.txt").read_bytes() == "中文\n".encode()
    assert names_in(tmp_path) == ["a.txt"]


def test_an_error_inside_the_block_keeps_the_old_file(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "a.bin", "wb") as file:
        file.write(b"new")
        1 / 0  # noqa: B018
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert names_in(tmp_path) == ["a.bin"]


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere/a\.txt: cannot be written"), atomic_write(tmp_path / "nowhere/a.txt"):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder: cannot be written"), atomic_write(tmp_path / "folder"):
        pass
    with pytest.raises(FileNotFoundError, match="other"), atomic_write(tmp_path / "a.txt"):
        open(tmp_path / "other")  # noqa: SIM115
    assert names_in(tmp_path) == []


def test_a_full_disk_is_a_one_line_error(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(UserError, match=r"a\.txt: cannot be written \(No space left on device\)"):
        write_json(tmp_path / "a.txt", [1])


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_write_killed_midway_leaves_the_old_file_and_the_next_write_cleans_up(tmp_path):
    target = tmp_path / "model.bin"
    target.write_bytes(b"old")
    code = (
        "import sys, time; from transformer.file_utils import atomic_write\n"
        "with atomic_write(sys.argv[1], 'wb') as file:\n"
        "    file.write(b'n' * 99999); file.flush(); print('writing', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, target], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert target.read_bytes() == b"old"
    assert names_in(tmp_path) == ["model.bin", f"model.bin.{process.pid}.tmp"]
    (tmp_path / f"other.bin.{process.pid}.tmp").touch()
    (tmp_path / f"model.bin.{os.getppid()}.tmp").touch()  # of a process that lives
    with atomic_write(target, "wb") as file:
        file.write(b"new")
    assert names_in(tmp_path) == ["model.bin", f"model.bin.{os.getppid()}.tmp", f"other.bin.{process.pid}.tmp"]
    assert target.read_bytes() == b"new"


def test_json_round_trips_and_broken_json_names_its_line(tmp_path):
    path = tmp_path / "config.json"
    write_json(path, {"名": [1, 2.5, None]})
    assert read_json(path) == {"名": [1, 2.5, None]}
    assert "名" in path.read_text(encoding="utf-8") and path.read_text().endswith("}\n")
    path.write_text('{\n  "a": 1,\n  oops\n}')
    with pytest.raises(UserError, match=r"config\.json, line 3: not valid JSON"):
        read_json(path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match="not UTF-8"):
        read_json(path)
    with pytest.raises(UserError, match=r"nothing\.json: cannot be read"):
        read_json(tmp_path / "nothing.json")
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_bytes() == b'{"a": "\xff"}'


# Downloading


def test_a_local_path_comes_back_as_it_is(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    assert cached_path(tmp_path / "a.txt") == tmp_path / "a.txt"
    with pytest.raises(UserError, match=r"b\.txt: no such file"):
        cached_path(tmp_path / "b.txt")
    with pytest.raises(UserError, match="expected a local path or an http"):
        cached_path("ftp://127.0.0.1/a.txt")
    assert not (tmp_path / "cache").exists()


def test_a_file_is_fetched_once_and_again_when_it_changed(server):
    server.files["/a.txt"] = b"one"
    path = cached_path(server.url + "/a.txt")
    assert path.read_bytes() == b"one" and path.name.endswith("-a.txt")
    assert cached_path(server.url + "/a.txt") == path
    assert server.statuses("/a.txt") == [200, 304]
    server.files["/a.txt"] = b"two"
    assert cached_path(server.url + "/a.txt").read_bytes() == b"two"
    path.write_bytes(b"damaged")
    assert cached_path(server.url + "/a.txt").read_bytes() == b"two"
    assert not list(path.parent.glob(".*.part*"))


def test_a_cut_download_is_resumed_where_it_stopped(server):
    body = server.files["/big.bin"] = noise(500_001)
    server.troubles["/big.bin"] = ["cut:300000", 503]
    assert cached_path(server.url + "/big.bin").read_bytes() == body
    assert server.statuses("/big.bin") == [200, 503, 206]
    start = int(server.log[2][2]["Range"][len("bytes=") : -1])
    assert 300_000 - remote.CHUNK <= start <= 300_000


def test_a_later_run_goes_on_with_what_an_earlier_one_left(server, monkeypatch):
    body = server.files["/big.bin"] = noise(400_003)
    monkeypatch.setattr(downloads, "TRIES", 1)
    server.troubles["/big.bin"] = ["cut:200000"]
    with pytest.raises(UserError, match="broke off"):
        cached_path(server.url + "/big.bin")
    assert cached_path(server.url + "/big.bin").read_bytes() == body
    assert server.statuses("/big.bin") == [200, 206]


@pytest.mark.parametrize("ranges", [True, "careless"])
def test_a_file_that_changed_between_two_tries_is_not_stitched_together(server, ranges):
    server.ranges = ranges

    class Changing(dict):
        def __getitem__(self, address):
            return noise(400_003, seed=len(server.log))

    server.files = Changing({"/big.bin": b""})
    server.troubles["/big.bin"] = ["cut:200000"]
    tries = [200, 206, 200] if ranges == "careless" else [200, 200]
    assert cached_path(server.url + "/big.bin").read_bytes() == noise(400_003, seed=len(tries) - 1)
    assert server.statuses("/big.bin") == tries


@pytest.mark.parametrize(("ranges", "etags"), [(False, True), (True, False)])
def test_a_server_without_ranges_or_etags_is_asked_from_the_start(server, ranges, etags):
    server.ranges, server.etags = ranges, etags
    body = server.files["/big.bin"] = noise(400_003)
    server.troubles["/big.bin"] = ["cut:200000"]
    assert cached_path(server.url + "/big.bin").read_bytes() == body
    assert server.statuses("/big.bin") == [200, 200]


def test_busy_and_failing_servers_are_tried_again_but_not_for_ever(server):
    server.files["/a"] = server.files["/b"] = b"x"
    server.troubles["/a"] = [429, 500, 503]
    assert cached_path(server.url + "/a").read_bytes() == b"x"
    server.troubles["/b"] = [500] * 99
    with pytest.raises(UserError, match="/b: the server answered 500"):
        cached_path(server.url + "/b")
    assert server.statuses("/b") == [500] * downloads.TRIES


def test_missing_and_refused_files_are_named_at_once(server, monkeypatch):
    with pytest.raises(UserError, match=rf"^{server.url}/no\.txt: no such file on the server \(404\)$"):
        cached_path(server.url + "/no.txt")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.troubles["/secret"] = [401]
    with pytest.raises(UserError, match="HF_TOKEN"):
        cached_path(server.url + "/secret")
    assert [status for _, status, _ in server.log] == [404, 401]


def test_the_token_goes_to_the_hub_only(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    server.files["/a"] = b"x"
    cached_path(server.url + "/a")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    cached_path(server.url + "/a")
    assert [headers.get("Authorization") for _, _, headers in server.log] == [None, None]
    asked = []

    def get(url, headers, **_):
        asked.append((url, headers.get("Authorization")))
        raise requests.ConnectionError

    monkeypatch.setattr(requests, "get", get)
    monkeypatch.setattr(downloads, "TRIES", 1)
    monkeypatch.setenv("HF_ENDPOINT", "https://127.0.0.1:9")
    for url in ("https://127.0.0.1:9/a", "http://127.0.0.1:9/a", "https://127.0.0.2:9/a"):
        with pytest.raises(UserError, match="cannot be reached"):
            cached_path(url)
    assert [token for _, token in asked] == ["Bearer hf_x", None, None]


def test_redirects_are_followed_and_the_hubs_sum_is_checked(server, tmp_path):
    body = server.files["/storage"] = b"weights"
    server.headers_of["/good"] = {"X_Linked_Etag": f'"{hashlib.sha256(body).hexdigest()}"'}
    server.headers_of["/bad"] = {"X_Linked_Etag": f'"{"0" * 64}"'}
    server.troubles = {"/good": ["redirect:/storage"] * 2, "/bad": ["redirect:/storage"]}
    server.etags = False
    path = cached_path(server.url + "/good")
    assert path.read_bytes() == body
    written = path.stat().st_mtime_ns
    assert cached_path(server.url + "/good").stat().st_mtime_ns == written
    with pytest.raises(UserError, match="sha256 sum"):
        cached_path(server.url + "/bad")
    assert len([name for name in names_in(tmp_path / "cache") if name.endswith(("bad", ".part"))]) == 0


class FullDisk(io.FileIO):
    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_during_a_download_is_a_one_line_error(server, monkeypatch):
    server.files["/big.bin"] = noise(300_007)
    monkeypatch.setattr(downloads, "append_to", lambda path, size: FullDisk(path, "wb"))
    with pytest.raises(UserError, match=r"big\.bin: cannot be written \(No space left on device\)"):
        cached_path(server.url + "/big.bin")


def test_a_cache_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: cannot be created"):
        cached_path(server.url + "/a", cache_dir=tmp_path / "file")
    assert not server.log


def test_a_known_sum_is_checked_and_saves_asking_again(server):
    server.files["/a.zip"] = b"archive"
    sha256 = hashlib.sha256(b"archive").hexdigest()
    with pytest.raises(UserError, match=f"{sha256}, expected {'1' * 64}"):
        cached_path(server.url + "/a.zip", sha256="1" * 64)
    cached_path(server.url + "/a.zip", sha256=sha256)
    cached_path(server.url + "/a.zip", sha256=sha256)
    assert server.statuses("/a.zip") == [200, 200]
    with pytest.raises(UserError, match="sha256 sum"):  # a copy that was fetched without a sum is no excuse
        cached_path(server.url + "/a.zip", sha256="2" * 64)


def test_without_a_connection_the_cached_copy_is_used_and_one_line_says_so(server, caplog):
    server.files["/a.txt"] = b"one"
    address = server.url + "/a.txt"
    path = cached_path(address)
    server.shutdown()
    server.server_close()
    with caplog.at_level(logging.INFO):
        assert cached_path(address) == path
    assert len(caplog.messages) == 1 and "using the copy" in caplog.messages[0]
    with pytest.raises(UserError, match=r"b\.txt: cannot be reached .* not in the cache"):
        cached_path(server.url + "/b.txt")


@pytest.mark.parametrize("trouble", ["stall:0", "stall:70001"])
def test_a_server_that_stalls_is_left_and_asked_again(server, monkeypatch, trouble):
    monkeypatch.setattr(remote, "TIMEOUT", 0.3)
    body = server.files["/big.bin"] = noise(200_003)
    server.troubles["/big.bin"] = [trouble]
    started = time.monotonic()
    assert cached_path(server.url + "/big.bin").read_bytes() == body
    assert time.monotonic() - started < server.stalls
    if trouble == "stall:70001":  # what had come was kept
        assert server.statuses("/big.bin") == [200, 206]


def part_of(body, start, end, total, etag):
    """A trouble: an answer with the bytes from start to end, of `total`."""
    about = {"Content_Range": f"bytes {start}-{end - 1}/{total}", "ETag": etag}
    return {"status": 206, "body": body[start:end], **about}


def test_a_part_that_ends_before_the_file_is_gone_on_with(server):
    body = server.files["/big.bin"] = noise(400_003)
    etag = f'"{hashlib.md5(body).hexdigest()}"'
    server.troubles["/big.bin"] = [
        part_of(body, 0, 100_000, 400_003, etag),  # to a request for the whole file
    ]
    with pytest.raises(UserError, match="the server answered 206, expected 200 and the whole file"):
        cached_path(server.url + "/big.bin")
    server.troubles["/big.bin"] = ["cut:131072", part_of(body, 131_072, 300_000, 400_003, etag)]
    assert cached_path(server.url + "/big.bin").read_bytes() == body
    assert server.statuses("/big.bin") == [206, 200, 206, 206]


@pytest.mark.parametrize("told", ["bytes 131072-399999/*", "131072-400002/400003", "bytes 131072-400002/-1", ""])
def test_a_part_of_unknown_size_is_left_for_the_whole_file(server, told):
    body = server.files["/big.bin"] = noise(400_003)
    part = part_of(body, 131_072, 400_000, 400_003, f'"{hashlib.md5(body).hexdigest()}"')
    server.troubles["/big.bin"] = ["cut:131072", {**part, "Content_Range": told}]
    assert cached_path(server.url + "/big.bin").read_bytes() == body
    assert server.statuses("/big.bin") == [200, 206, 200]


def test_a_304_without_a_copy_is_no_file(server):
    server.troubles["/a"] = [304]
    with pytest.raises(UserError, match="the server answered 304, expected 200"):
        cached_path(server.url + "/a")


@pytest.mark.parametrize("length", ["abc", "-5", "\u00b2", "9" * 5000])
def test_a_length_that_is_no_number_is_told(server, length):
    server.troubles["/a"] = [{"status": 200, "body": b"x", "length": length}]
    with pytest.raises(UserError, match=r"/a: (the server says Content-Length|.*InvalidHeader)"):
        cached_path(server.url + "/a")


@pytest.mark.parametrize("wait", ["\u00b2", "soon", "9" * 5000, "-1"])
def test_whatever_the_server_says_about_waiting_it_is_asked_again(server, wait):
    server.files["/a"] = b"x"
    server.troubles["/a"] = [{"status": 503, "Retry_After": wait}]
    assert cached_path(server.url + "/a").read_bytes() == b"x"


@pytest.mark.parametrize(
    "place", ["http://[", "http://a..b/", "http://a:b/", "file:///elsewhere", "http://", "\xff\xfe"]
)
def test_a_malformed_redirect_or_address_ends_in_one_line(server, place):
    server.troubles["/a"] = [f"redirect:{place}"] * 9
    with pytest.raises(UserError, match=rf"^{server.url}/a: (cannot be|no such file)") as caught:
        cached_path(server.url + "/a")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        cached_path(place)


SECRET = "http://me:pass%40word@127.0.0.1"


def test_what_an_address_has_of_passwords_and_tokens_is_neither_printed_nor_kept(server, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    address = server.url.replace("http://127.0.0.1", SECRET)
    server.files["/a.txt?token=t0ken"] = noise(1_000_001)
    server.files["/m/config.json"], server.files["/m/vocab.txt"] = b"{}", b"[PAD]"
    path = cached_path(f"{address}/a.txt?token=t0ken")
    assert server.log[0][2]["Authorization"].startswith("Basic ")
    assert cached_path(f"{address}/a.txt?token=t0ken") == path and server.statuses("/a.txt?token=t0ken") == [200, 304]
    folder = model_folder(f"{address}/m", need_weights=False)
    monkeypatch.setattr(downloads, "TRIES", 2)
    server.troubles["/b?token=t0ken"] = [503, 503]
    told = [str(path), str(folder)]
    for name in ("b?token=t0ken", "c?token=t0ken"):
        with pytest.raises(UserError, match=r"\?\.\.\.") as caught:
            cached_path(f"{address}/{name}")
        told.append(str(caught.value))
    with pytest.raises(UserError) as caught:
        model_folder(f"{address}/none")
    told += [str(caught.value), *caplog.messages]
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    told += [text for path in kept for text in (str(path), path.read_bytes().decode("latin-1"))]
    assert len(kept) > 6 and not [text for text in told if "pass" in text.replace(tmp_path.name, "") or "t0ken" in text]


def test_a_cache_is_private(server, tmp_path):
    server.files["/a.txt"] = server.files["/b.txt"] = noise(99_999)
    server.troubles["/b.txt"] = ["cut:70000", 404]
    cached_path(server.url + "/a.txt")
    with pytest.raises(UserError):
        cached_path(server.url + "/b.txt")
    kept = {path.name.split("-")[-1]: path.stat().st_mode & 0o777 for path in (tmp_path / "cache").iterdir()}
    assert {"a.txt", "a.txt.json", "b.txt.part", "b.txt.part.json"} <= {*kept} and {*kept.values()} == {0o600}


def test_two_processes_download_once(server, tmp_path):
    body = server.files["/big.bin"] = noise(300_007)
    server.delay = 0.5
    code = "import sys; from transformer.file_utils import cached_path; print(cached_path(sys.argv[1]))"
    command = [sys.executable, "-c", code, server.url + "/big.bin"]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate()[0].strip() for process in processes}
    assert len(paths) == 1 and Path(paths.pop()).read_bytes() == body
    assert sorted(server.statuses("/big.bin")) == [200, 304]


# Model folders


@pytest.fixture
def hub(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    base = "/org/tiny/resolve/main"
    server.files = {f"{base}/config.json": b"{}", f"{base}/vocab.txt": b"[PAD]\n", f"{base}/pytorch_model.bin": b"w"}
    return server


def visible(folder):
    return [name for name in names_in(folder) if not Path(name).name.startswith(".")]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("teacher_model", "python -m transformer.file_utils teacher"),
        ("bert-base-chinese", "python -m transformer.file_utils bert-base-chinese"),
        ("student_model", "to train weights: python general_distill.py"),
        ("3_general_distill", "python general_distill.py"),
        ("4_task_distill_mid", "python task_distill.py"),
        ("5_task_distill_out", "python task_distill.py --pred_distill"),
        ("other", "copy pytorch_model.bin from where the model came from"),
    ],
)
def test_a_folder_without_weights_is_named_with_what_fills_it(tmp_path, monkeypatch, name, advice):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"{name}: no weights there .*; .*{advice}$"):
        model_folder(tmp_path / name)
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(UserError, match=rf"^\.: no weights there .*; .*{advice}$"):
        model_folder(".")


def test_a_hub_name_becomes_a_folder_and_optional_files_may_be_absent(hub, monkeypatch):
    folder = model_folder("org/tiny")
    assert visible(folder) == ["config.json", "pytorch_model.bin", "vocab.txt"]
    hub.files["/org/tiny/resolve/main/tokenizer_config.json"] = b"{}"
    hub.files["/org/tiny/resolve/main/model.safetensors"] = b"s"
    monkeypatch.setattr(downloads, "weights_in_order", lambda: downloads.WEIGHTS)
    model_folder("org/tiny")
    assert {"tokenizer_config.json", "model.safetensors"} <= set(visible(folder))


def test_weights_are_fetched_only_when_needed(hub):
    assert visible(model_folder("org/tiny", need_weights=False)) == ["config.json", "vocab.txt"]
    assert not hub.statuses("/org/tiny/resolve/main/pytorch_model.bin")


def test_a_cached_model_works_without_a_connection(hub, monkeypatch, caplog):
    folder = model_folder("org/tiny")
    requests = len(hub.log)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert model_folder("org/tiny") == folder
    assert len(hub.log) == requests
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hub.shutdown()
    hub.server_close()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert model_folder("org/tiny") == folder
    assert len(caplog.messages) == 1
    with pytest.raises(UserError, match="org/other: no such folder here"):
        model_folder("org/other")


def test_of_a_cached_model_the_weights_fetched_last_are_read_and_what_the_hub_removed_is_removed(hub, monkeypatch):
    base = "/org/tiny/resolve/main"
    hub.files[f"{base}/tokenizer_config.json"] = b"{}"
    folder = model_folder("org/tiny")
    assert weights_file(folder).read_bytes() == b"w"
    monkeypatch.setattr(downloads, "weights_in_order", lambda: downloads.WEIGHTS)
    hub.files[f"{base}/model.safetensors"] = b"newer"
    del hub.files[f"{base}/tokenizer_config.json"]
    assert weights_file(model_folder("org/tiny")).read_bytes() == b"newer"
    assert visible(folder) == ["config.json", "model.safetensors", "vocab.txt"]
    shard = "model-00001-of-00001.safetensors"
    hub.files[f"{base}/model.safetensors.index.json"] = json.dumps({"weight_map": {"a": shard}}).encode()
    hub.files[f"{base}/{shard}"] = b"shard"
    del hub.files[f"{base}/model.safetensors"], hub.files[f"{base}/pytorch_model.bin"]
    model_folder("org/tiny")
    assert visible(folder) == ["config.json", shard, "model.safetensors.index.json", "vocab.txt"]
    del hub.files[f"{base}/vocab.txt"]
    with pytest.raises(UserError, match=r"vocab\.txt: no such file on the server"):
        model_folder("org/tiny")
    assert not (folder / "vocab.txt").exists()


@pytest.mark.parametrize("offline", [False, True])
def test_a_complete_cache_on_a_disk_for_reading_only_serves(hub, monkeypatch, tmp_path, caplog, offline):
    folder, path = model_folder("org/tiny"), cached_path(hub.url + "/org/tiny/resolve/main/vocab.txt")
    before, asked, cache, opened = tree(tmp_path), len(hub.log), str(tmp_path / "cache"), open
    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def refuse(real, place, *args, **kwargs):
        writing = real is not opened or "r" not in (args[0] if args else kwargs.get("mode", "r"))
        if writing and str(place).startswith(cache):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(place))
        return real(place, *args, **kwargs)

    monkeypatch.setattr("builtins.open", functools.partial(refuse, opened))
    for name in ("unlink", "replace", "chmod", "rename"):
        monkeypatch.setattr(os, name, functools.partial(refuse, getattr(os, name)))
    caplog.set_level(logging.INFO)
    assert (model_folder("org/tiny"), cached_path(hub.url + "/org/tiny/resolve/main/vocab.txt")) == (folder, path)
    assert len(hub.log) == asked and len(caplog.messages) == (0 if offline else 2)
    with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\)"):
        cached_path(hub.url + "/new.txt")
    monkeypatch.undo()
    assert tree(tmp_path) == before


def test_weights_in_shards_are_fetched_after_their_index(hub, monkeypatch):
    base, index = "/org/tiny/resolve/main", "pytorch_model.bin.index.json"
    del hub.files[f"{base}/pytorch_model.bin"]
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    hub.files[f"{base}/{index}"] = json.dumps({"weight_map": {"a": names[0], "b": names[1], "c": names[0]}}).encode()
    hub.files[f"{base}/{names[0]}"] = b"one"
    with pytest.raises(UserError, match=rf"{names[1]}.*404"):
        model_folder("org/tiny")
    hub.files[f"{base}/{names[1]}"] = b"two"
    folder = model_folder("org/tiny")
    assert visible(folder) == ["config.json", names[0], names[1], index, "vocab.txt"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert model_folder("org/tiny") == model_folder(folder) == folder
    (folder / names[1]).unlink()
    with pytest.raises(UserError, match=rf"no {names[1]} there, which {index} names; copy it"):
        model_folder(folder)


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "electra"])
def test_a_model_of_another_kind_is_refused_by_its_model_type(hub, tmp_path, kind):
    config = json.dumps({"model_type": kind})
    told = rf"config\.json: model_type is '{kind}'; this suite reads BERT \(model_type 'bert'\)$"
    hub.files = {"/org/tiny/resolve/main/config.json": config.encode()}  # others have their vocabulary elsewhere
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").touch()
    for model in ("org/tiny", tmp_path):
        with pytest.raises(UserError, match=told) as caught:
            model_folder(model)
        assert "\n" not in str(caught.value) and "no such" not in str(caught.value)


def test_an_address_is_a_model_too(hub):
    folder = model_folder(hub.url + "/org/tiny/resolve/main/")
    assert visible(folder) == ["config.json", "pytorch_model.bin", "vocab.txt"]


def test_names_that_are_no_models_are_refused_in_one_line(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub.troubles["/nobody/resolve/main/config.json"] = [401]
    with pytest.raises(UserError, match=r"^nobody: no such folder here.*401"):
        model_folder("nobody")
    asked = len(hub.log)
    for name in ("a/b/c", "./x", "/no/where", "3_general_distill"):
        with pytest.raises(UserError, match="no such folder"):
            model_folder(name)
    with pytest.raises(UserError, match=r"teacher_model: no such folder.*python -m transformer\.file_utils teacher$"):
        model_folder("teacher_model")
    with pytest.raises(UserError, match=r"\.txt: no such file.*python -m transformer\.file_utils vocab_21128$"):
        model_folder("1_pre_data/vocab_21128.txt")
    assert len(hub.log) == asked
    del hub.files["/org/tiny/resolve/main/pytorch_model.bin"]
    with pytest.raises(UserError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        model_folder("org/tiny")


def test_a_local_folder_needs_weights_and_says_how_to_get_them(tmp_path):
    teacher = tmp_path / "teacher_model"
    teacher.mkdir()
    assert model_folder(teacher, need_weights=False) == teacher
    with pytest.raises(UserError, match=r"no weights.*pytorch_model\.bin.*python -m transformer\.file_utils teacher$"):
        model_folder(teacher)
    (teacher / "model.safetensors").touch()
    with pytest.raises(UserError, match=r"no configuration.*config\.json.*python -m transformer\.file_utils teacher$"):
        model_folder(teacher)
    (teacher / "config.json").write_text("{}")
    assert model_folder(str(teacher) + "/") == teacher
    with pytest.raises(UserError, match="a file, expected a model folder"):
        model_folder(teacher / "model.safetensors")


# Uploads and S3


def test_outputs_are_copied_into_a_folder(tmp_path):
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    for name in ("a.txt", "deep/b.txt", "c.txt.1.tmp"):
        (out / name).write_text(name)
    upload([out / "a.txt", out], None)
    upload([out / "a.txt", out], tmp_path / "copy")
    assert names_in(tmp_path / "copy") == ["a.txt", "out/a.txt", "out/deep/b.txt"]
    upload(out / "a.txt", out)
    assert (out / "a.txt").read_text() == "a.txt"
    with pytest.raises(UserError, match=r"nothing\.txt: no such file"):
        upload([out / "nothing.txt"], tmp_path / "copy")
    for place, told in (("https://127.0.0.1/x", "https://"), ("s3://", "s3://"), (out / "a.txt", "")):
        with pytest.raises(UserError, match=f"cannot upload to {told}"):
            upload([out / "a.txt"], place)


@pytest.fixture(scope="module")
def s3_endpoint():
    moto = pytest.importorskip("moto.server", reason="needs moto[server]")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(s3_endpoint, monkeypatch):
    import boto3

    settings = {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    client.create_bucket(Bucket="bucket")
    return client


@pytest.mark.slow
def test_outputs_go_to_s3_and_come_back(s3, tmp_path):
    out = tmp_path / "5_out"
    out.mkdir()
    body = noise(200_003)
    for name in ("config.json", "vocab.txt"):
        (out / name).write_text("{}")
    (out / "pytorch_model.bin").write_bytes(body)
    upload(out, "s3://bucket/runs/1")
    upload(out / "vocab.txt", "s3://bucket")
    keys = {item["Key"] for item in s3.list_objects_v2(Bucket="bucket")["Contents"]}
    assert keys == {"runs/1/5_out/config.json", "runs/1/5_out/vocab.txt", "runs/1/5_out/pytorch_model.bin", "vocab.txt"}

    path = cached_path("s3://bucket/runs/1/5_out/pytorch_model.bin")
    assert path.read_bytes() == body
    changed = path.stat().st_mtime_ns
    assert cached_path("s3://bucket/runs/1/5_out/pytorch_model.bin").stat().st_mtime_ns == changed
    folder = model_folder("s3://bucket/runs/1/5_out")
    assert visible(folder) == ["config.json", "pytorch_model.bin", "vocab.txt"]


def test_a_folder_of_s3_is_a_corpus(s3):
    for key in ("wiki/b.txt", "wiki/a.jsonl.gz", "wiki/more/c.txt", "wiki/readme.md", "wikipedia.txt"):
        s3.put_object(Bucket="bucket", Key=key, Body=key.encode())
    files = corpus_files(["s3://bucket/wiki/", "s3://bucket/wikipedia.txt"])
    texts = ["wiki/a.jsonl.gz", "wiki/b.txt", "wiki/more/c.txt", "wikipedia.txt"]
    assert [path.read_text() for path in files] == texts
    with pytest.raises(UserError, match="s3://bucket/none/: no corpus files in it"):
        corpus_files(["s3://bucket/none/"])
    with pytest.raises(UserError, match="s3://nobucket/x/: cannot be listed"):
        corpus_files(["s3://nobucket/x/"])


def test_an_s3_download_goes_on_where_it_stopped(s3, tmp_path, monkeypatch):
    body = noise(300_001)
    etag = s3.put_object(Bucket="bucket", Key="big.bin", Body=body)["ETag"]
    target = tmp_path / "cache" / "files" / "big.bin"
    target.parent.mkdir(parents=True)
    (target.parent / ".big.bin.part").write_bytes(body[:100_000])
    write_json(target.parent / ".big.bin.part.json", {"validator": etag})
    answers = []
    monkeypatch.setattr(downloads, "ask_s3", lambda *args: answers.append(remote.ask_s3(*args)) or answers[-1])
    downloads._fetch("s3://bucket/big.bin", target)
    status, headers, *_ = answers[0]
    assert status == 206 and headers["content-range"].startswith("bytes 100000-")
    assert target.read_bytes() == body


def test_s3_failures_are_one_line(s3, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="s3://bucket/none: no such file"):
        cached_path("s3://bucket/none")
    (tmp_path / "a").touch()
    with pytest.raises(UserError, match=r"a: cannot be uploaded to s3://nobucket/x .*NoSuchBucket"):
        upload(tmp_path / "a", "s3://nobucket/x")
    monkeypatch.setattr(downloads, "TRIES", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(UserError, match="cannot be reached"):
        cached_path("s3://bucket/none2")


# Step 0


def test_a_zip_cannot_write_outside_its_folder(tmp_path):
    evil = {"../train.tsv": "evil", "/train.tsv": "evil", "a/../../train.tsv": "evil", "SST-2/original/train.tsv": "no"}
    (tmp_path / "evil.zip").write_bytes(zipped(evil))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"evil\.zip: holds no train\.tsv"):
        unpack(tmp_path / "evil.zip", ["train.tsv"], tmp_path / "out")
    (tmp_path / "evil.zip").write_bytes(zipped({**evil, "SST-2/train.tsv": "good", "SST-2/run.py": "evil"}))
    unpack(tmp_path / "evil.zip", ["train.tsv"], tmp_path / "out")
    assert names_in(tmp_path) == ["evil.zip", "out/train.tsv"]
    assert (tmp_path / "out/train.tsv").read_text() == "good"


def test_a_broken_zip_leaves_no_file(tmp_path):
    archive = bytearray(zipped({"train.tsv": noise(9999).hex()}))
    archive[2000] ^= 1
    locked = bytearray(zipped({"train.tsv": "x"}))
    for signature, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        locked[locked.index(signature) + place] |= 1  # the flag of an encrypted member
    for name, body in {"flipped.zip": archive, "locked.zip": locked, "page.zip": b"<html>"}.items():
        (tmp_path / name).write_bytes(body)
        with pytest.raises(UserError, match="not a valid zip"):
            unpack(tmp_path / name, ["train.tsv"], tmp_path)
    assert names_in(tmp_path) == ["flipped.zip", "locked.zip", "page.zip"]


STUDENTS = {name: source.model for name, source in file_utils.SOURCES.items() if source.teacher}
ADDRESSES = file_utils.GLUE, file_utils.SENTEVAL, file_utils.SQUAD, *file_utils.SOURCES["glove"].addresses
GLUE, SENTEVAL, SQUAD, GLOVE = (urlsplit(url).path for url in ADDRESSES)
MRPC_HEAD = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"


@pytest.fixture
def mirror(server, monkeypatch):
    """A mirror of everything that step 0 fetches, with other contents."""
    monkeypatch.setenv("TINYBERT_MIRROR", server.url)
    monkeypatch.setattr(file_utils, "CHECKSUMS", {})
    sst = {f"SST-2/{name}": f"sentence\tlabel\n{name}\t1\n" for name in file_utils.TSV}
    server.files = {
        f"{GLUE}SST-2.zip": zipped({**sst, "SST-2/original/SOStr.txt": "x"}),
        GLOVE: zipped({"glove.6B.50d.txt": "a 1", "glove.6B.100d.txt": "a 1 2"}),
        f"{GLUE}mrpc_dev_ids.tsv": b"3\t4\n",
        f"{SENTEVAL}msr_paraphrase_train.txt": f'{MRPC_HEAD}1\t1\t2\ta "b\u2028c\td\r\n0\t3\t4\te\tf\r\n'.encode(),
        f"{SENTEVAL}msr_paraphrase_test.txt": f"{MRPC_HEAD}1\t5\t6\tg\th\r\n0\t7\t8\ti\tj\r\n".encode(),
        **{f"{SQUAD}{part}-v1.1.json": part.encode() for part in ("train", "dev")},
        f"{GLUE}AX.tsv": b"index\tsentence1\tsentence2\n0\ta\tb\n",
    }
    for model in ("bert-base-uncased", "bert-base-chinese", *STUDENTS.values()):
        files = {"config.json": b"{}", "vocab.txt": model.encode(), "pytorch_model.bin": b"weights"}
        files |= {} if model in STUDENTS.values() else {"tokenizer_config.json": b"{}"}
        server.files |= {f"/{model}/resolve/main/{name}": body for name, body in files.items()}
    return server


def test_step_0_fetches_every_kind_of_source(mirror, tmp_path):
    root = tmp_path / "root"
    names = ["teacher", "glove", "sst-2", "MRPC", "ax", "vocab_21128", "bert-base-chinese", "TinyBERT_4L_zh"]
    main([*names, "--dir", str(root)])
    assert names_in(root) == [
        "1_pre_data/glove.6B.100d.txt",
        "1_pre_data/vocab_21128.txt",
        "3_general_distill/config.json",
        "3_general_distill/pytorch_model.bin",
        "3_general_distill/vocab.txt",
        "AX/AX.tsv",
        "MRPC/dev.tsv",
        "MRPC/test.tsv",
        "MRPC/train.tsv",
        "SST-2/dev.tsv",
        "SST-2/test.tsv",
        "SST-2/train.tsv",
        "teacher_model/bert-base-chinese/config.json",
        "teacher_model/bert-base-chinese/pytorch_model.bin",
        "teacher_model/bert-base-chinese/tokenizer_config.json",
        "teacher_model/bert-base-chinese/vocab.txt",
        "teacher_model/config.json",
        "teacher_model/pytorch_model.bin",
        "teacher_model/tokenizer_config.json",
        "teacher_model/vocab.txt",
    ]
    columns = "#1 ID\t#2 ID\t#1 String\t#2 String\n"
    mrpc = {name: (root / "MRPC" / name).read_bytes().decode() for name in file_utils.TSV}
    assert mrpc["train.tsv"] == f'Quality\t{columns}1\t1\t2\ta "b\u2028c\td\n'
    assert mrpc["dev.tsv"] == f"Quality\t{columns}0\t3\t4\te\tf\n"
    assert mrpc["test.tsv"] == f"index\t{columns}0\t5\t6\tg\th\n1\t7\t8\ti\tj\n"
    assert (root / "1_pre_data/vocab_21128.txt").read_text() == "bert-base-chinese"
    assert visible(tmp_path / "cache") == ["fetched.json"]  # no archive is kept


def test_what_is_there_is_not_fetched_again_and_what_changed_is_kept_aside(mirror, tmp_path, capsys):
    root = tmp_path / "root"
    (root / "SST-2").mkdir(parents=True)
    (root / "SST-2/dev.tsv").write_text("my own")
    main(["SST-2", "--dir", str(root)])
    assert (root / "SST-2/dev.tsv").read_text() == "my own"
    asked = len(mirror.log)
    main(["SST-2", "--dir", str(root)])
    assert len(mirror.log) == asked
    (root / "SST-2/train.tsv").write_text("shortened")
    main(["--list", "--dir", str(root)])
    assert "changed: train.tsv" in capsys.readouterr().out
    main(["SST-2", "--dir", str(root)])
    assert (root / "SST-2/train.tsv").read_text().startswith("sentence")
    assert (root / "SST-2/train.tsv.old").read_text() == "shortened"


def test_of_files_that_are_published_as_they_are_only_the_missing_one_is_fetched(mirror, tmp_path):
    (tmp_path / "SQuAD").mkdir()
    (tmp_path / "SQuAD/train-v1.1.json").write_text("my own")
    main(["squad", "--dir", str(tmp_path)])
    assert [(tmp_path / f"SQuAD/{part}-v1.1.json").read_text() for part in ("train", "dev")] == ["my own", "dev"]
    (tmp_path / "SQuAD/train-v1.1.json").unlink()
    main(["SQuAD", "--dir", str(tmp_path)])
    assert (tmp_path / "SQuAD/train-v1.1.json").read_text() == "train" and len(mirror.log) == 2


def test_the_list_says_what_is_there(mirror, tmp_path, capsys):
    main(["glove", "--dir", str(tmp_path)])
    (tmp_path / "RTE").mkdir()
    for name in file_utils.TSV:
        (tmp_path / "RTE" / name).write_text("x")
    rows = rows_of(capsys, tmp_path)
    assert set(rows) == {"name", *file_utils.SOURCES}
    assert rows["glove"].endswith(" intact") and rows["MNLI"].endswith(" missing")
    assert rows["RTE"].endswith("there (your own files)")


def test_all_is_every_glue_task(tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(file_utils, "fetch_source", lambda name, *_: fetched.append(name))
    main(["all", "--dir", str(tmp_path)])
    assert {*fetched} == {task.source for task in TASKS.values()}


def test_what_messages_say_is_fetched_is_a_source_and_goes_there():
    for name, (source, place) in downloads.FETCHED.items():
        folder, files, *_ = file_utils.SOURCES[source]
        assert folder == place and name in (*files, Path(folder).name)


def rows_of(capsys, root):
    """The rows of the table by the source's name."""
    capsys.readouterr()
    main(["--dir", str(root)])
    return {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}


@pytest.mark.parametrize("name", STUDENTS)
def test_a_published_student_comes_with_the_next_command(mirror, tmp_path, capsys, caplog, name):
    with caplog.at_level(logging.INFO):
        main([name, "--dir", str(tmp_path)])
    assert (tmp_path / "3_general_distill/vocab.txt").read_text() == STUDENTS[name]
    teacher = "bert-base-chinese" if name.endswith("zh") else "bert-base-uncased"
    flags = " --teacher_model teacher_model/bert-base-chinese --task_name YOUR_TASK" if name.endswith("zh") else ""
    assert f"its teacher: {teacher} " in caplog.messages[-2]
    assert caplog.messages[-1] == f"next: python task_distill.py{flags}"
    asked = len(mirror.log)
    main([name, "--dir", str(tmp_path)])
    assert len(mirror.log) == asked
    rows = rows_of(capsys, tmp_path)
    assert rows[name].endswith(" intact")
    others = [rows[other] for other in STUDENTS if other != name]
    assert len(others) == 3 and all(row.endswith(f" missing (3_general_distill/ holds {name})") for row in others)


def test_a_student_never_takes_the_place_of_another_or_of_one_s_own(mirror, tmp_path, capsys):
    folder = tmp_path / "3_general_distill"

    def refused(name, holder):
        before, asked = names_in(folder), len(mirror.log)
        told = f"^3_general_distill/: holds {holder}; .* python task_distill.py --student_model {STUDENTS[name]}$"
        with pytest.raises(UserError, match=told):
            main([name, "--dir", str(tmp_path)])
        assert names_in(folder) == before and len(mirror.log) == asked
        assert rows_of(capsys, tmp_path)[name].endswith(f" missing (3_general_distill/ holds {holder})")

    main(["TinyBERT_4L_zh", "--dir", str(tmp_path)])
    refused("TinyBERT_6L_zh", "TinyBERT_4L_zh")
    (folder / "run.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"trained")
    refused("TinyBERT_4L_zh", "the output of general_distill.py")
    for path in folder.iterdir():
        path.unlink()
    (folder / "README.md").write_text("what is in here")
    (folder / "model.safetensors").write_bytes(b"mine")
    refused("TinyBERT_6L_zh", "a model of your own")
    (folder / "model.safetensors").unlink()
    main(["TinyBERT_6L_zh", "--dir", str(tmp_path)])
    assert (folder / "vocab.txt").read_text() == STUDENTS["TinyBERT_6L_zh"]


@pytest.mark.parametrize("copied", [0, 1, 2, 3])
def test_a_student_that_was_fetched_in_part_is_completed(mirror, tmp_path, monkeypatch, copied):
    def copy_some(path, target):
        if len(names_in(tmp_path / "3_general_distill")) == copied:
            raise KeyboardInterrupt
        real(path, target)

    real = file_utils.copy_file
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(file_utils, "copy_file", copy_some)
        main(["TinyBERT_4L_zh", "--dir", str(tmp_path)])
    main(["TinyBERT_4L_zh", "--dir", str(tmp_path)])
    assert names_in(tmp_path / "3_general_distill") == ["config.json", "pytorch_model.bin", "vocab.txt"]


@pytest.mark.parametrize("per_layer", [False, True])
def test_stage_4_starts_from_a_published_student_and_stage_3_leaves_it_alone(mirror, tmp_path, no_pictures, per_layer):
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "intermediate_size": 20}
    made = make_teacher(tmp_path / "made", **sizes, fit_size=24, fit_per_layer=per_layer)
    config = {key: value for key, value in read_json(made / "config.json").items() if key in {*TEACHER, "vocab_size"}}
    write_json(made / "config.json", {**config, "pre_trained": "", "training": ""})  # as the published ones say
    for file in ("config.json", "vocab.txt", "pytorch_model.bin"):
        mirror.files[f"/huawei-noah/TinyBERT_General_4L_312D/resolve/main/{file}"] = (made / file).read_bytes()
    main(["TinyBERT_General_4L_312D", "--dir", str(tmp_path)])
    student, teacher = tmp_path / "3_general_distill", make_teacher(tmp_path / "teacher")
    classifier = TinyBertForSequenceClassification(BertConfig.from_pretrained(teacher))
    classifier.save_pretrained(make_teacher(teacher / "SST-2"))
    before = tree(student)
    flags = ["--teacher_model", teacher, "--max_seq_length", 31, "--max_steps", 2]
    data = ["--data_dir", make_sst2(tmp_path / "SST-2")]
    found = call_script(
        "task_distill.py", *flags, *data, "--student_model", student, "--output_dir", tmp_path / "4_task_distill_mid"
    )
    assert found.returncode == 0 and "drawn anew" not in found.stdout + found.stderr, found.stderr
    projections = [key for key in load_state_dict(tmp_path / "4_task_distill_mid") if key.startswith("fit_dense")]
    assert len(projections) == (6 if per_layer else 2)

    epochs = tmp_path / "2_pregenerate_data"
    epochs.mkdir()
    (epochs / "epoch_0.json").write_text('{"tokens": ["[CLS]", "the", "film", "[SEP]"], "segment_ids": [0, 0, 0, 0]}\n')
    write_json(epochs / "epoch_0_metrics.json", {"num_training_examples": 1, "max_seq_len": 31})
    make_student_config(tmp_path / "student_model")
    own = ["--pregenerated_data", epochs, "--student_model", tmp_path / "student_model", "--output_dir", student]
    found = call_script("general_distill.py", *flags, *own)
    assert found.returncode == 2 and "already there, made by something else" in found.stderr
    assert tree(student) == before


def test_an_interrupted_step_0_goes_on(mirror, tmp_path, monkeypatch):
    mirror.files[f"{GLUE}SST-2.zip"] = zipped({f"SST-2/{n}": noise(99_999).hex() for n in file_utils.TSV})
    monkeypatch.setattr(downloads, "TRIES", 1)
    mirror.troubles[f"{GLUE}SST-2.zip"] = ["cut:100000"]
    with pytest.raises(UserError, match="broke off"):
        main(["SST-2", "--dir", str(tmp_path)])
    main(["SST-2", "--dir", str(tmp_path)])
    assert mirror.statuses(f"{GLUE}SST-2.zip") == [200, 206]


def test_an_archive_with_another_sum_is_refused(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(file_utils, "CHECKSUMS", {"SST-2.zip": "0" * 64})
    with pytest.raises(UserError, match="sha256"):
        main(["SST-2", "--dir", str(tmp_path)])
    assert not (tmp_path / "SST-2/train.tsv").exists()


def test_a_short_mrpc_row_is_named(mirror, tmp_path):
    mirror.files[f"{SENTEVAL}msr_paraphrase_test.txt"] = f"{MRPC_HEAD}1\t5\t6\tg\th\r\n1\t5\r\n".encode()
    with pytest.raises(UserError, match=r"msr_paraphrase_test\.txt, line 3: 2 columns, expected 5"):
        main(["MRPC", "--dir", str(tmp_path)])


def test_the_command_line_fails_in_one_line(tmp_path):
    command = [sys.executable, "-m", "transformer.file_utils", "SST-3", "--dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: SST-3: unknown name") and result.stderr.count("\n") == 1
    result = subprocess.run([*command, "--debug"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0 and "Traceback" in result.stderr


def test_importing_the_module_loads_no_network_package():
    code = "import sys, transformer.file_utils; print({'requests', 'boto3', 'tqdm', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"


def test_the_table_matches_the_official_addresses():
    tasks = {task.source for task in TASKS.values()} - {"MRPC"}
    glue = [source for name, source in file_utils.SOURCES.items() if name in tasks]
    unsigned = {address.rsplit("/", 1)[-1] for source in glue for address in source.addresses} - {*file_utils.CHECKSUMS}
    assert unsigned == {"AX.tsv"}
    assert all(len(bytes.fromhex(sha256)) == 32 for sha256 in file_utils.CHECKSUMS.values())
    assert {address.split("/")[2] for source in glue for address in source.addresses} == {"dl.fbaipublicfiles.com"}


@pytest.mark.parametrize("about", [5, None, [], {}, {"sha256": "x"}, {"sha256": [], "source": {}}])
def test_entries_of_another_kind_among_those_of_what_was_fetched_count_as_none(tmp_path, about, capsys):
    weights = tmp_path / "3_general_distill" / "pytorch_model.bin"
    weights.parent.mkdir()
    weights.write_bytes(b"mine")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "fetched.json").write_text(json.dumps({str(weights.resolve()): about}))
    main(["--list", "--dir", str(tmp_path), "--cache_dir", str(tmp_path / "cache")])
    assert "missing (3_general_distill/ holds a model of your own)" in capsys.readouterr().out

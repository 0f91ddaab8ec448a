"""Step 0: fetch the teacher (bert-base-uncased), the GloVe vectors and GLUE tasks into their folders.

Reads public addresses (the table SOURCES); writes teacher_model/, 1_pre_data/glove.6B.100d.txt and a folder a task.
A download that was cut off goes on where it stopped; a file that is there and intact is not fetched again.
Without a name it lists what it can fetch and what is there already.
第 0 步:下载教师模型、GloVe 词向量和 GLUE 任务数据(支持断点续传)。

    python -m transformer.file_utils teacher glove SST-2
"""

import argparse
import logging
import os
import re
import shutil
import sys
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from transformer.downloads import (
    WEIGHTS,
    cache_folder,
    cached_path,
    forget,
    locked,
    model_folder,
    sha256_of,
    upload,
    weights_in_order,
)
from transformer.files import UserError, atomic_write, make_folder, read_json, write_json
from transformer.remote import Refused, hub, s3_files

# What was here before, for whoever imports it from here.
__all__ = ["UserError", "atomic_write", "cached_path", "model_folder", "read_json", "s3_files", "upload", "write_json"]


log = logging.getLogger(__name__)


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
            file = next((w for w in WEIGHTS if (folder / w).exists()), weights_in_order()[0])
        path = folder / file
        known = fetched.get(str(path.resolve()))
        if not path.is_file() or not path.stat().st_size:
            states[file] = "missing"
        elif known is None:
            states[file] = "there"
        else:
            intact = path.stat().st_size == known["size"] and sha256_of(path) == known["sha256"]
            states[file] = "intact" if intact else "changed"
    return states


def _note_fetched(paths, cache):
    """Remember what was put into the folders, to tell later whether it is intact."""
    with locked(cache / "fetched.json"):
        fetched = read_json(cache / "fetched.json") if (cache / "fetched.json").exists() else {}
        for path in paths:
            fetched[str(path.resolve())] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
        write_json(cache / "fetched.json", fetched)


def fetch_source(name, root, cache):
    """Fetch what is missing of one row of SOURCES into its folder under `root`."""
    source, states = SOURCES[name], _file_states(name, root, cache)
    wanted = [file for file, state in states.items() if state in ("missing", "changed")]
    folder = root / source.folder
    if not wanted:
        log.info("%s: already in %s/", name, source.folder)
        return
    make_folder(folder)
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
            forget(path)
    _note_fetched([folder / file for file in wanted], cache)
    log.info("%s: %s in %s/", name, ", ".join(wanted), source.folder)


def _fetch_teacher(wanted, folder, cache):
    """Put the teacher's missing files into `folder`; the names of those that came."""
    came = []
    for file in wanted:
        candidates = weights_in_order() if file in WEIGHTS else (file,)
        for candidate in candidates:
            url = _mirrored(f"{hub()}/{TEACHER}/resolve/main/{candidate}")
            try:
                path = cached_path(url, cache)
            except Refused:
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
    forget(path)


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
    cache = cache_folder(args.cache_dir)
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

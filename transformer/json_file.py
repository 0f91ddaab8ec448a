"""The one reader of JSON: a file or a line, held against a description, {key: Field}, that stands beside its reader.

Whatever is in them, it costs bounded time and memory and ends in an object as described or in one line of an error.
"""

import json
import reprlib
import sys
from pathlib import Path
from typing import NamedTuple

from transformer.files import UserError

LARGEST = 32 << 20  # bytes of a file: parsed, "[[],[],..." takes 25 times as much memory
MOST_PARTS = 1 << 20  # objects and lists in a line that is longer than that
DEEPEST = 50  # objects and lists inside one another; Python itself fails at about 1000
DECODE = json.JSONDecoder().decode  # what json.loads calls, after tests that take a percent of the time of an epoch
NULL, MOST = type(None), sys.float_info.max
NUMBER, SIZED = (int, float), (str, list, dict)


class Field(NamedTuple):
    """What the value of a key may be, in words for messages and exactly."""

    words: str
    kinds: tuple = (str,)  # types; a boolean is no int, an int no float
    # Of the length of a text, list or object; of a number, or of its digits where texts are allowed too. None: any
    # number, NaN and infinity too.
    low: float | None = -MOST
    high: float = MOST
    choices: tuple = ()
    of: "Field | None" = None  # each item of a list, each value of an object
    distinct: bool = False  # the items of a list differ
    needed: bool = False  # the key must be there

    def fits(self, value):
        kind = type(value)
        if kind not in self.kinds or (self.choices and value not in self.choices):
            return False
        if self.low is not None and value is not None:
            size = len(value) if kind in SIZED else len(str(value)) if str in self.kinds else value
            if not self.low <= size <= self.high:
                return False
        if self.of is None or kind not in (list, dict):
            return True
        items = value.values() if kind is dict else value
        return all(map(self.of.fits, items)) and not (self.distinct and len(set(map(str, value))) < len(value))


def whole(least=0, most=1 << 48, needed=False):
    """The Field of a whole number, by default a count."""
    upper = "or more" if most == 1 << 48 else f"to {most:,}"
    return Field(f"a whole number, {least} {upper}", (int,), least, most, needed=needed)


FLAG = Field("true or false", (bool,))


def check(found, fields, path, line=None):
    """Raise UserError where an object is not as `fields` say; keys without a field may hold anything."""
    for key, field in fields.items():
        if key in found and field.fits(found[key]) or key not in found and not field.needed:
            continue
        told = f"{key} is {reprlib.repr(found[key])}" if key in found else f"{key!r} is missing"
        raise UserError(f"{place(path, line)}: {told}, expected {field.words}")


def place(path, line=None):
    return path if line is None else f"{path} line {line}"


def read_json(path, fields=None, largest=LARGEST):
    """The object in a JSON file of up to `largest` bytes. Raises UserError with file, line and key: missing, not valid,
    not as `fields` say."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            data = file.read(largest + 1)
        if len(data) > largest:
            raise UserError(f"{path}: larger than {largest >> 20} MiB, expected a smaller JSON file")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}), expected JSON") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}), expected a JSON file") from error
    found = parse_json(text, path, None, fields)
    check_depth(found, text, path)
    return found


def check_depth(found, text, path, line=None):
    """Raise UserError where an object (parsed from `text`) could be written again by deep recursion only."""
    level = [found] if text.count("[") + text.count("{") > DEEPEST else []
    for _ in range(DEEPEST):
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [each for items in inner for each in items]
    if level:
        raise UserError(f"{place(path, line)}: objects or lists are more than {DEEPEST} deep, expected fewer")


def parse_json(text, path, line=None, fields=None):
    """The object in a text or its UTF-8 bytes, as `read_json` reads it. `line`: its number, None = a whole file."""
    fields, where, problem = fields or {}, "", ""
    try:
        text = text if isinstance(text, str) else text.decode()
        if len(text) > LARGEST and text.count("[") + text.count("{") > MOST_PARTS:
            raise ValueError(f"more than {MOST_PARTS:,} objects or lists")
        found = DECODE(text)
        if isinstance(found, dict):
            check(found, fields, path, line)
            return found
    except json.JSONDecodeError as error:
        where, problem = f"{path}, line {error.lineno}" if line is None else "", f"not valid JSON ({error.msg}), "
    except RecursionError:
        problem = "not valid JSON (too many objects or lists inside one another), "
    except ValueError as error:  # not UTF-8, a number of thousands of digits
        problem = f"not valid JSON ({str(error).partition(';')[0]}), "
    needed = " and ".join(key for key, field in fields.items() if field.needed)
    told = f"expected {'one' if line is None else 'a'} JSON object{needed and ' with '}{needed}"
    raise UserError(f"{where or place(path, line)}: {problem}{told}")

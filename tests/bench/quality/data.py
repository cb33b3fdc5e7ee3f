"""The data sets: read, split as the baselines split them, checked.

A data set is a file NAME.jsonl.gz in DATA. Rows to score are those of the same
name in TEST, or, without TEST, a fifth of DATA by a hash of what must not be on
both sides: query, user, subject, source, text.
"""

import gzip
import hashlib
import json
import os


class DataError(Exception):
    """What is wrong with a file, with its line and field."""


def hash_of(key):
    return int(hashlib.sha256(str(key).encode()).hexdigest()[:8], 16)


def read(folder, name, fields):
    """Rows of NAME.jsonl.gz; `fields` are {name: type} that each must have."""
    path = os.path.join(folder, name + ".jsonl.gz")
    rows = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                where = "%s:%d" % (path, number)
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DataError("%s: not JSON: %s" % (where, error))
                for field, kind in fields.items():
                    if field not in row:
                        raise DataError("%s: field %s is missing"
                                        % (where, field))
                    if not isinstance(row[field], kind):
                        raise DataError(
                            "%s: field %s is %s, not %s"
                            % (where, field, type(row[field]).__name__,
                               kind.__name__ if isinstance(kind, type)
                               else " or ".join(k.__name__ for k in kind)))
                rows.append(row)
    except gzip.BadGzipFile:
        raise DataError("%s: not gzip" % path)
    except EOFError:
        raise DataError("%s: cut off after line %d" % (path, len(rows)))
    except UnicodeDecodeError as error:
        raise DataError("%s: line %d: not UTF-8: %s"
                        % (path, len(rows) + 1, error.reason))
    except OSError as error:
        raise DataError("%s: %s" % (path, error.strerror))
    if not rows:
        raise DataError("%s: no rows" % path)
    return rows


def split(folders, name, fields, key):
    """(rows to learn from, rows to score)."""
    data, test = folders
    rows = read(data, name, fields)
    if test:
        return rows, read(test, name, fields)
    return ([row for row in rows if hash_of(row[key]) % 5],
            [row for row in rows if not hash_of(row[key]) % 5])


def write(path, rows):
    """Whole at once: who reads what was there before goes on reading it."""
    new = "%s.new" % path
    with open(new, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(new, path)


def share(rows, key, part, seed=1):
    """A part of the rows by hash of `key`: the rows of one key together. Each
    seed draws another."""
    if part >= 1:
        return rows
    return [row for row in rows
            if hash_of("share %d %s" % (seed, row[key])) % 10000
            < part * 10000]

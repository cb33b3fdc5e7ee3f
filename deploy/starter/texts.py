#!/usr/bin/env python3
"""Writes the texts that the starter model is pre-trained on.

    texts.py --out FOLDER [--wordnet FOLDER] [--packages FILE ...] [--shop FOLDER]

  wordnet.jsonl   a synset a line: title (its words), description (gloss and
                  examples), categories (what it is a kind of)
  packages.jsonl  a Debian package a line: title, description; each paragraph
                  once, however many packages share it
  shop.jsonl      products and queries of the sample shop, without labels

Every file depends on its input alone. Python's standard library is enough;
reading .lz4 lists needs apt-helper, which apt brings.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys

# Of a synset's ancestors: "sofa" is a "seat" and "furniture"; further up it is
# an "artifact" like everything else.
WORDNET_LEVELS = 2
# Beyond this a package's description lists options and versions.
PACKAGE_CHARACTERS = 600
# Shorter ones ("This package contains the documentation.") say nothing.
PARAGRAPH_CHARACTERS = 60


def write(path, rows):
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            row = {key: value for key, value in row.items() if value}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    print("%s: %d documents, %.1f MB"
          % (path, count, path.stat().st_size / 1e6))


def wordnet(folder):
    """Princeton WordNet's data files, format: man 5 wndb."""
    words, parents, glosses = {}, {}, {}
    for part in ("noun", "verb", "adj", "adv"):
        with open(folder / ("data." + part), encoding="utf-8") as file:
            for line in file:
                if line.startswith("  "):
                    continue
                data, gloss = line.split("|", 1)
                fields = data.split()
                key = fields[2].replace("s", "a") + fields[0]
                count = int(fields[3], 16)
                # "galore(ip)": how an adjective is used.
                words[key] = [
                    re.sub(r"\(\w+\)$", "", word).replace("_", " ")
                    for word in fields[4:4 + 2 * count:2]
                ]
                pointers = fields[5 + 2 * count:]
                parents[key] = [
                    pointers[i + 2] + pointers[i + 1]
                    for i in range(0, 4 * int(fields[4 + 2 * count]), 4)
                    if pointers[i] in ("@", "@i")
                ]
                glosses[key] = gloss.strip()
    for key in words:
        above, level = [], [key]
        for _ in range(WORDNET_LEVELS):
            level = [parent for below in level for parent in parents[below]]
            above += [words[parent][0] for parent in level]
        yield {"title": ", ".join(words[key]), "description": glosses[key],
               "categories": above}


def lines_of(path):
    if path.suffix == ".lz4":
        data = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", path],
                              check=True, capture_output=True).stdout
        return data.decode("utf-8").splitlines()
    return path.read_text(encoding="utf-8").splitlines()


def packages(paths):
    """Debian's Translation-en lists, format: Debian Policy, 5.6.13."""
    seen = set()
    for path in paths:
        title, paragraphs, inside = "", [""], False
        for line in lines_of(path) + [""]:
            if line.startswith("Description-en: "):
                title, paragraphs, inside = line[16:], [""], True
            elif inside and line == " .":
                paragraphs.append("")
            # Two spaces begin what is set as it is: lists, code.
            elif inside and line.startswith(" ") and line[1:2] != " ":
                paragraphs[-1] += line
            elif not line and inside:
                inside = False
                kept, size = [], 0
                for paragraph in paragraphs:
                    paragraph = paragraph.strip()
                    if (len(paragraph) < PARAGRAPH_CHARACTERS
                            or paragraph in seen
                            or size + len(paragraph) > PACKAGE_CHARACTERS):
                        continue
                    seen.add(paragraph)
                    kept.append(paragraph)
                    size += len(paragraph)
                if kept:
                    yield {"title": title, "description": " ".join(kept)}


def shop(folder):
    for line in open(folder / "items.jsonl", encoding="utf-8"):
        item = json.loads(line)
        description = [item.get("brand", ""), item.get("description", "")]
        yield {"title": item["title"],
               "description": ". ".join(filter(None, description)),
               "categories": item["categories"]}
    queries = {json.loads(line)["query"]: None
               for line in open(folder / "relevance.jsonl", encoding="utf-8")}
    for query in queries:
        yield {"title": query}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--wordnet", type=pathlib.Path)
    parser.add_argument("--packages", type=pathlib.Path, nargs="*", default=[])
    parser.add_argument("--shop", type=pathlib.Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        if options.wordnet:
            write(options.out / "wordnet.jsonl", wordnet(options.wordnet))
        if options.packages:
            write(options.out / "packages.jsonl",
                  packages(sorted(options.packages)))
        if options.shop:
            write(options.out / "shop.jsonl", shop(options.shop))
    except (OSError, ValueError, IndexError, KeyError,
            subprocess.CalledProcessError) as error:
        sys.exit("%s: %s" % (type(error).__name__, error))


if __name__ == "__main__":
    main()

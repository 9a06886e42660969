"""Select the prose of the byte model's primer from books, and write the primer.

    python scripts/make_primer.py FOLDER [--check]

FOLDER holds the Project Gutenberg texts of BOOKS, as pgNUMBER.txt; with each stands the beginning of the sha256 of its
cleaned text. What is no prose is taken over from the primer that is there: articles of the Encyclopaedia Britannica of
1911, which stand one paragraph to a line, and our own code, markup and logs. So a second run writes the same file.
`--check` only compares. A new primer is a new version of the byte model's payloads: see docs/bytemodel.md.

Knows texts and how often their phrases occur; knows no model, so that no test file can have a part in the choice.
"""

from __future__ import annotations

import hashlib
import heapq
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

PRIMER = Path(__file__).resolve().parent.parent / "nacz/predictors/bytemodel/primer.txt"
SIZE = 1 << 19
BOOKS = {
    55: ("The Wonderful Wizard of Oz", "9462ba3d2f1c961135b470fda6e92dae"),
    74: ("The Adventures of Tom Sawyer", "cc4c3b0f15aa4fbe8900841954ed2c11"),
    98: ("A Tale of Two Cities", "9a6d304678dd7d5b84a794dfc2dddbef"),
    174: ("The Picture of Dorian Gray", "229d3af477bd0c82a04819f66e6947c1"),
    236: ("The Jungle Book", "c3ce3eb585898d644d614b1ae2e95786"),
    345: ("Dracula", "2274d3b13c95c7b235643f8d37f409be"),
    1342: ("Pride and Prejudice", "d63132a8558f6c029c4ff29c57249eec"),
    1661: ("The Adventures of Sherlock Holmes", "a8ca3830f0076f20ea9a9c52b3c29ba6"),
    2701: ("Moby Dick", "ba826319b6cd656c8c43f2347958ef85"),
}
OWN_FIRST, OWN_LAST = "#!/usr/bin/env python3", "(defun square"
OWN_PLACE = 40_000  # bytes of the primer behind our own text
ARTICLE = 90  # characters from which a line is a paragraph of the encyclopaedia
CHUNK = 100_000  # characters: a phrase is worth what share of such pieces has it
SAVED = (6.0, 4.0, 3.0, 2.0)  # bits that knowing a phrase of so many words saves, about
AGAIN = (1.0, 0.4, 0.2)  # worth of its first, second and third occurrence in the primer
_REPLACED = {"\r\n": "\n", "\ufeff": "", "“": '"', "”": '"', "‘": "'", "’": "'", "—": "--", "_": ""}


def cleaned(data: bytes) -> str:
    """The text of a book in ASCII, without what Project Gutenberg puts before and behind it."""
    text = data.decode("utf-8", "replace")
    for old, new in _REPLACED.items():
        text = text.replace(old, new)
    start = re.search(r"\*\*\* ?START OF[^*]*\*\*\*\n", text)
    stop = re.search(r"\*\*\* ?END OF|End of (the )?Project Gutenberg", text)
    return text[start.end() if start else 0 : stop.start() if stop else None]


def paragraphs(text: str) -> list[str]:
    """Paragraphs of prose: lower-case letters mostly, and nothing that is not ASCII."""
    found = []
    for part in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in part.strip().split("\n")]
        part = "\n".join(lines)
        if not 60 <= len(part) <= 1500 or max(map(len, lines)) > ARTICLE or not part.isascii() or "  " in part:
            continue
        if sum(c.islower() for c in part) * 10 >= len(part) * 7:
            found.append(part)
    return found


def phrases(text: str) -> list[tuple[str, ...]]:
    """All runs of one to four words; marks of punctuation are words."""
    words = re.findall(r"[A-Za-z']+|[^A-Za-z\s]", text)
    return [tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1)]


def worth(books: dict[int, str]) -> dict[tuple[str, ...], float]:
    """Bits that each phrase may save in an unknown text: those of more than one book only."""
    in_chunks: Counter[tuple[str, ...]] = Counter()
    in_books: defaultdict[tuple[str, ...], set[int]] = defaultdict(set)
    chunks = 0
    for number, text in books.items():
        for start in range(0, len(text), CHUNK):
            found = set(phrases(text[start : start + CHUNK]))
            in_chunks.update(found)
            for phrase in found:
                in_books[phrase].add(number)
            chunks += 1
    return {
        phrase: count / chunks * (len(in_books[phrase]) - 1) / (len(books) - 1) * SAVED[len(phrase) - 1]
        for phrase, count in in_chunks.items()
        if len(in_books[phrase]) > 1
    }


def chosen(parts: list[str], value: dict[tuple[str, ...], float], size: int) -> list[str]:
    """Paragraphs of `size` bytes in all, the best first: greedily by what they add per byte."""
    contents = [Counter(p for p in phrases(part) if p in value) for part in parts]
    seen: Counter[tuple[str, ...]] = Counter()

    def gain(number: int) -> float:
        total = 0.0
        for phrase, count in contents[number].items():
            had = seen[phrase]
            total += value[phrase] * sum(AGAIN[had : had + count])
        return total / (len(parts[number]) + 40)

    heap = [(-gain(i), i) for i in range(len(parts))]
    heapq.heapify(heap)
    result, used = [], 0
    while heap and used < size - 100:
        _, number = heapq.heappop(heap)
        fresh = -gain(number)
        if heap and fresh > heap[0][0]:
            heapq.heappush(heap, (fresh, number))
            continue
        if used + len(parts[number]) + 2 > size:
            continue
        seen.update(contents[number])
        result.append(parts[number])
        used += len(parts[number]) + 2
    return result


def made(folder: Path, old: str) -> str:
    """The primer. `old`: the one that is there."""
    first = old.index(OWN_FIRST)
    last = old.index("\n", old.index(OWN_LAST)) + 1
    own = old[first:last]
    articles = [line for line in (old[:first] + old[last:]).split("\n") if len(line) > ARTICLE]
    books = {}
    for number, (title, digest) in BOOKS.items():
        books[number] = cleaned((folder / f"pg{number}.txt").read_bytes())
        found = hashlib.sha256(books[number].encode()).hexdigest()[:32]
        if found != digest:
            print(f"{number}: another text of {title}: {found}", file=sys.stderr)
    room = SIZE - len(own) - sum(len(line) + 1 for line in articles)
    prose = chosen([part for text in books.values() for part in paragraphs(text)], worth(books), room)
    # The best comes last, for models that read the end only, and articles come evenly between.
    ranked = [(i / len(prose), 1, part + "\n\n") for i, part in enumerate(prose)]
    ranked += [(i / len(articles), 0, line + "\n") for i, line in enumerate(reversed(articles))]
    parts = [part for _, _, part in sorted(ranked, key=lambda r: r[:2], reverse=True)]
    text = "".join(parts)
    at = text.rindex("\n", 0, len(text) - OWN_PLACE) + 1
    return text[:at] + own + text[at:]


def main(arguments: list[str]) -> int:
    old = PRIMER.read_text("ascii")
    new = made(Path(arguments[0]), old)
    if "--check" in arguments:
        return 0 if new == old else 1
    PRIMER.write_text(new, "ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

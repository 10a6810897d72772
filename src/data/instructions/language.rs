//! IFEval family `language`: the language of the response, detected by script and by function words. The
//! detector is small and approximate. It returns `None` for text that is too short or too mixed, while IFEval's
//! langdetect always guesses.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::stop_words::is_stop_word;
use super::wording::pick;
use super::{Analysis, Function, FunctionKind, Kwargs, Request, kwargs, text_argument};
use crate::rng::Rng;

pub(super) static FUNCTIONS: [Function; 1] = [Function {
    id: "language:response_language",
    kind: FunctionKind::Lexical,
    approximate: true,
    triggers: &["language", "translate", "translation", "english", "french", "spanish", "german", "chinese"],
    draw: draw_language,
    phrase: |kwargs, variant| {
        let name = language_name(text_argument(kwargs, "language")?)?;
        pick(
            variant,
            [
                format!("Answer in {name} only."),
                format!("Write the whole answer in {name}."),
                format!("Use no language but {name}."),
            ],
        )
    },
    check: |kwargs, response| {
        let wanted = text_argument(kwargs, "language")?;
        let wanted = wanted.split(['-', '_']).next().unwrap_or(wanted);
        detect(response).map(|found| found == wanted)
    },
}];

/// Codes (ISO 639-1) and names of the languages that instructions can ask for.
const LANGUAGES: [(&str, &str); 32] = [
    ("en", "English"),
    ("es", "Spanish"),
    ("pt", "Portuguese"),
    ("fr", "French"),
    ("de", "German"),
    ("it", "Italian"),
    ("nl", "Dutch"),
    ("sv", "Swedish"),
    ("fi", "Finnish"),
    ("pl", "Polish"),
    ("tr", "Turkish"),
    ("vi", "Vietnamese"),
    ("sw", "Swahili"),
    ("ru", "Russian"),
    ("uk", "Ukrainian"),
    ("bg", "Bulgarian"),
    ("ar", "Arabic"),
    ("fa", "Persian"),
    ("ur", "Urdu"),
    ("he", "Hebrew"),
    ("el", "Greek"),
    ("hi", "Hindi"),
    ("bn", "Bengali"),
    ("ta", "Tamil"),
    ("te", "Telugu"),
    ("kn", "Kannada"),
    ("gu", "Gujarati"),
    ("pa", "Punjabi"),
    ("ml", "Malayalam"),
    ("th", "Thai"),
    ("ja", "Japanese"),
    ("ko", "Korean"),
];

/// Returns the name of a language. Chinese is not in the list, because IFEval has no plain code for
/// it, only codes with a script.
fn language_name(code: &str) -> Option<&'static str> {
    match code.split(['-', '_']).next() {
        Some("zh") => Some("Chinese"),
        Some(code) => LANGUAGES.iter().find(|l| l.0 == code).map(|l| l.1),
        None => None,
    }
}

/// Frequent function words of Latin-script languages other than English, and of Cyrillic-script languages.
const FUNCTION_WORDS: [(&str, &[&str]); 15] = [
    ("es", &["el", "los", "las", "una", "que", "por", "con", "para", "es", "del", "y", "como", "pero", "está", "muy"]),
    ("pt", &["os", "uma", "que", "não", "com", "para", "do", "da", "em", "você", "são", "mais", "também", "e", "ao"]),
    ("fr", &["le", "les", "des", "une", "est", "et", "que", "pour", "dans", "vous", "avec", "sur", "pas", "du", "au"]),
    (
        "de",
        &["der", "die", "das", "und", "ist", "nicht", "ein", "eine", "mit", "für", "auf", "von", "zu", "den", "sie"],
    ),
    ("it", &["il", "gli", "una", "che", "di", "è", "per", "con", "non", "sono", "della", "del", "più", "anche", "e"]),
    ("nl", &["de", "het", "een", "en", "van", "niet", "dat", "met", "voor", "zijn", "op", "te", "ook", "aan", "bij"]),
    ("sv", &["och", "att", "det", "som", "är", "en", "inte", "för", "på", "med", "av", "till", "ett", "kan", "om"]),
    ("fi", &["ja", "on", "ei", "että", "se", "oli", "mutta", "hän", "tai", "kun", "niin", "ovat", "joka", "kuin"]),
    ("pl", &["i", "w", "nie", "na", "się", "z", "do", "jest", "że", "to", "jak", "dla", "od", "przez", "oraz"]),
    ("tr", &["ve", "bir", "bu", "için", "ile", "da", "de", "çok", "olarak", "daha", "gibi", "var", "ne", "olan"]),
    ("vi", &["và", "của", "là", "có", "không", "các", "được", "cho", "một", "những", "trong", "với", "này", "người"]),
    ("sw", &["na", "ya", "wa", "kwa", "ni", "katika", "za", "la", "cha", "kuwa", "hii", "au", "pia", "yake"]),
    ("ru", &["и", "в", "не", "на", "что", "это", "как", "с", "по", "для", "из", "вы", "или", "они", "был"]),
    ("uk", &["і", "в", "не", "на", "що", "це", "як", "з", "та", "для", "є", "від", "або", "ви", "був"]),
    ("bg", &["и", "в", "не", "на", "че", "това", "как", "с", "за", "да", "от", "е", "се", "са", "или"]),
];

/// Language determined by a character's script, or `None` if several languages share the script.
fn script_language(c: char) -> Option<&'static str> {
    Some(match c {
        'ぁ'..='ヿ' => "ja",
        '가'..='힣' => "ko",
        '一'..='鿿' | '㐀'..='䶿' => "zh",
        '\u{0370}'..='\u{03FF}' => "el",
        '\u{0590}'..='\u{05FF}' => "he",
        '\u{0600}'..='\u{06FF}' => "ar",
        '\u{0900}'..='\u{097F}' => "hi",
        '\u{0980}'..='\u{09FF}' => "bn",
        '\u{0A00}'..='\u{0A7F}' => "pa",
        '\u{0A80}'..='\u{0AFF}' => "gu",
        '\u{0B80}'..='\u{0BFF}' => "ta",
        '\u{0C00}'..='\u{0C7F}' => "te",
        '\u{0C80}'..='\u{0CFF}' => "kn",
        '\u{0D00}'..='\u{0D7F}' => "ml",
        '\u{0E00}'..='\u{0E7F}' => "th",
        _ => return None,
    })
}

/// Language code of a text, or `None` if it is undecided. Devanagari counts as Hindi.
fn detect(response: &Analysis) -> Option<&'static str> {
    let letters = || response.text().chars().filter(|c| c.is_alphabetic());
    let mut scripts: HashMap<&'static str, usize> = HashMap::new();
    let mut count = 0;
    for letter in letters() {
        count += 1;
        if let Some(language) = script_language(letter) {
            *scripts.entry(language).or_default() += 1;
        }
    }
    let of = |language: &str| scripts.get(language).copied().unwrap_or(0);
    let most = count / 2;
    if of("ja") > 0 && of("ja") + of("zh") > most {
        return Some("ja");
    }
    if of("ar") > most {
        let has = |set: &[char]| letters().any(|c| set.contains(&c));
        return Some(if has(&['ٹ', 'ڈ', 'ے', 'ں', 'ہ']) {
            "ur"
        } else if has(&['پ', 'چ', 'ژ', 'گ', 'ی']) {
            "fa"
        } else {
            "ar"
        });
    }
    // At most one script has more than half of the letters, so the order of the map does not
    // matter.
    if let Some((&language, _)) = scripts.iter().find(|&(_, &count)| count > most) {
        return Some(language);
    }
    by_function_words(response)
}

/// Returns the language with the most function words. This language needs at least two function words, at least
/// a tenth of all words, and more than any other language.
fn by_function_words(response: &Analysis) -> Option<&'static str> {
    // Languages of each word, as indices into `FUNCTION_WORDS`.
    static LANGUAGES_OF: LazyLock<HashMap<&str, Vec<usize>>> = LazyLock::new(|| {
        let mut of: HashMap<&str, Vec<usize>> = HashMap::new();
        for (language, (_, list)) in FUNCTION_WORDS.iter().enumerate() {
            list.iter().for_each(|word| of.entry(word).or_default().push(language));
        }
        of
    });
    let (mut words, mut english, mut others) = (0, 0, [0; FUNCTION_WORDS.len()]);
    for word in response.words() {
        words += 1;
        english += usize::from(is_stop_word(word));
        LANGUAGES_OF.get(word).into_iter().flatten().for_each(|&language| others[language] += 1);
    }
    let others = FUNCTION_WORDS.iter().zip(others).map(|((code, _), count)| (*code, count));
    let mut scores: Vec<(&str, usize)> = std::iter::once(("en", english)).chain(others).collect();
    scores.sort_by_key(|&(_, score)| std::cmp::Reverse(score));
    let ((language, best), second) = (scores[0], scores[1].1);
    (best >= 2 && best * 10 >= words && best > second).then_some(language)
}

/// True if the text reads as English: English is detected, or no language is detected and all
/// letters are Latin.
pub(super) fn reads_as_english(response: &Analysis) -> bool {
    match detect(response) {
        Some(language) => language == "en",
        None => response.text().chars().filter(|c| c.is_alphabetic()).all(|c| c < '\u{0250}'),
    }
}

fn draw_language(request: &Request, rng: &mut Rng) -> Option<Kwargs> {
    let code = match request.satisfied().next() {
        Some(response) => detect(response)?,
        None => {
            let violated: Vec<_> = request.violated().map(detect).collect::<Option<_>>()?;
            let free = request.free().filter_map(detect).find(|code| !violated.contains(code));
            match free {
                Some(code) => code,
                None => {
                    let codes: Vec<_> = LANGUAGES.iter().map(|l| l.0).filter(|code| !violated.contains(code)).collect();
                    *rng.choose(&codes)?
                }
            }
        }
    };
    Some(kwargs([("language", code.into())]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_detected_by_script_or_function_words() {
        for (text, expected) in [
            ("This is the answer to your question.", Some("en")),
            ("El gato está en la casa y los perros son muy grandes.", Some("es")),
            ("Der Hund ist nicht mit der Katze auf dem Sofa.", Some("de")),
            ("Le chat est dans la maison et les chiens sont sur le lit.", Some("fr")),
            ("Это не то, что вы хотели для себя.", Some("ru")),
            ("今天天气很好", Some("zh")),
            ("今日は天気がいい", Some("ja")),
            ("오늘 날씨가 좋다", Some("ko")),
            ("यह एक वाक्य है", Some("hi")),
            ("هذا نص باللغة العربية", Some("ar")),
            ("این یک متن فارسی است و گفت", Some("fa")),
            ("ba lo ti mu re so", None),
            ("", None),
        ] {
            assert_eq!(detect(&Analysis::new(text)), expected, "{text}");
        }
    }

    #[test]
    fn undecided_text_is_not_checked() {
        let english = kwargs([("language", "en".into())]);
        assert_eq!(FUNCTIONS[0].check(&english, &Analysis::new("ba lo ti mu")), None);
        let chinese = kwargs([("language", "zh-cn".into())]);
        assert_eq!(FUNCTIONS[0].check(&chinese, &Analysis::new("今天天气很好")), Some(true));
        assert!(FUNCTIONS[0].phrase(&chinese, 0).unwrap().contains("Chinese"));
    }
}

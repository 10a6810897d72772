//! YAML and TOML files of options as trees with line numbers. Values keep their text, because options are
//! parsed from text: YAML's `no` is both a strategy and a truth value. Errors are: more than one document,
//! keys that are not texts, keys given twice, nesting deeper than [`MAX_DEPTH`], and trees of more than
//! [`MAX_NODES`] values, which aliases could make of a short file.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};
use serde_json::{Map, Number, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Largest depth of nested values.
const MAX_DEPTH: usize = 32;
/// Largest number of values.
const MAX_NODES: usize = 10_000;

/// A line number from 1 (0: the whole file), and the error in this line.
pub(super) type Fault = (usize, String);

/// A value of the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Null,
    /// A text. `plain` is set if it has no quotes, so that it may be a number or a truth value.
    Text {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Pair>),
}

/// A key with its line and its value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pair {
    pub key: String,
    pub line: usize,
    pub value: Node,
}

impl Node {
    /// The value as JSON.
    pub(super) fn json(&self) -> Value {
        match self {
            Node::Null => Value::Null,
            Node::Text { text, plain: false } => text.as_str().into(),
            Node::Text { text, plain: true } => plain(text),
            Node::List(list) => list.iter().map(Node::json).collect(),
            Node::Map(pairs) => {
                pairs.iter().map(|pair| (pair.key.clone(), pair.value.json())).collect::<Map<_, _>>().into()
            }
        }
    }

    /// The value as the text of an option; `None` for one that is not set.
    pub(super) fn text(&self) -> Option<String> {
        match self {
            Node::Null => None,
            Node::Text { text, .. } => Some(text.clone()),
            Node::List(_) | Node::Map(_) => Some(self.json().to_string()),
        }
    }
}

/// Value of a text without quotes.
fn plain(text: &str) -> Value {
    match text {
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return true.into(),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => return false.into(),
        _ => {}
    }
    if let Ok(whole) = text.parse::<i64>() {
        return whole.into();
    }
    let number = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)).then(|| text.parse().ok());
    match number.flatten().and_then(Number::from_f64) {
        Some(number) => Value::Number(number),
        None => text.into(),
    }
}

/// Pairs of a YAML file; none for an empty one.
pub(super) fn yaml(text: &str) -> Result<Vec<Pair>, Fault> {
    let mut reader = YamlReader { events: Parser::new_from_str(text), anchors: HashMap::new(), nodes: 0 };
    reader.document()
}

struct YamlReader<'a> {
    events: Parser<'a, StrInput<'a>>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

impl<'a> YamlReader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Fault> {
        match self.events.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(e)) => Err((e.marker().line(), format!("is not valid YAML: {}", e.info()))),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn document(&mut self) -> Result<Vec<Pair>, Fault> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            let line = span.start.line();
            match event {
                Event::StreamEnd => break,
                Event::Nothing | Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd => {}
                _ if root.is_some() => return Err((line, "a second document begins here; keep one".into())),
                event => root = Some((line, self.node(event, line, 0)?)),
            }
        }
        match root {
            None | Some((_, Node::Null)) => Ok(Vec::new()),
            Some((_, Node::Map(pairs))) => Ok(pairs),
            Some((line, _)) => Err((line, "options are needed, one a line, as `learning_rate: 1e-5`".into())),
        }
    }

    /// The value that begins with an event.
    fn node(&mut self, event: Event<'a>, line: usize, depth: usize) -> Result<Node, Fault> {
        self.nodes += 1;
        if depth > MAX_DEPTH || self.nodes > MAX_NODES {
            return Err((line, "is nested too deep, or has too many values".into()));
        }
        let (anchor, node) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain;
                let is_text = tag.is_some_and(|tag| tag.suffix == "str");
                let null = plain && !is_text && ["", "~", "null", "Null", "NULL"].contains(&&*text);
                let plain = plain && !is_text;
                (anchor, if null { Node::Null } else { Node::Text { text: text.into_owned(), plain } })
            }
            Event::SequenceStart(anchor, _) => {
                let mut list = Vec::new();
                loop {
                    let (event, span) = self.next()?;
                    match event {
                        Event::SequenceEnd => break,
                        event => list.push(self.node(event, span.start.line(), depth + 1)?),
                    }
                }
                (anchor, Node::List(list))
            }
            Event::MappingStart(anchor, _) => {
                let mut pairs: Vec<Pair> = Vec::new();
                loop {
                    let (event, span) = self.next()?;
                    let line = span.start.line();
                    let key = match event {
                        Event::MappingEnd => break,
                        Event::Scalar(text, ..) => text.into_owned(),
                        _ => return Err((line, "a key must be a text".into())),
                    };
                    refuse_twice(&pairs, &key, line)?;
                    let (event, span) = self.next()?;
                    let value = self.node(event, span.start.line(), depth + 1)?;
                    pairs.push(Pair { key, line, value });
                }
                (anchor, Node::Map(pairs))
            }
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).cloned();
                let node = node.ok_or_else(|| (line, "the alias is inside its own value".to_owned()))?;
                self.nodes += size(&node);
                (0, node)
            }
            _ => return Err((line, "a value is missing".into())),
        };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }
}

/// Number of values in a tree.
fn size(node: &Node) -> usize {
    match node {
        Node::Null | Node::Text { .. } => 1,
        Node::List(list) => 1 + list.iter().map(size).sum::<usize>(),
        Node::Map(pairs) => 1 + pairs.iter().map(|pair| size(&pair.value)).sum::<usize>(),
    }
}

fn refuse_twice(pairs: &[Pair], key: &str, line: usize) -> Result<(), Fault> {
    match pairs.iter().find(|pair| pair.key == key) {
        None => Ok(()),
        Some(first) => Err((line, format!("\"{key}\" is already set in line {}; remove one of the two", first.line))),
    }
}

/// Pairs of a TOML file, in the order of the file.
pub(super) fn toml(text: &str) -> Result<Vec<Pair>, Fault> {
    let table = DeTable::parse(text).map_err(|e| {
        let line = e.span().map_or(0, |span| line_of(text, span.start));
        (line, format!("is not valid TOML: {}", e.message().trim()))
    })?;
    let mut pairs = table_pairs(table.get_ref(), text)?;
    pairs.sort_by_key(|pair| pair.line);
    Ok(pairs)
}

fn table_pairs(table: &DeTable<'_>, text: &str) -> Result<Vec<Pair>, Fault> {
    let pair = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
        let key: &Spanned<std::borrow::Cow<'_, str>> = key;
        let line = line_of(text, key.span().start);
        Ok(Pair { key: key.get_ref().to_string(), line, value: toml_node(value.get_ref(), line, text)? })
    };
    table.iter().map(pair).collect()
}

fn toml_node(value: &DeValue<'_>, line: usize, text: &str) -> Result<Node, Fault> {
    let plain = |text: String| Node::Text { text, plain: true };
    Ok(match value {
        DeValue::String(text) => Node::Text { text: text.to_string(), plain: false },
        DeValue::Integer(number) if number.radix() == 10 => plain(number.as_str().to_owned()),
        DeValue::Integer(_) => return Err((line, "write the number with decimal digits".into())),
        DeValue::Float(number) => plain(number.as_str().to_owned()),
        DeValue::Boolean(yes) => plain(yes.to_string()),
        DeValue::Datetime(_) => return Err((line, "a date is not the value of an option".into())),
        DeValue::Array(list) => {
            Node::List(list.iter().map(|value| toml_node(value.get_ref(), line, text)).collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => Node::Map(table_pairs(table, text)?),
    })
}

fn line_of(text: &str, byte: usize) -> usize {
    text.as_bytes()[..byte.min(text.len())].iter().filter(|&&b| b == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn json_of(pairs: Vec<Pair>) -> Value {
        Node::Map(pairs).json()
    }

    #[test]
    fn both_formats_give_the_same_tree() {
        let from_yaml = yaml(
            "# options\nlearning_rate: 1.0e-6\nsave_strategy: no\nmodel: 'no'\nfiles:\n  - a.jsonl\n  - \"b c\"\n\
             kwargs: {min_lr: 1e-7, cycles: 2, deep: [true, ~]}\nnothing:\nlong: >-\n  a\n  b\n",
        );
        let from_toml = toml(
            "learning_rate = 1.0e-6\nsave_strategy = false\nmodel = \"no\"\nfiles = [\"a.jsonl\", 'b c']\n\
             kwargs = { min_lr = 1e-7, cycles = 2 }\n",
        );
        let mut expected = json!({
            "learning_rate": 1e-6, "save_strategy": false, "model": "no", "files": ["a.jsonl", "b c"],
            "kwargs": {"min_lr": 1e-7, "cycles": 2, "deep": [true, null]}, "nothing": null, "long": "a b",
        });
        let pairs = from_yaml.unwrap();
        assert_eq!(pairs.iter().map(|pair| pair.line).collect::<Vec<_>>(), [2, 3, 4, 5, 8, 9, 10]);
        assert_eq!(pairs[1].value.text().as_deref(), Some("no"));
        assert_eq!(json_of(pairs), expected);
        let object = expected.as_object_mut().unwrap();
        object.shift_remove("nothing");
        object.shift_remove("long");
        object["kwargs"].as_object_mut().unwrap().shift_remove("deep");
        let pairs = from_toml.unwrap();
        assert_eq!(pairs.iter().map(|pair| pair.line).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!(json_of(pairs), expected);
    }

    #[test]
    fn aliases_are_followed_and_limited() {
        let pairs = yaml("a: &x [1, 2]\nb: *x\n").unwrap();
        assert_eq!(json_of(pairs), json!({"a": [1, 2], "b": [1, 2]}));
        let mut bomb = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n".to_owned();
        for i in 1..9 {
            let one = format!("*a{}, ", i - 1);
            bomb += &format!("a{i}: &a{i} [{}]\n", one.repeat(10));
        }
        assert!(yaml(&bomb).unwrap_err().1.contains("too many"));
        let deep = format!("a: {}{}", "[".repeat(60), "]".repeat(60));
        assert!(yaml(&deep).unwrap_err().1.contains("too deep"));
    }

    /// Damaged files end in a fault, never in a panic.
    #[test]
    fn damaged_files_are_faults() {
        let seed = "a: &x [1, 'b', \"c\\n\"]\nb: *x\n? k\n: {d: e, f: [~, !!str 1]}\ng: |\n  h\n # i\n- j: >-\n   k\n---\n%YAML 1.2\n";
        let odd = [
            b'\n', b' ', b'\t', b':', b'-', b'[', b']', b'{', b'}', b'&', b'*', b'!', b'|', b'>', b'\'', b'"', b'%',
            b'?',
        ];
        let mut rng = crate::rng::Rng::keyed(7, &["damaged files"]);
        let mut draw = |below: usize| rng.below(below);
        let mut faults = 0;
        for _ in 0..30_000 {
            let mut bytes = seed.as_bytes().to_vec();
            for _ in 0..1 + draw(4) {
                let at = draw(bytes.len());
                match draw(3) {
                    0 => drop(bytes.remove(at)),
                    1 => bytes[at] = odd[draw(odd.len())],
                    _ => bytes.insert(at, odd[draw(odd.len())]),
                }
            }
            bytes.truncate(1 + draw(bytes.len()));
            let text = String::from_utf8_lossy(&bytes);
            faults += usize::from(yaml(&text).is_err());
            let _ = toml(&text);
        }
        assert!(faults > 10_000, "{faults}");
    }

    #[test]
    fn faults_are_named_with_their_line() {
        for (text, line, part) in [
            ("a: 1\nb: [1\n", 3, "not valid YAML"),
            ("a: 1\nb: 2\na: 3\n", 3, "already set in line 1"),
            ("- a\n- b\n", 1, "one a line"),
            ("just text", 1, "one a line"),
            ("a: 1\n---\nb: 2\n", 3, "second document"),
            ("? [a]\n: 1\n", 1, "key must be a text"),
            ("a: *none\n", 1, "not valid YAML"),
        ] {
            let (at, why) = yaml(text).unwrap_err();
            assert!(why.contains(part), "{text:?}: {at} {why}");
            assert!(at == line || part == "not valid YAML", "{text:?}: {at} {why}");
        }
        for text in ["", "\n# nothing\n", "---\n", "~"] {
            assert_eq!(yaml(text).unwrap(), [], "{text:?}");
        }
        for (text, line, part) in [
            ("a = 1\nb = \n", 2, "not valid TOML"),
            ("a = 1\na = 2\n", 2, "not valid TOML"),
            ("a = 1979-05-27\n", 1, "date"),
            ("a = 0xff\n", 1, "decimal"),
        ] {
            let (at, why) = toml(text).unwrap_err();
            assert!(at == line && why.contains(part), "{text:?}: {at} {why}");
        }
    }
}

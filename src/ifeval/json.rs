//! Whether a text is a JSON value for Python's `json.loads`, which also accepts NaN and infinities and limits
//! the digits of an integer. Nesting is not limited.

/// Maximum number of digits of an integer that Python converts.
const MAX_DIGITS: usize = 4300;

/// True if `json.loads` accepts the text.
pub(super) fn is_json(text: &str) -> bool {
    let mut reader = Reader { rest: text.as_bytes() };
    reader.value().is_some()
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    /// Reads one value, which must be followed by the end of the text.
    fn value(&mut self) -> Option<()> {
        // Closing brackets of the open arrays and objects.
        let mut open = Vec::new();
        loop {
            self.space();
            match *self.rest.first()? {
                bracket @ (b'[' | b'{') => {
                    self.rest = &self.rest[1..];
                    let closing = if bracket == b'[' { b']' } else { b'}' };
                    open.push(closing);
                    self.space();
                    if !self.rest.starts_with(&[closing]) {
                        self.key(closing)?;
                        continue;
                    }
                }
                b'"' => self.string()?,
                _ => self.plain()?,
            }
            // A value is followed by the ends of arrays and objects, if any, then by a comma or the end of the
            // text.
            loop {
                self.space();
                let Some(&closing) = open.last() else { return self.rest.is_empty().then_some(()) };
                let (&next, rest) = self.rest.split_first()?;
                self.rest = rest;
                if next == b',' {
                    self.key(closing)?;
                    break;
                }
                open.pop_if(|_| next == closing)?;
            }
        }
    }

    /// Reads the key and colon of an object's entry; reads nothing in an array.
    fn key(&mut self, closing: u8) -> Option<()> {
        if closing == b']' {
            return Some(());
        }
        self.space();
        self.string()?;
        self.space();
        self.rest = self.rest.strip_prefix(b":")?;
        Some(())
    }

    fn space(&mut self) {
        let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        let end = self.rest.iter().position(|byte| !blank(byte)).unwrap_or(self.rest.len());
        self.rest = &self.rest[end..];
    }

    fn string(&mut self) -> Option<()> {
        self.rest = self.rest.strip_prefix(b"\"")?;
        loop {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            match byte {
                b'"' => return Some(()),
                0..0x20 => return None,
                b'\\' => {
                    let (&escape, rest) = rest.split_first()?;
                    let digits = if escape == b'u' { 4 } else { 0 };
                    let (hex, rest) = rest.split_at_checked(digits)?;
                    if !b"\"\\/bfnrtu".contains(&escape) || !hex.iter().all(u8::is_ascii_hexdigit) {
                        return None;
                    }
                    self.rest = rest;
                }
                _ => {}
            }
        }
    }

    /// Reads a number or a constant.
    fn plain(&mut self) -> Option<()> {
        for constant in ["null", "true", "false", "NaN", "Infinity", "-Infinity"] {
            if let Some(rest) = self.rest.strip_prefix(constant.as_bytes()) {
                self.rest = rest;
                return Some(());
            }
        }
        self.rest = self.rest.strip_prefix(b"-").unwrap_or(self.rest);
        let first = self.rest.first().copied();
        let whole = self.digits();
        if whole == 0 || (first == Some(b'0') && whole > 1) {
            return None;
        }
        let mut is_whole = true;
        if let Some(rest) = self.rest.strip_prefix(b".") {
            self.rest = rest;
            is_whole = false;
            (self.digits() > 0).then_some(())?;
        }
        if let [b'e' | b'E', rest @ ..] = self.rest {
            self.rest = rest.strip_prefix(b"+").or_else(|| rest.strip_prefix(b"-")).unwrap_or(rest);
            is_whole = false;
            (self.digits() > 0).then_some(())?;
        }
        (!is_whole || whole <= MAX_DIGITS).then_some(())
    }

    /// Skips digits and returns their number.
    fn digits(&mut self) -> usize {
        let count = self.rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.rest = &self.rest[count..];
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_python() {
        for text in [
            "3",
            "-0",
            "1.5e-3",
            "1E+2",
            "\"\"",
            "\"\\ud83d \\\" é\"",
            "[]",
            "{}",
            " [1, {\"a\": [null]}, NaN]\n",
            "-Infinity",
            "{\"a\": 1, \"a\": 2}",
            "[[], {}, [true]]",
        ] {
            assert!(is_json(text), "{text}");
        }
        for text in [
            "",
            " ",
            "text",
            "01",
            "1.",
            ".5",
            "-",
            "+1",
            "1 2",
            "[1,]",
            "[,1]",
            "{\"a\":1,}",
            "{a: 1}",
            "{\"a\" 1}",
            "[1",
            "[1}",
            "{\"a\": 1]",
            "\"a\nb\"",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"a",
            "nul",
            "\u{feff}1",
            "'a'",
            "[1]]",
        ] {
            assert!(!is_json(text), "{text}");
        }
        assert!(
            is_json(&"9".repeat(4300)) && !is_json(&"9".repeat(4301)) && is_json(&format!("{}.0", "9".repeat(4301)))
        );
        let deep = 1 << 20;
        assert!(is_json(&("[".repeat(deep) + &"]".repeat(deep))) && !is_json(&"[".repeat(deep)));
    }
}

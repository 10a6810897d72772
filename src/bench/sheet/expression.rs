//! Formulas, in f64, of a sheet (a TOML file for a kernel without a launcher): sizes, grids, contents and
//! expected elements of operands.
//!
//! ```text
//! formula  = sum [ ("<" | "<=" | ">" | ">=" | "==" | "!=") sum ]      1 if it holds, else 0
//! sum      = product { ("+" | "-") product }
//! product  = sign { ("*" | "/" | "%") sign }
//! sign     = "-" sign | atom
//! atom     = number | "(" formula ")" | name | operand "[" formula, ... "]"
//!          | function "(" formula, ... ")" | "sum" "(" name "," count "," formula ")"
//! ```
//!
//! A formula has at most 1,000 characters and 64 levels of brackets and signs. A `sum` of more than 2^31
//! terms is NaN.
//!
//! A name is a size, an index of the element (`i0`, `i1`, `i2`), the variable of an enclosing `sum`, or an
//! operand. An operand stands for its element at the indices of the result, where axes of length 1 are
//! broadcast.

/// Functions by name and number of arguments.
const FUNCTIONS: [(&str, usize); 18] = [
    ("max", 2),
    ("min", 2),
    ("pow", 2),
    ("exp", 1),
    ("log", 1),
    ("tanh", 1),
    ("sqrt", 1),
    ("abs", 1),
    ("floor", 1),
    ("ceil", 1),
    ("round", 1),
    ("sin", 1),
    ("cos", 1),
    ("erf", 1),
    ("sigmoid", 1),
    ("bf16", 1),
    ("f32", 1),
    ("where", 3),
];

/// Maximum length of a formula in bytes, and maximum number of nested levels. The parser and the evaluation
/// are recursive.
const MAX_TEXT: usize = 1000;
const MAX_LEVELS: usize = 64;
/// Maximum number of terms of a `sum`.
const MAX_TERMS: f64 = (1u64 << 31) as f64;

/// Names of the indices of an element.
pub const PLACES: [&str; 3] = ["i0", "i1", "i2"];

/// Names that a formula may use.
#[derive(Clone, Debug, Default)]
pub struct Scope<'a> {
    pub sizes: &'a [(String, f64)],
    /// Operands with their shapes.
    pub operands: &'a [(String, Vec<usize>)],
    /// Shape of the result, whose indices a formula may use.
    pub result: &'a [usize],
}

/// A formula with its names resolved.
#[derive(Clone, Debug, PartialEq)]
pub enum Formula {
    Number(f64),
    Place(usize),
    /// Variable of the enclosing sum at this depth.
    Variable(usize),
    /// Element of an operand at the indices of the result's element.
    Here(usize),
    At(usize, Vec<Formula>),
    Call(&'static str, Vec<Formula>),
    Binary(&'static str, Box<[Formula; 2]>),
    Sum(usize, Box<[Formula; 2]>),
}

/// Numbers that a formula is evaluated on.
pub struct Numbers<'a> {
    pub operands: &'a [Vec<f64>],
    pub shapes: &'a [(String, Vec<usize>)],
    /// Indices of the result's element.
    pub place: &'a [usize],
    pub result: &'a [usize],
}

impl Formula {
    /// Parses a formula. An error says what is wrong and where.
    pub fn parse(text: &str, scope: &Scope<'_>) -> Result<Self, String> {
        if text.len() > MAX_TEXT {
            return Err(format!("a formula of {} characters; at most {MAX_TEXT} are read", text.len()));
        }
        let mut parser = Parser { text, at: 0, scope, variables: Vec::new(), levels: 0 };
        let formula = parser.comparison()?;
        match parser.peek() {
            None => Ok(formula),
            Some(c) => Err(parser.wrong(&format!("`{c}` after its end"))),
        }
    }

    /// Returns the value, or NaN if the formula reads an element outside of its operand.
    pub fn value(&self, on: &Numbers<'_>) -> f64 {
        self.evaluate(on, &mut Vec::new())
    }

    fn evaluate(&self, on: &Numbers<'_>, variables: &mut Vec<f64>) -> f64 {
        match self {
            Self::Number(x) => *x,
            Self::Place(axis) => on.place[*axis] as f64,
            Self::Variable(depth) => variables[*depth],
            Self::Here(operand) => {
                let shape = &on.shapes[*operand].1;
                let skipped = on.result.len() - shape.len();
                let flat = shape
                    .iter()
                    .zip(&on.place[skipped..])
                    .fold(0, |flat, (&length, &place)| flat * length + if length == 1 { 0 } else { place });
                on.operands[*operand][flat]
            }
            Self::At(operand, places) => {
                let mut flat = 0;
                for (place, &length) in places.iter().zip(&on.shapes[*operand].1) {
                    let place = place.evaluate(on, variables);
                    if !(place >= 0.0 && place < length as f64 && place.fract() == 0.0) {
                        return f64::NAN;
                    }
                    flat = flat * length + place as usize;
                }
                on.operands[*operand][flat]
            }
            // Only the chosen branch of `where` is evaluated, so that its condition can guard an element out
            // of range.
            Self::Call("where", arguments) => {
                let chosen = if arguments[0].evaluate(on, variables) != 0.0 { 1 } else { 2 };
                arguments[chosen].evaluate(on, variables)
            }
            Self::Call(name, arguments) => {
                let values: Vec<f64> = arguments.iter().map(|argument| argument.evaluate(on, variables)).collect();
                call(name, &values)
            }
            Self::Binary(operator, sides) => {
                let [a, b] = [&sides[0], &sides[1]].map(|side| side.evaluate(on, variables));
                binary(operator, a, b)
            }
            Self::Sum(depth, parts) => {
                let count = parts[0].evaluate(on, variables);
                if count.is_nan() || count > MAX_TERMS {
                    return f64::NAN;
                }
                let mut sum = 0.0;
                let mut at = 0.0;
                while at < count {
                    variables.truncate(*depth);
                    variables.push(at);
                    sum += parts[1].evaluate(on, variables);
                    at += 1.0;
                }
                variables.truncate(*depth);
                sum
            }
        }
    }
}

fn call(name: &str, values: &[f64]) -> f64 {
    let x = values[0];
    match name {
        "max" => x.max(values[1]),
        "min" => x.min(values[1]),
        "pow" => x.powf(values[1]),
        "exp" => x.exp(),
        "log" => x.ln(),
        "tanh" => x.tanh(),
        "sqrt" => x.sqrt(),
        "abs" => x.abs(),
        "floor" => x.floor(),
        "ceil" => x.ceil(),
        "round" => x.round_ties_even(),
        "sin" => x.sin(),
        "cos" => x.cos(),
        "erf" => libm::erf(x),
        "sigmoid" => 1.0 / (1.0 + (-x).exp()),
        "bf16" => half::bf16::from_f64(x).to_f64(),
        "f32" => f64::from(x as f32),
        _ => f64::NAN,
    }
}

fn binary(operator: &str, a: f64, b: f64) -> f64 {
    let truth = |holds: bool| f64::from(u8::from(holds));
    match operator {
        "+" => a + b,
        "-" => a - b,
        "*" => a * b,
        "/" => a / b,
        "%" => a.rem_euclid(b),
        "<" => truth(a < b),
        "<=" => truth(a <= b),
        ">" => truth(a > b),
        ">=" => truth(a >= b),
        "==" => truth(a == b),
        _ => truth(a != b),
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    scope: &'a Scope<'a>,
    variables: Vec<String>,
    /// Number of signs and atoms that enclose the current one.
    levels: usize,
}

impl Parser<'_> {
    fn wrong(&self, why: &str) -> String {
        format!("`{}`: {why} (character {})", self.text, self.at + 1)
    }

    /// The next character that is not a blank.
    fn peek(&mut self) -> Option<char> {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
        self.text[self.at..].chars().next()
    }

    fn takes(&mut self, token: &str) -> bool {
        self.peek();
        let found = self.text[self.at..].starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.takes(token) { Ok(()) } else { Err(self.wrong(&format!("`{token}` is missing"))) }
    }

    fn one_of(&mut self, operators: &[&'static str]) -> Option<&'static str> {
        operators.iter().copied().find(|operator| self.takes(operator))
    }

    fn chain(
        &mut self,
        operators: &[&'static str],
        part: impl Fn(&mut Self) -> Result<Formula, String>,
    ) -> Result<Formula, String> {
        let mut left = part(self)?;
        while let Some(operator) = self.one_of(operators) {
            left = Formula::Binary(operator, Box::new([left, part(self)?]));
        }
        Ok(left)
    }

    fn comparison(&mut self) -> Result<Formula, String> {
        let left = self.sum()?;
        match self.one_of(&["<=", ">=", "==", "!=", "<", ">"]) {
            Some(operator) => Ok(Formula::Binary(operator, Box::new([left, self.sum()?]))),
            None => Ok(left),
        }
    }

    fn sum(&mut self) -> Result<Formula, String> {
        self.chain(&["+", "-"], |parser| parser.chain(&["*", "/", "%"], Self::sign))
    }

    fn sign(&mut self) -> Result<Formula, String> {
        if self.levels == MAX_LEVELS {
            return Err(self.wrong(&format!("more than {MAX_LEVELS} levels of brackets and signs")));
        }
        self.levels += 1;
        let formula = match self.takes("-") {
            true => Formula::Binary("-", Box::new([Formula::Number(0.0), self.sign()?])),
            false => self.atom()?,
        };
        self.levels -= 1;
        Ok(formula)
    }

    fn atom(&mut self) -> Result<Formula, String> {
        match self.peek() {
            Some('(') => {
                self.expect("(")?;
                let inner = self.comparison()?;
                self.expect(")")?;
                Ok(inner)
            }
            Some(c) if c.is_ascii_digit() || c == '.' => self.number(),
            Some(c) if c.is_ascii_alphabetic() || c == '_' => self.name(),
            Some(c) => Err(self.wrong(&format!("`{c}` where a number or a name is needed"))),
            None => Err(self.wrong("it ends where a number or a name is needed")),
        }
    }

    fn number(&mut self) -> Result<Formula, String> {
        let rest = &self.text.as_bytes()[self.at..];
        let mut end = 0;
        while let Some(&byte) = rest.get(end) {
            let exponent = end > 0 && matches!(rest[end - 1], b'e' | b'E') && matches!(byte, b'+' | b'-');
            if !(byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E') || exponent) {
                break;
            }
            end += 1;
        }
        let text = &self.text[self.at..self.at + end];
        let number = text.parse().map_err(|_| self.wrong(&format!("`{text}` is not a number")))?;
        self.at += end;
        Ok(Formula::Number(number))
    }

    fn word(&mut self) -> &str {
        self.peek();
        let rest = &self.text[self.at..];
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        self.at += end;
        &self.text[self.at - end..self.at]
    }

    fn list(&mut self, end: &str) -> Result<Vec<Formula>, String> {
        let mut list = vec![self.comparison()?];
        while self.takes(",") {
            list.push(self.comparison()?);
        }
        self.expect(end)?;
        Ok(list)
    }

    fn name(&mut self) -> Result<Formula, String> {
        let name = self.word().to_owned();
        let called = self.takes("(");
        if called && name == "sum" {
            return self.sum_over();
        }
        if called {
            let Some((function, count)) = FUNCTIONS.iter().find(|(function, _)| *function == name) else {
                let known: Vec<&str> = FUNCTIONS.iter().map(|(function, _)| *function).chain(["sum"]).collect();
                return Err(self.wrong(&format!("{name} is not a function; functions: {}", known.join(", "))));
            };
            let arguments = self.list(")")?;
            if arguments.len() != *count {
                return Err(self.wrong(&format!("{name} takes {count} arguments, not {}", arguments.len())));
            }
            return Ok(Formula::Call(function, arguments));
        }
        if let Some(depth) = self.variables.iter().rposition(|variable| *variable == name) {
            return Ok(Formula::Variable(depth));
        }
        if let Some((_, size)) = self.scope.sizes.iter().find(|(size, _)| *size == name) {
            return Ok(Formula::Number(*size));
        }
        if let Some(axis) = PLACES[..self.scope.result.len()].iter().position(|place| *place == name) {
            return Ok(Formula::Place(axis));
        }
        let Some(operand) = self.scope.operands.iter().position(|(operand, _)| *operand == name) else {
            let places = &PLACES[..self.scope.result.len()];
            let known = self.scope.sizes.iter().map(|(name, _)| name.as_str());
            let known = known.chain(self.scope.operands.iter().map(|(name, _)| name.as_str()));
            let known: Vec<&str> = known.chain(places.iter().copied()).collect();
            return Err(self.wrong(&format!("{name} is unknown; names: {}", known.join(", "))));
        };
        let shape = &self.scope.operands[operand].1;
        if self.takes("[") {
            let places = self.list("]")?;
            if places.len() != shape.len() {
                return Err(self.wrong(&format!("{name} has {} axes, not {}", shape.len(), places.len())));
            }
            return Ok(Formula::At(operand, places));
        }
        let result = self.scope.result;
        let fits = |skipped: usize| shape.iter().zip(&result[skipped..]).all(|(a, b)| *a == 1 || a == b);
        if !result.len().checked_sub(shape.len()).is_some_and(fits) {
            return Err(self.wrong(&format!(
                "{name} of shape {shape:?} has no element for each element of the result {result:?}; write {name}[...]"
            )));
        }
        Ok(Formula::Here(operand))
    }

    /// Parses the rest of `sum(name, count, formula)` after the opening parenthesis.
    fn sum_over(&mut self) -> Result<Formula, String> {
        let variable = self.word().to_owned();
        if !variable.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return Err(self.wrong("sum needs `sum(name, count, formula)`"));
        }
        self.expect(",")?;
        let count = self.comparison()?;
        self.expect(",")?;
        let depth = self.variables.len();
        self.variables.push(variable);
        let body = self.comparison();
        self.variables.pop();
        let body = body?;
        self.expect(")")?;
        Ok(Formula::Sum(depth, Box::new([count, body])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Sizes = Vec<(String, f64)>;
    type Shapes = Vec<(String, Vec<usize>)>;

    fn scope() -> (Sizes, Shapes) {
        let sizes = vec![("n".to_owned(), 3.0), ("threads".to_owned(), 128.0)];
        let operands =
            vec![("x".to_owned(), vec![2, 3]), ("bias".to_owned(), vec![3]), ("scale".to_owned(), vec![2, 1])];
        (sizes, operands)
    }

    fn value(text: &str) -> Result<f64, String> {
        let (sizes, operands) = scope();
        let result = [2, 3];
        let formula = Formula::parse(text, &Scope { sizes: &sizes, operands: &operands, result: &result })?;
        let numbers = [vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0], vec![10.0, 20.0, 30.0], vec![-1.0, -2.0]];
        Ok(formula.value(&Numbers { operands: &numbers, shapes: &operands, place: &[1, 2], result: &result }))
    }

    #[test]
    fn formulas_have_the_values_of_the_textbook() {
        for (text, expected) in [
            ("1 + 2 * 3 - 8 / 4", 5.0),
            ("(1 + 2) * -3", -9.0),
            ("2 - 1 - 1", 0.0),
            ("7 % 4 + 1e2 + 2.5e-1", 103.25),
            ("max(n, 2) + min(n, 2)", 5.0),
            ("ceil(n * 100 / threads)", 3.0),
            ("x + bias * scale", 5.0 + 30.0 * -2.0),
            ("x[0, 1] + bias[i1] + i0", 1.0 + 30.0 + 1.0),
            ("where(x > 4, 1, x[9, 9])", 1.0),
            ("(1 < 2) + (2 <= 2) + (1 != 1) + (1 == 1) + (3 >= 4)", 3.0),
            ("sum(k, n, x[i0, k] * bias[k])", 30.0 + 80.0 + 150.0),
            ("sum(k, 2, sum(j, k + 1, 10 * k + j))", 0.0 + 10.0 + 11.0),
            ("exp(log(2)) + sqrt(4) + pow(2, 3) + abs(-1)", 13.0),
            ("sigmoid(0) + tanh(0) + erf(0) + bf16(257)", 256.5),
        ] {
            let got = value(text).unwrap();
            assert!((got - expected).abs() < 1e-12, "{text}: {got}");
        }
        assert!(value("x[2, 0]").unwrap().is_nan());
    }

    #[test]
    fn an_error_says_what_and_where() {
        for (text, why) in [
            ("", "it ends where a number"),
            ("1 +", "it ends where a number"),
            ("(1", "`)` is missing"),
            ("1 2", "`2` after its end (character 3)"),
            ("y", "y is unknown; names: n, threads, x, bias, scale, i0, i1"),
            ("cosh(1)", "cosh is not a function"),
            ("max(1)", "max takes 2 arguments, not 1"),
            ("x[1]", "x has 2 axes, not 1"),
            ("1.2.3", "`1.2.3` is not a number"),
            ("sum(1, 2, 3)", "sum needs `sum(name, count, formula)`"),
            ("i2", "i2 is unknown"),
        ] {
            let error = value(text).unwrap_err();
            assert!(error.contains(why), "{text:?} gave {error:?}");
        }
        let (sizes, operands) = scope();
        let narrow = Scope { sizes: &sizes, operands: &operands, result: &[2] };
        assert!(Formula::parse("x", &narrow).unwrap_err().contains("write x[...]"));
    }

    #[test]
    fn formulas_without_end_are_refused() {
        for (text, why) in [
            ("(".repeat(900), "levels of brackets and signs"),
            ("-".repeat(900), "levels of brackets and signs"),
            ("abs(".repeat(200), "levels of brackets and signs"),
            ("(".repeat(1 << 20), "at most 1000 are read"),
            ("1+".repeat(1 << 19) + "1", "at most 1000 are read"),
        ] {
            let error = value(&text).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert_eq!(value(&("1+".repeat(499) + "1")), Ok(500.0));
        assert!(value("sum(j, 1e300, 1)").unwrap().is_nan());
    }
}

//! Settings of the readers: the column map, columns to leave out, rows to skip, pairs of several
//! responses, and whether one file may mix formats.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Keys that a column map may provide.
const TARGETS: [&str; 19] = [
    "id",
    "prompt",
    "chosen",
    "rejected",
    "margin",
    "tools",
    "chat_template_kwargs",
    "completion",
    "messages",
    "text",
    "system",
    "history",
    "question",
    "conversations",
    "responses",
    "scores",
    "ranks",
    "score_chosen",
    "score_rejected",
];

/// Pairs that are made from several responses to one prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pairs {
    /// The best response with every worse one.
    #[default]
    BestRest,
    /// Every response with every worse one.
    All,
    /// The best response with the worst one.
    BestWorst,
}

/// Settings of [`super::read_files`].
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, Serialize, Deserialize)]
#[serde(default)]
pub struct ReadOptions {
    /// Input columns for the keys, e.g. chosen=chosen_response,rejected=rejected_response
    #[arg(long, alias = "column_map", value_name = "KEY=COLUMN,...", default_value = "", hide_default_value = true)]
    pub column_map: ColumnMap,
    /// Allow rows of several formats in one input file
    #[arg(long, alias = "mixed_formats")]
    pub mixed_formats: bool,
    /// Convert plain text to a conversation: the prompt becomes the user's turn, or the turns of a dialogue
    /// with Human: and Assistant:, and a response becomes the assistant's turn
    #[arg(long, alias = "apply_chat_template")]
    pub apply_chat_template: bool,
    /// Columns to leave out, such as one that an error names
    #[arg(long, alias = "drop_columns", value_name = "COLUMN,...", value_delimiter = ',')]
    pub drop_columns: Vec<String>,
    /// Pairs to make from rows with several responses to one prompt [default: best-rest]
    #[arg(long, value_enum)]
    pub pairs: Option<Pairs>,
    /// Key of the number that ranks the responses of a list, higher is better [default: a known key]
    #[arg(long, alias = "score_key", value_name = "KEY")]
    pub score_key: Option<String>,
    /// Use the difference of the scores of a pair as its margin
    #[arg(long, alias = "score_margin")]
    pub score_margin: bool,
    /// Maximum number of unreadable rows to leave out, counted by reason [default: 0]
    #[arg(long, alias = "skip_bad_rows", value_name = "ROWS")]
    pub skip_bad_rows: Option<usize>,
    /// Whether rows are read whatever their unused columns hold, because only their texts matter.
    #[arg(skip)]
    #[serde(skip)]
    pub any_columns: bool,
    /// Whether pairs of conversations may also differ before their last message, because a reward model
    /// compares whole conversations. Commands for reward models set this field.
    #[arg(skip)]
    #[serde(skip)]
    pub whole_conversations: bool,
}

/// Map from keys to columns of the input. Text form: `key=column`, comma separated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ColumnMap(Vec<(String, String)>);

impl ColumnMap {
    /// Pairs of key and column, in the order written.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.0
    }
}

impl FromStr for ColumnMap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            let Some((key, column)) = part.split_once('=') else {
                return Err(format!("\"{part}\" is not of the form key=column"));
            };
            let (key, column) = (key.trim(), column.trim());
            if !TARGETS.contains(&key) {
                return Err(format!("\"{key}\" is not a key that a reader uses; known keys: {}", TARGETS.join(", ")));
            }
            if column == key {
                return Err(format!(
                    "\"{key}\" is mapped to the column of that name, which is read anyway; leave it out"
                ));
            }
            if column.is_empty() {
                return Err(format!("no column is given for \"{key}\""));
            }
            if pairs.iter().any(|(known, _)| known == key) {
                return Err(format!("\"{key}\" is mapped twice"));
            }
            pairs.push((key.to_owned(), column.to_owned()));
        }
        Ok(Self(pairs))
    }
}

impl fmt::Display for ColumnMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (key, column)) in self.0.iter().enumerate() {
            write!(f, "{}{key}={column}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl TryFrom<String> for ColumnMap {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ColumnMap> for String {
    fn from(map: ColumnMap) -> String {
        map.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_round_trips_and_defects_are_named() {
        let map: ColumnMap = "chosen=a, rejected=b".parse().unwrap();
        assert_eq!(map.to_string(), "chosen=a,rejected=b");
        assert_eq!("".parse::<ColumnMap>().unwrap(), ColumnMap::default());
        let why = |text: &str| text.parse::<ColumnMap>().unwrap_err();
        assert!(why("chosen").contains("key=column"));
        assert!(why("best=a").contains("\"best\""));
        assert!(why("chosen=").contains("no column"));
        assert!(why("chosen=chosen").contains("read anyway"));
        assert!(why("chosen=a,chosen=b").contains("twice"));
    }
}

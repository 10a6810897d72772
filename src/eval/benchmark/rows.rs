//! Rows of benchmarks: JSON lines, JSON or Parquet in the shapes in which the benchmarks are published.
//!
//! The following are errors, with file and line: a row of a different benchmark or of none, missing keys,
//! lists of a wrong length, empty responses and graphs, and indices out of range.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Benchmark, Item, Shape};
use crate::data::group::{Comparison, Kind, Message, PreferenceGroup, Prompt, Response};
use crate::data::source::{Columns, SourceRow, for_each_row, refuse_pipe_named_twice};
use crate::{Error, Result};

type Row = Map<String, Value>;

/// Returns the benchmark whose rows have the keys of `row`.
fn recognise(row: &Row) -> Option<Benchmark> {
    let has = |keys: &[&str]| keys.iter().all(|key| row.contains_key(*key));
    // In ordinary rows, `chosen` and `rejected` may be lists of messages, so only lists of strings count.
    let texts = |list: &Vec<Value>| !list.is_empty() && list.iter().all(Value::is_string);
    let lists = ["chosen", "rejected"].iter().all(|key| row.get(*key).and_then(Value::as_array).is_some_and(texts));
    match () {
        () if has(&["preference_graph", "responses", "messages"]) => Some(Benchmark::IfRewardBench),
        () if has(&["conversation_input", "category_path"]) => Some(Benchmark::Rmb),
        () if lists && has(&["prompt", "subset", "num_correct"]) => Some(Benchmark::RewardBench2),
        () if lists && has(&["prompt", "domain"]) => Some(Benchmark::RmBench),
        () => None,
    }
}

/// Returns the benchmark of the first row of a regular file; `None` if the row is of no benchmark. Other files,
/// such as pipes, can be read only once, so they are not opened and give `None`.
///
/// # Errors
/// No error is returned at present. A damaged first row gives `None`.
pub fn recognise_file(path: &Path) -> Result<Option<Benchmark>> {
    if !path.is_file() {
        return Ok(None);
    }
    let mut found = None;
    // The error ends the reading after the first row.
    let enough = || Error::Runtime(String::new());
    let read = for_each_row(path, Columns::default(), |_, row| {
        found = Some(row.map(|row| recognise(&row.object)));
        Err(enough())
    });
    match (found, read) {
        (Some(Ok(benchmark)), _) => Ok(benchmark),
        // The reader of ordinary rows reports the defect.
        (Some(Err(_)) | None, _) => Ok(None),
    }
}

/// Reads all rows of a benchmark.
///
/// # Errors
/// [`Error::Data`] at the first row that does not belong to the benchmark.
pub fn read(benchmark: Benchmark, files: &[PathBuf]) -> Result<Vec<Item>> {
    refuse_pipe_named_twice(files)?;
    let mut items = Vec::new();
    for path in files {
        let before = items.len();
        let file: Arc<Path> = Arc::from(path.as_path());
        for_each_row(path, Columns::default(), |line, row| {
            let row = row?.object;
            let fail = |why: String| Error::data(path, line, None, why);
            match recognise(&row) {
                Some(found) if found == benchmark => {}
                Some(other) => {
                    return Err(fail(format!(
                        "is a row of {}, but this evaluation is of {}; evaluate the two benchmarks separately",
                        other.name(),
                        benchmark.name()
                    )));
                }
                None => return Err(fail(format!("is not a row of {}: {}", benchmark.name(), needs(benchmark)))),
            }
            let (group, shape) = item(benchmark, &row, items.len())
                .map_err(|why| fail(format!("{why}; --benchmark none reads the rows as ordinary ones")))?;
            group.validate().map_err(fail)?;
            items.push(Item { row: SourceRow { group, file: file.clone(), line, scores: None }, shape });
            Ok(())
        })?;
        if items.len() == before {
            return Err(Error::data(path, 0, None, "the file has no rows"));
        }
    }
    if benchmark == Benchmark::RewardBench2 {
        check_ties(&items)?;
    }
    Ok(items)
}

/// Says which keys the rows of a benchmark need, for messages.
fn needs(benchmark: Benchmark) -> &'static str {
    match benchmark {
        Benchmark::RmBench => "it needs \"prompt\", \"domain\" and lists of texts \"chosen\" and \"rejected\"",
        Benchmark::Rmb => {
            "it needs \"conversation_input\", \"category_path\", and \"chosen\" with \"reject\" or \"bon_best\" with \
             \"loser_list\""
        }
        Benchmark::RewardBench2 => {
            "it needs \"prompt\", \"subset\", \"num_correct\" and lists of texts \"chosen\" and \"rejected\""
        }
        Benchmark::IfRewardBench => "it needs \"messages\", \"responses\" and \"preference_graph\"",
    }
}

fn item(benchmark: Benchmark, row: &Row, index: usize) -> Result<(PreferenceGroup, Shape), String> {
    match benchmark {
        Benchmark::RmBench => rm_bench(row, index),
        Benchmark::Rmb => rmb(row, index),
        Benchmark::RewardBench2 => reward_bench_2(row, index),
        Benchmark::IfRewardBench => if_reward_bench(row, index),
    }
}

fn text<'a>(row: &'a Row, key: &str) -> Result<&'a str, String> {
    row.get(key).and_then(Value::as_str).ok_or_else(|| format!("\"{key}\" is missing or not a string"))
}

/// Returns the texts of a list. An empty list or text is an error.
fn texts(row: &Row, key: &str) -> Result<Vec<String>, String> {
    let list = row.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let found: Option<Vec<String>> =
        list.iter().map(|value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)).collect();
    match found {
        Some(found) if !found.is_empty() => Ok(found),
        _ => Err(format!("\"{key}\" must be a list of responses, none of them empty")),
    }
}

/// Returns the id of a row: the value of the first key of `keys` that it has, or else its index among the rows.
fn id(row: &Row, keys: &[&str], index: usize) -> String {
    let given = keys.iter().find_map(|key| match row.get(*key)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    });
    given.unwrap_or_else(|| index.to_string())
}

/// Reads a conversation. Only roles and contents are used, as in the scripts of the benchmarks.
fn conversation(row: &Row, key: &str) -> Result<Prompt, String> {
    let wrong = || format!("\"{key}\" must be a list of messages with \"role\" and \"content\"");
    let list = row.get(key).and_then(Value::as_array).filter(|list| !list.is_empty()).ok_or_else(wrong)?;
    let message = |value: &Value| Some(Message::new(value.get("role")?.as_str()?, value.get("content")?.as_str()?));
    let turns: Vec<Message> = list.iter().map(message).collect::<Option<_>>().ok_or_else(wrong)?;
    match turns.last() {
        Some(turn) if turn.role == "assistant" => {
            Err(format!("\"{key}\" ends with an assistant message, so there is nothing to answer"))
        }
        _ => Ok(Prompt::Messages(turns)),
    }
}

/// A group with one prompt; every edge is a comparison.
fn group(id: String, prompt: Prompt, responses: Vec<String>, edges: &[(usize, usize)]) -> PreferenceGroup {
    let pair = |&(better, worse): &(usize, usize)| Comparison::pair(Kind::Base, (0, better), (0, worse), 0.0);
    let answer = |text| Response::Message(Message::new("assistant", text));
    PreferenceGroup::new(
        id,
        vec![prompt],
        responses.into_iter().map(answer).collect(),
        edges.iter().map(pair).collect(),
    )
}

/// All edges from the first `better` of `all` responses to the others.
fn bipartite(better: usize, all: usize) -> Vec<(usize, usize)> {
    (0..better).flat_map(|b| (better..all).map(move |w| (b, w))).collect()
}

fn user(text: &str) -> Prompt {
    Prompt::Messages(vec![Message::new("user", text)])
}

fn rm_bench(row: &Row, index: usize) -> Result<(PreferenceGroup, Shape), String> {
    let (chosen, rejected) = (texts(row, "chosen")?, texts(row, "rejected")?);
    if (chosen.len(), rejected.len()) != (3, 3) {
        return Err(format!(
            "RM-Bench has three styles on each side; \"chosen\" has {} and \"rejected\" {} responses",
            chosen.len(),
            rejected.len()
        ));
    }
    let shape = Shape::Styles { domain: text(row, "domain")?.to_owned() };
    let prompt = user(text(row, "prompt")?);
    Ok((group(id(row, &["id"], index), prompt, [chosen, rejected].concat(), &bipartite(3, 6)), shape))
}

fn rmb(row: &Row, index: usize) -> Result<(PreferenceGroup, Shape), String> {
    let path: Vec<&str> = text(row, "category_path")?.split('/').collect();
    let [_, goal, category, ..] = path[..] else {
        return Err("\"category_path\" must name a set, a goal and a category, such as \
                    \"BoN_set/Helpfulness/Chat/Discussion\""
            .into());
    };
    let answer = |value: Option<&Value>, what: &str| {
        let text = value.and_then(|value| value.get("answer")).and_then(Value::as_str).filter(|text| !text.is_empty());
        text.map(str::to_owned).ok_or_else(|| format!("\"{what}\" needs an \"answer\" that is not empty"))
    };
    let pair = !row.contains_key("bon_best");
    let responses = if pair {
        vec![answer(row.get("chosen"), "chosen")?, answer(row.get("reject"), "reject")?]
    } else {
        let losers = row.get("loser_list").and_then(Value::as_array).filter(|list| !list.is_empty());
        let losers = losers.ok_or("\"loser_list\" must be a list of responses")?;
        let best = answer(row.get("bon_best"), "bon_best");
        std::iter::once(best)
            .chain(losers.iter().map(|loser| answer(Some(loser), "loser_list")))
            .collect::<Result<Vec<String>, String>>()?
    };
    let shape = Shape::Best { pair, goal: goal.to_owned(), category: category.to_owned() };
    let edges = bipartite(1, responses.len());
    let prompt = conversation(row, "conversation_input")?;
    Ok((group(id(row, &["pair_uid", "bon_uid"], index), prompt, responses, &edges), shape))
}

fn reward_bench_2(row: &Row, index: usize) -> Result<(PreferenceGroup, Shape), String> {
    let (chosen, rejected) = (texts(row, "chosen")?, texts(row, "rejected")?);
    let (subset, id) = (text(row, "subset")?, id(row, &["id"], index));
    let correct = chosen.len();
    if row.get("num_correct").and_then(Value::as_u64) != Some(correct as u64) {
        return Err(format!("\"num_correct\" is not the number of responses in \"chosen\", {correct}"));
    }
    let shape = if subset.eq_ignore_ascii_case("ties") {
        let named = id.split_once(':').and_then(|(kind, prompt)| Some((kind, prompt.parse::<i64>().ok()?)));
        match named {
            Some(("ref", prompt)) => Shape::Ties { tied: false, prompt, correct },
            Some(("tied", prompt)) => Shape::Ties { tied: true, prompt, correct },
            _ => return Err(format!("the id of a row of ties is ref:N or tied:N, not {id:?}")),
        }
    } else if correct == 1 {
        Shape::Chosen { subset: subset.to_owned() }
    } else {
        return Err(format!("\"chosen\" has {correct} responses; only the subset Ties has several"));
    };
    let responses = [chosen, rejected].concat();
    let edges = bipartite(correct, responses.len());
    Ok((group(id, user(text(row, "prompt")?), responses, &edges), shape))
}

/// Returns an error unless every prompt occurs exactly once as a tied and once as a reference prompt.
fn check_ties(items: &[Item]) -> Result<()> {
    let mut known: HashMap<(bool, i64), &Item> = HashMap::new();
    for item in items {
        let Shape::Ties { tied, prompt, .. } = item.shape else { continue };
        if let Some(first) = known.insert((tied, prompt), item) {
            let place = format!("{}:{}", first.row.file.display(), first.row.line);
            return Err(item.row.error(format!("the id is the same as at {place}")));
        }
    }
    let lonely = |((tied, prompt), _): &(&(bool, i64), &&Item)| !known.contains_key(&(!tied, *prompt));
    match known.iter().filter(lonely).map(|(_, item)| item).min_by_key(|item| item.row.line) {
        None => Ok(()),
        Some(item) => Err(item.row.error(
            "the figures of ties compare ref:N with tied:N, and one of the two is missing; give the whole subset",
        )),
    }
}

fn if_reward_bench(row: &Row, index: usize) -> Result<(PreferenceGroup, Shape), String> {
    let list = |key: &str| row.get(key).and_then(Value::as_array).ok_or_else(|| format!("\"{key}\" is not a list"));
    let response = |(i, value): (usize, &Value)| {
        let text = value.as_str().or_else(|| value.get("response")?.as_str()).filter(|text| !text.is_empty());
        text.map(str::to_owned).ok_or_else(|| format!("\"responses\"[{i}] has no \"response\", or an empty one"))
    };
    let responses = list("responses")?.iter().enumerate().map(response).collect::<Result<Vec<String>, String>>()?;
    let edge = |(i, value): (usize, &Value)| {
        let side = |name: &str| {
            let id = value.get(name).and_then(|side| side.get("response_id")).and_then(Value::as_u64);
            id.map(|id| id as usize).filter(|&id| id < responses.len()).ok_or_else(|| {
                format!(
                    "\"preference_graph\"[{i}]: \"{name}\" needs a \"response_id\" below {}, the number of responses",
                    responses.len()
                )
            })
        };
        match (side("chosen")?, side("rejected")?) {
            (a, b) if a == b => Err(format!("\"preference_graph\"[{i}] compares a response with itself")),
            edge => Ok(edge),
        }
    };
    let edges = list("preference_graph")?.iter().enumerate().map(edge).collect::<Result<Vec<_>, String>>()?;
    if edges.is_empty() {
        return Err("\"preference_graph\" has no edges, so there is nothing to measure".into());
    }
    let prompt = conversation(row, "messages")?;
    let Prompt::Messages(turns) = &prompt else { return Err("\"messages\" is not a conversation".into()) };
    let spoken = turns.len() - usize::from(turns[0].role == "system");
    let shape = Shape::Graph {
        kind: text(row, "instruction_type")?.to_owned(),
        generator: row.get("response_generation_model").and_then(Value::as_str).map(str::to_owned),
        turn: spoken.div_ceil(2).min(5),
        constraints: list("checklist")?.len(),
        edges: edges.clone(),
    };
    Ok((group(id(row, &["id"], index), prompt, responses, &edges), shape))
}

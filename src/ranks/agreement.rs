//! Compares the versions, data, models and flags of all ranks before they run a model. One error reports the
//! differences: `--seed: 1 on ranks 0 and 2; 3 on rank 1`.

use super::collective::Collective;
use crate::terminal::shown;
use crate::{Error, Result};

/// Maximum number of differences in a message.
const MOST: usize = 5;

/// Returns an error if the `facts`, which are pairs of a name and a value, differ between ranks.
pub(crate) fn compare(collective: &dyn Collective, facts: &[(String, String)]) -> Result<()> {
    if collective.size() == 1 {
        return Ok(());
    }
    let encoded = serde_json::to_vec(facts).map_err(|e| Error::Runtime(format!("cannot compare ranks: {e}")))?;
    let of_ranks: Vec<Vec<(String, String)>> = collective
        .all_gather(&encoded)?
        .iter()
        .map(|bytes| serde_json::from_slice(bytes))
        .collect::<Result<_, _>>()
        .map_err(|e| Error::Runtime(format!("cannot compare ranks: {e}")))?;
    let differences = differences(&of_ranks);
    if differences.is_empty() {
        return Ok(());
    }
    let more = match differences.len().checked_sub(MOST) {
        None | Some(0) => String::new(),
        Some(n) => format!("; and in {n} more"),
    };
    let list = differences[..differences.len().min(MOST)].join("; and in ");
    Err(Error::Usage(format!(
        "the ranks differ in {list}{more}; start every rank with the same program, data, models and flags"
    )))
}

/// Returns one text for every name whose value differs between ranks.
fn differences(of_ranks: &[Vec<(String, String)>]) -> Vec<String> {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in of_ranks.iter().flatten() {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let mut found = Vec::new();
    for name in names {
        let mut values: Vec<(Option<&str>, Vec<usize>)> = Vec::new();
        for (rank, facts) in of_ranks.iter().enumerate() {
            let value = facts.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
            match values.iter_mut().find(|(known, _)| *known == value) {
                Some((_, ranks)) => ranks.push(rank),
                None => values.push((value, vec![rank])),
            }
        }
        if values.len() > 1 {
            let each = values
                .iter()
                .map(|(value, ranks)| format!("{} on {}", value.map_or("nothing".to_owned(), shown), named(ranks)));
            found.push(format!("{name}: {}", each.collect::<Vec<_>>().join("; ")));
        }
    }
    found
}

/// `rank 3`, or `ranks 0, 2 and 5`.
pub(super) fn named(ranks: &[usize]) -> String {
    let texts: Vec<String> = ranks.iter().map(usize::to_string).collect();
    match texts.as_slice() {
        [one] => format!("rank {one}"),
        [first @ .., last] => format!("ranks {} and {last}", first.join(", ")),
        [] => "no rank".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::collective::Alone;
    use crate::ranks::rehearsal::Rehearsal;

    fn facts(of: &[(&str, &str)]) -> Vec<(String, String)> {
        of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn ranks_that_differ_are_named_with_their_values() {
        compare(&Alone, &facts(&[("version", "1")])).unwrap();
        let same = Rehearsal::run(3, |rank| compare(rank, &facts(&[("version", "1"), ("data", "a")])).is_ok());
        assert_eq!(same, [true; 3]);
        let errors = Rehearsal::run(3, |rank| {
            let data = if rank.rank() == 1 { "b" } else { "a" };
            let mut facts = facts(&[("version", "1"), ("data", data)]);
            if rank.rank() == 2 {
                facts.push(("adapter".into(), "r 4".into()));
            }
            compare(rank, &facts).unwrap_err()
        });
        for e in errors {
            assert_eq!(e.exit_code(), 2);
            let text = e.to_string();
            let differ = "the ranks differ in data: a on ranks 0 and 2; b on rank 1; and in adapter: nothing on ranks 0 and \
                          1; r 4 on rank 2; start";
            assert!(text.contains(differ), "{text}");
            assert!(!text.contains("version"), "{text}");
        }
    }

    #[test]
    fn a_long_list_is_cut_with_a_count() {
        let errors = Rehearsal::run(2, |rank| {
            let value = rank.rank().to_string();
            let all: Vec<(String, String)> = (0..7).map(|i| (format!("flag {i}"), value.clone())).collect();
            compare(rank, &all).unwrap_err().to_string()
        });
        assert!(errors[0].contains("flag 4: 0 on") && errors[0].contains("; and in 2 more;"), "{}", errors[0]);
    }
}

//! Names of data files on a command line: files, folders of shards, patterns and `-`.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::files::hub::hub_data;
use crate::files::{entries, is_dash};
use crate::terminal::complain;
use crate::{Error, Result};

/// Extensions of data files, without the extension of a compression.
const ENDS: [&str; 6] = [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"];
const PACKED: [&str; 4] = [".gz", ".zst", ".bz2", ".xz"];
/// JSON files that describe a data set and hold no rows.
const NOTES: [&str; 4] = ["dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"];
/// Files of a model folder.
const MODEL: [&str; 3] = ["config.json", "tokenizer.json", "model.safetensors"];
/// Names of splits.
const SPLITS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("test", &["test", "testing"]),
    ("validation", &["validation", "valid", "val", "eval", "dev"]),
];

/// Replaces folders by the data files in them, and patterns (`*`, `?`, `[...]`) by the files that
/// they match, both sorted by name.
///
/// # Errors
/// [`Error::Data`] for a folder without data files or with those of several splits, for a pattern that
/// matches nothing, and for two files whose names differ only in the extension; [`Error::Usage`] for a file
/// that would be read twice although it is not named twice.
pub fn expand(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let (mut files, mut named) = (Vec::with_capacity(paths.len()), Vec::with_capacity(paths.len()));
    for path in paths {
        let text = path.to_string_lossy();
        if path.is_dir() {
            files.extend(shards(path)?);
        } else if !is_dash(path) && !path.exists() && text.contains(['*', '?', '[']) && hub_data(path).is_none() {
            files.extend(matches(path, &text)?);
        } else {
            files.push(path.clone());
            named.push(files.len() - 1);
        }
    }
    refuse_twice(&files, &named)?;
    Ok(files)
}

/// Rejects a file that would be read twice because a folder or a pattern contains it too, and warns of a file
/// that is named twice. `named` holds the indices of the files that are named explicitly.
fn refuse_twice(files: &[PathBuf], named: &[usize]) -> Result<()> {
    let mut known: HashMap<(u64, u64), usize> = HashMap::new();
    for (place, path) in files.iter().enumerate() {
        let Some(found) = std::fs::metadata(path).ok().filter(|found| found.is_file()) else { continue };
        let Some(first) = known.insert((found.dev(), found.ino()), place) else { continue };
        let other = &files[first];
        let places = if other == path { String::new() } else { format!(", as {} too", other.display()) };
        if !(named.contains(&place) && named.contains(&first)) {
            return Err(Error::Usage(format!(
                "{}: this file would be read twice{places}; name it once, or leave it out of the folder or pattern",
                path.display()
            )));
        }
        complain(&format!("warning: {} is named twice{places}, so its rows are read twice", path.display()));
    }
    if let Err(why) = one_of_each(files) {
        complain(&format!("warning: the command {why}"));
    }
    Ok(())
}

fn matches(path: &Path, pattern: &str) -> Result<Vec<PathBuf>> {
    let fail = |why: String| Error::data(path, 0, None, why);
    let found = glob::glob(pattern).map_err(|e| fail(format!("is not a pattern of file names: {e}")))?;
    let mut found = found.collect::<Result<Vec<_>, _>>().map_err(|e| fail(format!("cannot be listed: {e}")))?;
    found.retain(|path| !path.is_dir());
    found.sort_unstable();
    if found.is_empty() {
        return Err(fail("matches no file".into()));
    }
    one_of_each(&found).map_err(fail)?;
    Ok(found)
}

/// Rejects two files whose names differ only in the extension, such as `a.jsonl` and `a.jsonl.gz`, because
/// their rows would be read twice.
fn one_of_each(files: &[PathBuf]) -> Result<(), String> {
    let mut known: BTreeMap<PathBuf, &PathBuf> = BTreeMap::new();
    for path in files {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let ends = |name: &str, list: &[&str]| {
            list.iter().find(|end| name.to_lowercase().ends_with(**end)).map_or(0, |end| end.len())
        };
        let plain = &name[..name.len() - ends(&name, &PACKED)];
        let (stem, end) = plain.split_at(plain.len() - ends(plain, &ENDS));
        if end.is_empty() {
            continue;
        }
        if let Some(other) = known.insert(path.with_file_name(stem), path) {
            let other = other.file_name().unwrap_or_default().to_string_lossy();
            return Err(format!("has {other} and {name}, which are read twice if they hold the same rows; name one"));
        }
    }
    Ok(())
}

/// Data files of a folder.
fn shards(folder: &Path) -> Result<Vec<PathBuf>> {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let all = entries(folder)?;
    let is_data = |path: &&PathBuf| {
        let name = name(path);
        let plain = PACKED.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
        !path.is_dir() && ENDS.iter().any(|end| plain.ends_with(end)) && !NOTES.contains(&&*name)
    };
    let mut files: Vec<PathBuf> = all.iter().filter(is_data).cloned().collect();
    files.sort_unstable();
    let fail = |why: String| Err(Error::data(folder, 0, None, why));
    if all.iter().any(|path| MODEL.contains(&&*name(path))) {
        return fail("is a folder with a model, not with data".into());
    }
    if files.is_empty() {
        let arrow = all.iter().any(|path| name(path).ends_with(".arrow"));
        let below: Vec<String> = all.iter().filter(|path| path.is_dir()).map(|path| name(path)).collect();
        return fail(match (arrow, &below[..]) {
            (true, _) => {
                "holds Arrow files, which are not read; write Parquet with Dataset.to_parquet of `datasets`".into()
            }
            (false, []) => format!("is a folder without data files ({})", ENDS.join(", ")),
            (false, _) => {
                format!("is a folder without data files; name the files, or a folder in it ({})", below.join(", "))
            }
        });
    }
    if let Err(why) = one_of_each(&files) {
        return fail(why);
    }
    let mut splits: BTreeMap<&str, String> = BTreeMap::new();
    for path in &files {
        let name = name(path);
        let word = name
            .split(|c: char| !c.is_ascii_alphanumeric())
            .find_map(|word| SPLITS.iter().find(|(_, words)| words.contains(&word)).map(|(split, _)| *split));
        if let Some(split) = word {
            splits.entry(split).or_insert(name);
        }
    }
    if splits.len() > 1 {
        let found: Vec<String> = splits.into_values().collect();
        return fail(format!(
            "holds several splits ({}), which would be mixed; name the files of one, such as '{}/train*'",
            found.join(", "),
            folder.display()
        ));
    }
    Ok(files)
}

//! Paths that name repositories of the Hugging Face Hub, and how to download them.

use std::path::Path;

/// Name of a path that does not exist and reads like a repository of the Hugging Face Hub,
/// `ORGANISATION/NAME`.
fn hub_name(path: &Path) -> Option<&str> {
    let name = path.to_str()?;
    let (organisation, repository) = name.split_once('/')?;
    let plain = |part: &str| {
        let mut chars = part.chars();
        chars.next().is_some_and(|c| c.is_ascii_alphanumeric())
            && chars.all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    (plain(organisation) && plain(repository) && !Path::new(organisation).exists()).then_some(name)
}

/// Why a path that reads like a data set of the Hugging Face Hub, by its name or as `hf://`, is not a
/// file, and how to download it.
pub(crate) fn hub_data(path: &Path) -> Option<String> {
    let place = path.to_str().and_then(|text| text.strip_prefix("hf://"));
    let name = match place {
        Some(place) => {
            place.strip_prefix("datasets/").unwrap_or(place).splitn(3, '/').take(2).collect::<Vec<_>>().join("/")
        }
        None => hub_name(path)?.to_owned(),
    };
    // A revision may follow the name.
    let name = name.split('@').next().unwrap_or(&name);
    let local = name.rsplit('/').next().unwrap_or(name);
    Some(format!(
        "is not a file here; a data set of the Hugging Face Hub is downloaded first: `hf download {name} --repo-type dataset \
         --local-dir {local}`, then name its files, such as '{local}/data/train*'"
    ))
}

/// Why a path that reads like a model of the Hugging Face Hub is not a model folder, and how to
/// download the model.
pub(crate) fn hub_model(path: &Path) -> Option<String> {
    let name = hub_name(path)?;
    let local = name.rsplit('/').next().unwrap_or(name);
    Some(format!(
        "is not a folder here; a model of the Hugging Face Hub is downloaded first: `hf download {name} --local-dir {local}`, \
         then name the folder {local}; `mapl init` makes a small model"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_sets_of_the_hub_are_downloaded_by_name() {
        for path in ["org/set-1.5", "hf://datasets/org/set-1.5/data/train.parquet", "hf://datasets/org/set-1.5@main/x"]
        {
            let why = hub_data(Path::new(path)).unwrap();
            assert!(why.contains("`hf download org/set-1.5 --repo-type dataset --local-dir set-1.5`"), "{path}: {why}");
        }
        for path in ["rows.jsonl", "./org/set", "src/set", "a/b/c", "a/b c"] {
            assert_eq!(hub_data(Path::new(path)), None, "{path}");
        }
    }
}

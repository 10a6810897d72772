//! Names of repositories of the Hugging Face Hub: how to download them, and where the Hub's tools have put
//! them on this machine.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Returns a path as the name of a repository of the Hugging Face Hub, if it reads like `ORGANISATION/NAME` and
/// no file or folder `ORGANISATION` exists.
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

/// Returns an error text for a path that reads like a data set of the Hugging Face Hub, by its name or as
/// `hf://`. The text says how to download the data set.
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
        "is not a local file; to use a data set of the Hugging Face Hub, download it first with `hf download {name} \
         --repo-type dataset --local-dir {local}`, then pass its files, such as '{local}/data/train*'"
    ))
}

/// Command that downloads a model of the Hub, and the folder that the command creates.
pub(crate) fn download_command(name: &str) -> (String, &str) {
    let local = name.rsplit('/').next().unwrap_or(name);
    (format!("hf download {name} --local-dir {local}"), local)
}

/// True if a text reads like `ORGANISATION/NAME` of the Hub and no file or folder `ORGANISATION` exists.
pub(crate) fn is_hub_name(text: &str) -> bool {
    hub_name(Path::new(text)).is_some()
}

/// Returns an error text for a path that reads like a model of the Hugging Face Hub. The text says how to
/// download the model.
pub(crate) fn hub_model(path: &Path) -> Option<String> {
    let name = hub_name(path)?;
    let local = name.rsplit('/').next().unwrap_or(name);
    Some(format!(
        "is not a local folder; to use a model of the Hugging Face Hub, download it first with `hf download {name} \
         --local-dir {local}`, then pass the folder {local}; `mapl init` makes a small model"
    ))
}

/// Folder of a model in the local cache of the Hub's tools; `None` if the cache has no such folder with the
/// file `needed`. `name` is `ORGANISATION/NAME`, or `NAME` for a few old models; the revision is a branch, a
/// tag or a commit, by default `main`.
pub(crate) fn cached_model(name: &str, revision: Option<&str>, needed: &str) -> Option<PathBuf> {
    cached_below(&cache_folder(|name| std::env::var_os(name))?, name, revision, needed)
}

/// Folder of the Hub's cache by environment variables, as huggingface_hub finds it.
fn cache_folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || path("HF_HOME").or_else(|| path("XDG_CACHE_HOME").map(|dir| dir.join("huggingface")));
    let own = || path("HOME").map(|home| home.join(".cache/huggingface"));
    path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).or_else(|| Some(home().or_else(own)?.join("hub")))
}

fn cached_below(cache: &Path, name: &str, revision: Option<&str>, needed: &str) -> Option<PathBuf> {
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0']);
    if name.split('/').count() > 2 || !name.split('/').all(plain) {
        return None;
    }
    let repository = cache.join(format!("models--{}", name.replace('/', "--")));
    let revision = revision.unwrap_or("main");
    if !revision.split('/').all(plain) {
        return None;
    }
    let commit = std::fs::read_to_string(repository.join("refs").join(revision)).ok();
    let commit = commit.as_deref().map(str::trim).filter(|commit| plain(commit) && !commit.contains('/'));
    let folder = repository.join("snapshots").join(commit.unwrap_or(revision));
    folder.join(needed).is_file().then_some(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_downloaded_model_is_found_where_the_tools_of_the_hub_put_it() {
        let variables = |set: &[(&str, &str)]| {
            cache_folder(|name| set.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value)))
        };
        let (home, xdg) = (("HOME", "/home/a"), ("XDG_CACHE_HOME", "/xdg"));
        let (hf, hub) = (("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/hub"));
        for (set, expected) in [
            (&[home][..], "/home/a/.cache/huggingface/hub"),
            (&[home, xdg], "/xdg/huggingface/hub"),
            (&[home, xdg, hf], "/hf/hub"),
            (&[home, xdg, hf, ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (&[home, xdg, hf, hub], "/hub"),
            (&[home, ("HF_HOME", "")], "/home/a/.cache/huggingface/hub"),
        ] {
            assert_eq!(variables(set), Some(PathBuf::from(expected)));
        }
        assert_eq!(variables(&[]), None);

        let cache = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = cache.path().join("models--org--a").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("refs/main", "c1\n");
        write("refs/v2", "c2");
        write("snapshots/c1/config.json", "{}");
        write("snapshots/c2/other", "{}");
        let found = |name: &str, revision, needed: &str| {
            let folder = cached_below(cache.path(), name, revision, needed)?;
            Some(folder.file_name()?.to_str()?.to_owned())
        };
        assert_eq!(found("org/a", None, "config.json").as_deref(), Some("c1"));
        assert_eq!(found("org/a", Some("c1"), "config.json").as_deref(), Some("c1"));
        assert_eq!(found("org/a", Some("v2"), "other").as_deref(), Some("c2"));
        assert_eq!(found("org/a", Some("v2"), "config.json"), None, "an incomplete download");
        for name in ["org/b", "org--a/..", "../models--org--a", "org/a/b"] {
            assert_eq!(found(name, None, "config.json"), None, "{name}");
        }
    }

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

//! Determines the shell command that calls this program again from the current folder in the same way: `mapl`
//! from PATH, `cargo run`, or a path. Commands that are printed for a user begin with this command.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::args::quoted;

/// Facts about this process from which the shell command is derived.
#[derive(Debug, Default)]
struct Call {
    /// Name by which the program was called (`argv[0]`).
    name: OsString,
    /// Path of the running executable.
    file: Option<PathBuf>,
    /// Current folder.
    folder: Option<PathBuf>,
    /// Value of the environment variable `PATH`.
    path: Option<OsString>,
    /// Values of the environment variables `CARGO` and `CARGO_MANIFEST_DIR`, which `cargo run` sets.
    cargo: Option<OsString>,
    manifest_dir: Option<PathBuf>,
}

/// Returns the shell command that calls this program.
pub(super) fn program() -> String {
    let call = Call {
        name: std::env::args_os().next().unwrap_or_default(),
        file: std::env::current_exe().ok(),
        folder: std::env::current_dir().ok(),
        path: std::env::var_os("PATH"),
        cargo: std::env::var_os("CARGO"),
        manifest_dir: std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from),
    };
    call.words()
}

impl Call {
    fn words(&self) -> String {
        self.by_cargo().or_else(|| self.found_on_path()).unwrap_or_else(|| self.by_file())
    }

    /// Returns a `cargo run` command if cargo started the executable from a `release` or `debug` folder.
    fn by_cargo(&self) -> Option<String> {
        self.cargo.as_ref()?;
        let profile = match self.file.as_ref()?.parent()?.file_name()?.to_str()? {
            "release" => " --release",
            "debug" => "",
            _ => return None,
        };
        let package = match (&self.manifest_dir, &self.folder) {
            (Some(package), Some(folder)) if !folder.starts_with(package) => {
                format!(" --manifest-path {}", quoted(package.join("Cargo.toml").as_os_str()))
            }
            _ => String::new(),
        };
        Some(format!("cargo run{profile}{package} --"))
    }

    /// Returns the bare name if a shell that looks it up in `PATH` finds this executable.
    fn found_on_path(&self) -> Option<String> {
        let name = Path::new(&self.name).file_name()?;
        let here = self.file.as_ref()?.canonicalize().ok()?;
        // A shell runs the first file of this name in `PATH`.
        let found = std::env::split_paths(self.path.as_ref()?).map(|dir| dir.join(name)).find(|file| file.is_file())?;
        (found.canonicalize().ok()? == here).then(|| quoted(name))
    }

    /// Returns the path by which the program was called, or the path of the executable.
    fn by_file(&self) -> String {
        let called = Path::new(&self.name);
        match &self.file {
            Some(file) if !(called.components().count() > 1 && called.exists()) => quoted(file.as_os_str()),
            _ if self.name.is_empty() => quoted(OsStr::new("mapl")),
            _ => quoted(&self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_named_as_it_was_called() {
        let dir = tempfile::tempdir().unwrap();
        let release = dir.path().join("my project/target/release");
        std::fs::create_dir_all(&release).unwrap();
        let file = release.join("mapl");
        std::fs::write(&file, "").unwrap();
        let other = dir.path().join("other");
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join("mapl"), "").unwrap();
        let package = dir.path().join("my project");
        let call = |path: Option<&Path>, cargo: bool, folder: &Path| {
            let call = Call {
                name: file.clone().into(),
                file: Some(file.clone()),
                folder: Some(folder.to_path_buf()),
                path: path.map(|dir| dir.as_os_str().to_owned()),
                cargo: cargo.then(|| "/usr/bin/cargo".into()),
                manifest_dir: cargo.then(|| package.clone()),
            };
            call.words()
        };
        let quoted_path = format!("'{}'", file.display());
        assert_eq!(call(None, false, dir.path()), quoted_path);
        assert_eq!(call(Some(&other), false, dir.path()), quoted_path, "another program of this name is found first");
        assert_eq!(call(Some(&release), false, dir.path()), "mapl");
        assert_eq!(call(Some(&release), true, &package), "cargo run --release --");
        let manifest = format!("'{}'", package.join("Cargo.toml").display());
        assert_eq!(call(None, true, dir.path()), format!("cargo run --release --manifest-path {manifest} --"));
    }
}

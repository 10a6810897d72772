//! Copies of a tokenizer's files into a saved model.

use std::path::Path;

use serde_json::json;

use super::super::template::TEMPLATE_FILE;
use super::{ADDITIONAL_TEMPLATES, FILES, Tokenizer};
use crate::files::{json_text, write_atomic};
use crate::{Error, Result};

impl Tokenizer {
    /// Returns an error if the tokenizer has a file that a save must not copy: a link that leads out of the
    /// folder ([`input::check_copied`]).
    pub(crate) fn check_copied(&self) -> Result<()> {
        self.outside.as_ref().map_or(Ok(()), |(file, why)| Err(Error::model(file, why)))
    }

    /// Writes the tokenizer's files into a folder with the bytes that were read, each of them atomically. A
    /// template of [`Tokenizer::set_template_file`] replaces the folder's templates. Tokenizer files of an
    /// earlier save that this tokenizer does not have are removed. Copying a folder onto itself does nothing.
    pub fn copy_to(&self, target: &Path) -> Result<()> {
        let Some(dir) = &self.dir else {
            return Err(Error::Runtime("a new tokenizer has no files to copy; save it first".into()));
        };
        self.check_copied()?;
        std::fs::create_dir_all(target).map_err(Error::io("create", target))?;
        // `canonicalize` fails if the folder has been removed since it was read; the stored bytes are then
        // written.
        if let (Ok(own), Ok(target)) = (dir.canonicalize(), target.canonicalize())
            && own == target
        {
            return Ok(());
        }
        let mut copied = Vec::new();
        for file in &self.files {
            let Ok(name) = file.path.strip_prefix(dir) else { continue };
            if self.template_file.is_some()
                && (name == Path::new(TEMPLATE_FILE) || name.starts_with(ADDITIONAL_TEMPLATES))
            {
                continue;
            }
            let to = target.join(name);
            if let Some(parent) = to.parent() {
                std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
            }
            write_atomic(&to, &self.content_to_copy(file))?;
            copied.push(to);
        }
        let config = target.join("tokenizer_config.json");
        if let Some(pad) = &self.new_pad
            && !copied.contains(&config)
        {
            write_atomic(&config, json_text(&json!({ "pad_token": pad })).as_bytes())?;
            copied.push(config);
        }
        if let Some(template) = &self.template_file {
            let to = target.join(TEMPLATE_FILE);
            write_atomic(&to, &template.bytes)?;
            copied.push(to);
        }
        for stale in FILES.iter().map(|name| target.join(name)).filter(|file| file.is_file() && !copied.contains(file))
        {
            std::fs::remove_file(&stale).map_err(Error::io("remove", &stale))?;
        }
        Ok(())
    }
}

//! A saved tokenizer has the bytes that were loaded, whatever happens to its folder meanwhile.

use std::path::Path;

use mapl::data::tokenizer::Tokenizer;

use crate::tokens::TOKENIZER;

#[test]
fn tokenizer_files_are_copied_byte_for_byte() {
    let from = tempfile::tempdir().unwrap();
    TOKENIZER.copy_to(from.path()).unwrap();
    std::fs::create_dir(from.path().join("additional_chat_templates")).unwrap();
    std::fs::write(from.path().join("additional_chat_templates/rag.jinja"), "x\r\n").unwrap();
    std::fs::write(from.path().join("merges.txt"), "#odd \u{feff}\n").unwrap();
    std::fs::write(from.path().join("model.safetensors"), "not the tokenizer's").unwrap();
    let tokenizer = Tokenizer::load(from.path()).unwrap();
    let to = tempfile::tempdir().unwrap();
    let target = to.path().join("deep/er");
    tokenizer.copy_to(&target).unwrap();
    assert_eq!(tokenizer.files().len(), 6);
    let equal = |target: &Path| {
        for file in tokenizer.files() {
            let name = file.path.strip_prefix(from.path()).unwrap();
            assert_eq!(file.bytes, std::fs::read(target.join(name)).unwrap());
        }
    };
    equal(&target);
    equal(from.path());
    assert!(!target.join("model.safetensors").exists());
    tokenizer.copy_to(from.path()).unwrap();
    // A save writes what was loaded, even if the folder has changed or is gone.
    std::fs::write(from.path().join("chat_template.jinja"), "changed").unwrap();
    std::fs::write(from.path().join("vocab.json"), "{}").unwrap();
    tokenizer.copy_to(&to.path().join("after a change")).unwrap();
    equal(&to.path().join("after a change"));
    assert!(!to.path().join("after a change/vocab.json").exists());
    std::fs::remove_dir_all(from.path()).unwrap();
    tokenizer.copy_to(&to.path().join("after its removal")).unwrap();
    equal(&to.path().join("after its removal"));
}

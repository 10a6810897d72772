//! Defaults for keys that a config.json lacks, and older names of keys, compared with the values of
//! transformers.

use common::golden;
use mapl::model::config::StoredDtype;
use mapl::model::family::FAMILIES;
use mapl::model::rope::RopeScaling;
use serde_json::json;

use crate::model_family::{accepted, refused};

/// The special ids that transformers assumes for a config.json without them (`tests/golden/class_ids.py`).
#[test]
fn ids_that_a_file_lacks_are_those_of_the_class() {
    let text = std::fs::read_to_string(golden::path("class_ids.json")).unwrap();
    let table: std::collections::BTreeMap<String, [Option<u32>; 3]> = serde_json::from_str(&text).unwrap();
    assert_eq!(table.len(), FAMILIES.len());
    let absent = json!({"pad_token_id": "<absent>", "bos_token_id": "<absent>", "eos_token_id": "<absent>"});
    for (family, expected) in table {
        let mut changes = absent.clone();
        changes["vocab_size"] = json!(200_000);
        let config = accepted(&family, changes);
        assert_eq!([config.pad, config.bos, config.eos.first().copied()], expected, "{family}");
        // The saved file leaves these ids to the class too, because training would use an explicit one as an
        // EOS token.
        let saved = config.to_json(StoredDtype::F32);
        for (key, id) in ["pad_token_id", "bos_token_id", "eos_token_id"].into_iter().zip(expected) {
            assert_eq!(saved.contains_key(key), id.is_none(), "{family} {key}: {saved:?}");
        }
        // null means no id, and an id beyond the vocabulary is left out.
        let null = accepted(&family, json!({"pad_token_id": null, "bos_token_id": null, "eos_token_id": null}));
        assert_eq!((null.pad, null.bos, null.eos.len()), (None, None, 0), "{family}");
        let small = accepted(&family, absent.clone());
        assert!(small.pad.is_none_or(|id| id < 160) && small.eos.iter().all(|&id| id < 160), "{family}");
    }
}

#[test]
fn an_old_name_of_the_scaling_is_refused_where_transformers_ignores_it() {
    let scaling = |key: &str| json!({"rope_parameters": "<absent>", "rope_scaling": {key: "linear", "factor": 2.0}});
    refused("olmo3", scaling("type"), &["rope_scaling", "\"rope_type\"", "nothing is scaled"]);
    let read = accepted("olmo3", scaling("rope_type"));
    assert_eq!(read.rope.scaling, RopeScaling::Linear { factor: 2.0 });
    assert_eq!(accepted("olmo2", scaling("type")).rope.scaling, RopeScaling::Linear { factor: 2.0 });
    accepted("olmo3", json!({"rope_scaling": {"type": "default"}}));
}

#[test]
fn dropout_of_a_configuration_is_named() {
    let config = accepted("llama", json!({"attention_dropout": 0.1, "resid_pdrop": 0.0, "classifier_dropout": null}));
    assert_eq!(config.dropout(), [("attention_dropout", 0.1)]);
    assert!(accepted("llama", json!({"attention_dropout": 0})).dropout().is_empty());
}

//! Writes `config.json` and `generation_config.json`. The keys that were read keep their order, and this
//! program's values replace theirs. Keys that transformers 4 and 5 spell differently are written in both styles.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::config::{Head, ModelConfig, StoredDtype};
use super::family::{Bias, Family};
use super::traits::gelu;
use crate::files::{json_text, write_atomic};
use crate::{Error, Result};

/// Name of a key in the files of a family.
fn name(family: &Family, key: &'static str) -> &'static str {
    family.keys.iter().find(|(generic, ..)| *generic == key).map_or(key, |(_, own, _)| own)
}

impl ModelConfig {
    /// Returns the contents of `config.json` for weights stored as `dtype`. Unknown keys keep their positions.
    pub fn to_json(&self, dtype: StoredDtype) -> Map<String, Value> {
        let mut map = self.original.clone();
        let mut set = |key: &str, value: Value| {
            map.insert(key.into(), value);
        };
        set("architectures", json!([self.architecture()]));
        set("model_type", json!(self.family.model_type));
        set("vocab_size", json!(self.vocab));
        set("hidden_size", json!(self.hidden));
        set("intermediate_size", json!(self.intermediate));
        set("num_hidden_layers", json!(self.layers));
        set("num_attention_heads", json!(self.heads));
        if self.family.grouped {
            set("num_key_value_heads", json!(self.kv_heads));
        }
        if self.family.wide_heads {
            set("head_dim", json!(self.head_dim));
        }
        // Other names of SiLU are replaced; the names of GELU are kept, because they stand for different
        // functions.
        let only_silu = gelu(self.family.activation).is_none();
        if only_silu || !self.original.contains_key(name(self.family, "hidden_act")) {
            set("hidden_act", json!(self.family.activation));
        }
        set("max_position_embeddings", json!(self.declared_positions));
        set("rms_norm_eps", json!(self.rms_norm_eps));
        set("initializer_range", json!(self.initializer_range));
        set("tie_word_embeddings", json!(self.tied));
        for (key, value) in self.special_ids() {
            set(key, value);
        }
        set("torch_dtype", json!(dtype.name()));
        set("dtype", json!(dtype.name()));
        if self.head == Head::Reward {
            set("id2label", json!({"0": "LABEL_0"}));
            set("label2id", json!({"LABEL_0": 0}));
        }
        if !self.original.contains_key("use_cache") {
            set("use_cache", json!(true));
        }
        let biases = [
            (self.family.qkv_bias, self.qkv_bias),
            (self.family.output_bias, self.output_bias),
            (self.family.mlp_bias, self.mlp_bias),
        ];
        for (bias, value) in biases {
            if let Bias::Key(key, default) = bias
                && value != default
            {
                map.insert(key.into(), json!(value));
            }
        }
        if !self.family.learned_positions {
            self.rope.write(self.family.rope, self.partial_rotary_factor, &mut map);
            self.write_layer_types(&mut map);
        }
        // Replaces Llama's key names by those of the family. A key that was read keeps its position.
        for (generic, own, _) in self.family.keys {
            if let Some(value) = map.shift_remove(*generic) {
                map.insert((*own).into(), value);
            }
        }
        map
    }

    /// Special token ids with their keys. If the file that was read lacks a key, an id that equals the class
    /// default is left out: training would use it as an EOS token.
    fn special_ids(&self) -> Vec<(&'static str, Value)> {
        let of_class = self.family.ids;
        let all = [
            ("bos_token_id", json!(self.bos), json!(of_class.bos)),
            ("eos_token_id", self.eos_json(), json!(of_class.eos)),
            ("pad_token_id", json!(self.pad), json!(of_class.pad)),
        ];
        let is_brought = |key: &str| !self.original.is_empty() && !self.original.contains_key(key);
        let kept = all.into_iter().filter(|(key, value, class)| value.is_null() || !is_brought(key) || value != class);
        kept.map(|(key, value, _)| (key, value)).collect()
    }

    /// Returns `eos_token_id` for config.json: the value as read if generation_config.json names
    /// the further ids, otherwise null, one id or a list. A reward model has no
    /// generation_config.json, so its config.json names all ids.
    fn eos_json(&self) -> Value {
        if self.head == Head::LanguageModel
            && let Some(generation) = &self.generation
            && generation.contains_key("eos_token_id")
            && let Some(value) = self.original.get("eos_token_id")
        {
            return value.clone();
        }
        match self.eos.as_slice() {
            [] => Value::Null,
            [id] => json!(id),
            ids => json!(ids),
        }
    }

    /// Returns the contents of `generation_config.json`: as read, or the special ids; `None` for a
    /// reward model, which generates nothing.
    pub fn generation_json(&self) -> Option<Map<String, Value>> {
        if self.head == Head::Reward {
            return None;
        }
        if let Some(map) = &self.generation {
            return Some(map.clone());
        }
        let mut map = Map::new();
        map.insert("_from_model_config".into(), json!(true));
        for (key, value) in self.special_ids().into_iter().filter(|(_, value)| !value.is_null()) {
            map.insert(key.into(), value);
        }
        Some(map)
    }

    /// Writes `config.json` and, for a language model, `generation_config.json` into `folder`. For a reward
    /// model, removes a `generation_config.json` left by a language model: its EOS token ids would be read as the
    /// reward model's.
    pub fn write(&self, folder: &Path, dtype: StoredDtype) -> Result<()> {
        write_atomic(&folder.join("config.json"), json_text(&Value::Object(self.to_json(dtype))).as_bytes())?;
        let generation = folder.join("generation_config.json");
        match self.generation_json() {
            Some(map) => write_atomic(&generation, json_text(&Value::Object(map)).as_bytes()),
            None if generation.is_file() => std::fs::remove_file(&generation).map_err(Error::io("remove", &generation)),
            None => Ok(()),
        }
    }
}

//! Rows of a Parquet file, with uncompressed, snappy or gzip pages. Rows are numbered from 1 instead of
//! lines.

use std::fs::File;
use std::panic;
use std::path::Path;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::reader::RowIter;
use serde_json::Value;

use super::rows::{RowObject, RowResult, grown};
use crate::data::worker::guard::{Stage, guarded};
use crate::memory::Growth;
use crate::{Error, Result};

/// Calls `f` for every row.
pub(super) fn parquet_rows(path: &Path, file: File, f: &mut dyn FnMut(usize, RowResult) -> Result<()>) -> Result<()> {
    let failed = |row: usize, why: String| Error::data(path, row, None, format!("cannot be read as Parquet: {why}"));
    let reader = call(|| SerializedFileReader::new(file)).map_err(|why| failed(0, why))?;
    let mut rows: RowIter<'_> = call(|| reader.get_row_iter(None)).map_err(|why| failed(0, why))?;
    let growth = Growth::default();
    for number in 1.. {
        let next = call(|| rows.next().transpose()).map_err(|why| failed(number, why))?;
        let Some(row) = next else { break };
        let Value::Object(object) = row.to_json_value() else { continue };
        let bytes = object.values().map(text_bytes).sum::<usize>();
        f(number, Ok(RowObject { object, non_finite: Vec::new() }))?;
        growth.add(bytes as u64, || grown(path, number))?;
    }
    Ok(())
}

/// Calls the library, which may panic on a damaged file.
fn call<T>(call: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let outcome = guarded(Stage::Other, call);
    panic::set_hook(hook);
    match outcome? {
        Ok(value) => Ok(value),
        Err(ParquetError::NYI(why)) if why.contains("odec") || why.contains("ompress") => {
            Err(format!("{why}; write it with compression=\"snappy\""))
        }
        Err(e) => Err(format!("{e}; is the download complete?")),
    }
}

/// Bytes of text in a value.
fn text_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(text_bytes).sum(),
        Value::Object(object) => object.values().map(text_bytes).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    }
}

//! Reads the rows of a Parquet file with uncompressed, snappy or gzip pages. Messages give the row number, from
//! 1, as the line number. Bytes without a type are text if they are UTF-8. NaN and infinities become `null`,
//! and the keys that held them are recorded, as for JSON files (`odd_values`).

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::Field;
use parquet::record::reader::RowIter;
use parquet::schema::types::Type;
use serde_json::{Map, Number, Value};

use super::odd_values::{Odd, What};
use super::rows::{RowObject, RowResult, grown};
use crate::data::worker::guard::{Stage, guarded_quietly};
use crate::memory::Growth;
use crate::{Error, Result};

/// Text of the library's error for a codec that this build lacks.
const DISABLED: &str = "Disabled feature at compile time";
/// Advice for a file whose pages use an unsupported codec.
const COMPRESSION: &str = "write it with compression=\"snappy\" or \"gzip\"";

/// Calls `f` for every row.
pub(super) fn parquet_rows(path: &Path, file: File, f: &mut dyn FnMut(usize, RowResult) -> Result<()>) -> Result<()> {
    let failed = |row: usize, why: String| Error::data(path, row, None, format!("cannot be read as Parquet: {why}"));
    let reader = call(|| SerializedFileReader::new(file)).map_err(|why| failed(0, why))?;
    if let Some(name) = twice(reader.metadata().file_metadata().schema().get_fields()) {
        let why = format!("the file has two columns \"{name}\"; rename one of them");
        return Err(Error::data(path, 0, None, why));
    }
    let mut rows: RowIter<'_> = call(|| reader.get_row_iter(None)).map_err(|why| failed(0, why))?;
    let growth = Growth::default();
    for number in 1.. {
        let next = call(|| rows.next().transpose()).map_err(|why| failed(number, why))?;
        let Some(row) = next else { break };
        let (mut object, mut odd) = (Map::new(), Vec::new());
        for (name, field) in row.get_column_iter() {
            let mut found = None;
            object.insert(name.clone(), value(field, &mut found));
            odd.extend(found.map(|what| Odd { key: name.clone(), what }));
        }
        let bytes = object.values().map(text_bytes).sum::<usize>();
        f(number, Ok(RowObject::new(object, odd)))?;
        growth.add(bytes as u64, || grown(path, number))?;
    }
    Ok(())
}

/// Returns the name of a column that occurs twice among these fields, or among the fields inside one of them.
fn twice(fields: &[Arc<Type>]) -> Option<&str> {
    let repeated = |i: &usize| fields[..*i].iter().any(|known| known.name() == fields[*i].name());
    let inner = || fields.iter().filter(|field| field.is_group()).find_map(|field| twice(field.get_fields()));
    (0..fields.len()).find(repeated).map(|i| fields[i].name()).or_else(inner)
}

/// Calls the Parquet library, and turns its errors, and its panics on damaged files, into messages.
fn call<T>(call: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    match guarded_quietly(Stage::Other, call)? {
        Ok(value) => Ok(value),
        Err(ParquetError::NYI(why)) if why.contains("odec") || why.contains("ompress") => {
            Err(format!("{why}; {COMPRESSION}"))
        }
        Err(ParquetError::General(why)) if why.contains(DISABLED) => {
            let codec = why.rsplit(' ').next().unwrap_or_default();
            Err(format!("its pages are compressed with {codec}; {COMPRESSION}"))
        }
        Err(e) => Err(format!("{e}; is the download complete?")),
    }
}

/// Converts a field to JSON; `odd` is set to the kind of a number that JSON cannot represent.
fn value(field: &Field, odd: &mut Option<What>) -> Value {
    let mut number = |number: f64| match Number::from_f64(number) {
        Some(number) => Value::Number(number),
        None => {
            *odd = Some(if number.is_nan() { What::Nan } else { What::Infinity });
            Value::Null
        }
    };
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => (*value).into(),
        Field::Byte(n) => (*n).into(),
        Field::Short(n) => (*n).into(),
        Field::Int(n) => (*n).into(),
        Field::Long(n) => (*n).into(),
        Field::UByte(n) => (*n).into(),
        Field::UShort(n) => (*n).into(),
        Field::UInt(n) => (*n).into(),
        Field::ULong(n) => (*n).into(),
        Field::Float16(n) => number(f64::from(*n)),
        // The shortest decimal of the f32 is used instead of the digits of its f64 value.
        Field::Float(n) => number(n.to_string().parse().unwrap_or(f64::from(*n))),
        Field::Double(n) => number(*n),
        Field::Str(text) => text.as_str().into(),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => bytes.data().iter().map(|&byte| Value::from(byte)).collect(),
        },
        Field::Group(row) => row.get_column_iter().map(|(name, field)| (name.clone(), value(field, odd))).collect(),
        Field::ListInternal(list) => list.elements().iter().map(|field| value(field, odd)).collect(),
        Field::MapInternal(map) => {
            let entry = |(key, field): &(Field, Field)| {
                let key = match value(key, &mut None) {
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                (key, value(field, odd))
            };
            map.entries().iter().map(entry).collect()
        }
        Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_) => field.to_string().into(),
    }
}

/// Returns the number of text bytes in a value, nested values included; a null, a boolean or a number counts
/// as 8 bytes.
fn text_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(text_bytes).sum(),
        Value::Object(object) => object.values().map(text_bytes).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    }
}

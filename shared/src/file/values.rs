//! Single values of a file as fields of a message, and what to say where they do not fit.
//!
//! This module must never show the content of a value: it may be a secret.

use prost::Message;
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, Value as Field,
};

use super::notes;
use super::tree::Value;
use crate::{duration, reflect, time};

/// Names a few of the keys that the object may have.
pub(super) fn expected_object(message: &MessageDescriptor, found: &Value) -> String {
    const SHOWN: usize = 4;
    let mut keys: Vec<String> = message
        .fields()
        .filter(|field| notes::ignored(field).is_none())
        .map(|field| field.json_name().to_owned())
        .collect();
    let more = keys.len() > SHOWN;
    keys.truncate(SHOWN);
    let example = match (keys.is_empty(), more) {
        (true, _) => "write {}".to_owned(),
        (false, false) => format!("write an object with {}", keys.join(", ")),
        (false, true) => format!("write an object with {}, ...", keys.join(", ")),
    };
    format!("expected an object, found {}; {example}", found.kind())
}

pub(super) fn expected_list(field: &FieldDescriptor, found: &Value) -> String {
    let found = found.kind();
    match field.kind() {
        Kind::Message(item) => {
            let keys: Vec<String> = item
                .fields()
                .map(|field| field.json_name().to_owned())
                .take(4)
                .collect();
            let keys = keys.join(", ");
            format!("expected a list, found {found}; write a list of objects with {keys}")
        }
        _ => format!("expected a list, found {found}"),
    }
}

pub(super) fn read_duration(
    descriptor: &MessageDescriptor,
    value: &Value,
) -> Result<Field, String> {
    match value {
        Value::Text(text) => duration::parse(text)
            .map_err(|error| error.to_string())
            .and_then(|duration| well_known(descriptor, &duration)),
        other => Err(format!(
            "expected a duration, found {}; write \"P7D\", \"PT1H30M\" or \"3600s\"",
            other.kind()
        )),
    }
}

pub(super) fn read_time(descriptor: &MessageDescriptor, value: &Value) -> Result<Field, String> {
    match value {
        Value::Text(text) => time::parse(text)
            .map_err(|error| error.to_string())
            .and_then(|time| well_known(descriptor, &time)),
        other => Err(format!(
            "expected a time, found {}; write \"2031-05-17T08:30:00Z\"",
            other.kind()
        )),
    }
}

pub(super) fn read_enum(kind: &EnumDescriptor, value: &Value) -> Result<Field, String> {
    let values: Vec<(String, i32)> = kind
        .values()
        .filter(|value| value.number() != 0)
        .map(|value| (reflect::short_name(kind, &value), value.number()))
        .collect();
    if let Value::Text(text) = value
        && let Some((_, number)) = values
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(text))
    {
        return Ok(Field::EnumNumber(*number));
    }
    let names: Vec<&str> = values.iter().map(|(name, _)| name.as_str()).collect();
    let what = match value {
        Value::Text(_) => "unknown value".to_owned(),
        other => format!("expected a string, found {}", other.kind()),
    };
    Err(format!("{what}; write one of {}", names.join(", ")))
}

pub(super) fn read_float(kind: &Kind, value: &Value) -> Result<Field, String> {
    let number = match value {
        Value::Number(text) => text.parse::<f64>().ok().filter(|number| number.is_finite()),
        _ => None,
    };
    match number {
        Some(number) if matches!(kind, Kind::Float) => Ok(Field::F32(number as f32)),
        Some(number) => Ok(Field::F64(number)),
        None => Err(format!("expected a number, found {}", value.kind())),
    }
}

pub(super) fn read_integer(kind: &Kind, value: &Value) -> Result<Field, String> {
    let (least, most) = match kind {
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => (i128::from(i32::MIN), i128::from(i32::MAX)),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => (i128::from(i64::MIN), i128::from(i64::MAX)),
        Kind::Uint64 | Kind::Fixed64 => (0, i128::from(u64::MAX)),
        _ => (0, i128::from(u32::MAX)),
    };
    let text = match value {
        Value::Number(text) => text,
        Value::Text(text) if whole(text).is_some() => {
            return Err("expected a whole number, found a string; remove the quotes".to_owned());
        }
        other => return Err(format!("expected a whole number, found {}", other.kind())),
    };
    let number = whole(text).filter(|number| (least..=most).contains(number));
    let number = number.ok_or_else(|| format!("expected a whole number from {least} to {most}"))?;
    let field = match kind {
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => i32::try_from(number).ok().map(Field::I32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => i64::try_from(number).ok().map(Field::I64),
        Kind::Uint64 | Kind::Fixed64 => u64::try_from(number).ok().map(Field::U64),
        _ => u32::try_from(number).ok().map(Field::U32),
    };
    field.ok_or_else(|| format!("expected a whole number from {least} to {most}"))
}

/// A whole number, also written as 2.0 or 2e0.
fn whole(text: &str) -> Option<i128> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    text.parse().ok().or_else(|| {
        let number: f64 = text.parse().ok()?;
        // Beyond, not every whole number has a place of its own.
        (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i128)
    })
}

/// A message that the reader makes itself, as the reflection has it.
fn well_known(descriptor: &MessageDescriptor, value: &impl Message) -> Result<Field, String> {
    let mut message = DynamicMessage::new(descriptor.clone());
    message
        .transcode_from(value)
        .map(|()| Field::Message(message))
        .map_err(|error| error.to_string())
}

//! Puts values in the place of `$PARAM_{name}` and `${PARAM_{name}}` in every text of a job.

use prost::Message;
use prost_reflect::{DynamicMessage, Value};
use trainyard_proto::v1::JobSpec;

use super::{PREFIX, Values};
use crate::reflect;
use crate::validate::MAX_RESOURCE_BYTES;

/// `None`: the job becomes larger than a job may be.
pub(super) fn in_every_text(template: &JobSpec, values: &Values) -> Option<JobSpec> {
    let mut bytes = template.encode_to_vec();
    if !bytes
        .windows(PREFIX.len())
        .any(|window| window == PREFIX.as_bytes())
    {
        return Some(template.clone());
    }
    let descriptor = reflect::descriptor::<JobSpec>()?;
    let mut message = DynamicMessage::decode(descriptor, bytes.as_slice()).ok()?;
    let mut budget = MAX_RESOURCE_BYTES;
    in_message(&mut message, values, &mut budget)?;
    bytes.clear();
    message.encode(&mut bytes).ok()?;
    JobSpec::decode(bytes.as_slice()).ok()
}

fn in_message(message: &mut DynamicMessage, values: &Values, budget: &mut usize) -> Option<()> {
    for (_, value) in message.fields_mut() {
        in_value(value, values, budget)?;
    }
    Some(())
}

fn in_value(value: &mut Value, values: &Values, budget: &mut usize) -> Option<()> {
    match value {
        Value::String(text) => {
            if text.contains(PREFIX) {
                *text = in_text(text, values, *budget)?;
            }
            *budget = budget.checked_sub(text.len())?;
        }
        Value::Message(inner) => in_message(inner, values, budget)?,
        Value::List(items) => {
            for item in items {
                in_value(item, values, budget)?;
            }
        }
        Value::Map(entries) => {
            for item in entries.values_mut() {
                in_value(item, values, budget)?;
            }
        }
        Value::Bool(_)
        | Value::I32(_)
        | Value::I64(_)
        | Value::U32(_)
        | Value::U64(_)
        | Value::F32(_)
        | Value::F64(_)
        | Value::Bytes(_)
        | Value::EnumNumber(_) => {}
    }
    Some(())
}

/// A name ends where the shell would end it. What is not a parameter stays as it is.
fn in_text(text: &str, values: &Values, limit: usize) -> Option<String> {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        result.push_str(before);
        let (value, used) = reference(from, values).unwrap_or(("$", 1));
        result.push_str(value);
        rest = from.get(used..).unwrap_or_default();
        if result.len() > limit {
            return None;
        }
    }
    result.push_str(rest);
    Some(result)
}

/// The value that the text, which begins with `$`, refers to, and the bytes of the reference.
fn reference<'a>(text: &str, values: &'a Values) -> Option<(&'a str, usize)> {
    let inner = text.strip_prefix('$')?;
    let (name, extra) = match inner.strip_prefix('{') {
        Some(braced) => (braced.split_once('}')?.0, 3),
        None => {
            let end = inner
                .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .unwrap_or(inner.len());
            (inner.get(..end)?, 1)
        }
    };
    let value = values.get(name.strip_prefix(PREFIX)?)?;
    Some((value, name.len() + extra))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_names_of_parameters_are_replaced() {
        let values = Values::from([
            ("LR".to_owned(), "0.1".to_owned()),
            ("A".to_owned(), "$PARAM_LR".to_owned()),
        ]);
        for (text, expected) in [
            ("--lr $PARAM_LR", "--lr 0.1"),
            ("${PARAM_LR}x$PARAM_LR.txt", "0.1x0.1.txt"),
            (
                "$PARAM_LRX $PARAM_LR_ $PARAM_ ${PARAM_LR",
                "$PARAM_LRX $PARAM_LR_ $PARAM_ ${PARAM_LR",
            ),
            ("$$PARAM_LR $HOME $", "$0.1 $HOME $"),
            ("$PARAM_A", "$PARAM_LR"),
            ("", ""),
        ] {
            assert_eq!(
                in_text(text, &values, 1000).as_deref(),
                Some(expected),
                "{text}"
            );
        }
        assert_eq!(in_text("$PARAM_LR$PARAM_LR$", &values, 5), None);
    }
}

//! Values with places to a message, by the protocol's own description.

use std::collections::{BTreeMap, HashMap};

use prost::{Message, Name};
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor,
    Value as Field,
};

use super::tree::{Entry, Node, Position, Value};
use super::{FileErrors, Issue, Parsed, issue, notes};
use crate::{duration, reflect, time};

/// Most errors, and most warnings, that are reported.
const MAX_ISSUES: usize = 50;
/// Keys that say nothing and are ignored without a word: editors' hints.
const SILENT: &[&str] = &["$schema"];
/// Holds the fields in Batch AI's envelope.
const ENVELOPE: &str = "properties";

/// Turns the values of a file into `M` as far as they fit, beside the errors about the rest.
pub(super) fn convert<M>(name: &str, root: &Node) -> Result<(Parsed<M>, Vec<Issue>), FileErrors>
where
    M: Message + Name + Default,
{
    let broken = |what: &str| FileErrors {
        errors: vec![issue(name, root.position, String::new(), what.to_owned())],
        warnings: Vec::new(),
    };
    let descriptor = reflect::descriptor::<M>().ok_or_else(|| {
        broken("the protocol does not describe this kind of file; report this as a bug")
    })?;
    let mut reader = Reader {
        file: name,
        root: descriptor.clone(),
        errors: Vec::new(),
        warnings: Vec::new(),
        positions: BTreeMap::from([(String::new(), root.position)]),
    };
    let dynamic = reader.file(root, &descriptor);
    let Reader {
        errors,
        mut warnings,
        positions,
        ..
    } = reader;
    warnings.sort_by_key(|warning| (warning.line, warning.column));
    let message = dynamic
        .transcode_to()
        .map_err(|_| broken("what was read does not fit the protocol; report this as a bug"))?;
    let parsed = Parsed {
        message,
        warnings,
        file: name.to_owned(),
        positions,
    };
    Ok((parsed, errors))
}

struct Reader<'a> {
    file: &'a str,
    /// What the whole file describes.
    root: MessageDescriptor,
    errors: Vec<Issue>,
    warnings: Vec<Issue>,
    positions: BTreeMap<String, Position>,
}

impl Reader<'_> {
    fn error(&mut self, position: Position, path: &str, message: impl Into<String>) {
        push(
            &mut self.errors,
            issue(self.file, position, path.to_owned(), message.into()),
        );
    }

    fn warning(&mut self, position: Position, path: &str, message: impl Into<String>) {
        push(
            &mut self.warnings,
            issue(self.file, position, path.to_owned(), message.into()),
        );
    }

    /// The whole file, in Batch AI's envelope or bare.
    fn file(&mut self, root: &Node, descriptor: &MessageDescriptor) -> DynamicMessage {
        let Value::Object(entries) = &root.value else {
            self.error(root.position, "", expected_object(descriptor, &root.value));
            return DynamicMessage::new(descriptor.clone());
        };
        let enveloped = descriptor.get_field_by_json_name(ENVELOPE).is_none();
        let mut fields = Vec::new();
        for entry in entries {
            if SILENT.contains(&entry.key.as_str()) {
                continue;
            }
            if !enveloped || entry.key != ENVELOPE {
                fields.push(entry);
                continue;
            }
            match &entry.node.value {
                Value::Object(inner) => {
                    fields.extend(
                        inner
                            .iter()
                            .filter(|entry| !SILENT.contains(&entry.key.as_str())),
                    );
                }
                Value::Null => {}
                other => {
                    let message = expected_object(descriptor, other);
                    self.error(entry.node.position, ENVELOPE, message);
                }
            }
        }
        self.object(&fields, descriptor, "")
    }

    fn object(
        &mut self,
        entries: &[&Entry],
        descriptor: &MessageDescriptor,
        path: &str,
    ) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        let mut first: BTreeMap<&str, Position> = BTreeMap::new();
        // By oneof: the key that was set.
        let mut chosen: BTreeMap<String, String> = BTreeMap::new();
        for entry in entries {
            let path = join(path, &entry.key);
            if let Some(earlier) = first.get(entry.key.as_str()) {
                let text = twice(*earlier);
                self.error(entry.key_position, &path, text);
                continue;
            }
            first.insert(&entry.key, entry.key_position);
            let Some(field) = descriptor.get_field_by_json_name(&entry.key) else {
                // What a key may have meant is costly to find out, and a file may have any number of them.
                let text = if self.warnings.len() < MAX_ISSUES {
                    notes::unknown(&entry.key, descriptor, &self.root)
                } else {
                    String::new()
                };
                self.warning(entry.key_position, &path, text);
                continue;
            };
            if let Some(why) = notes::ignored(&field) {
                self.warning(entry.key_position, &path, why);
                continue;
            }
            if matches!(entry.node.value, Value::Null) {
                continue;
            }
            self.positions.insert(path.clone(), place(entry));
            if let Some(oneof) = field.containing_oneof() {
                if let Some(other) = chosen.get(oneof.name()) {
                    let text = format!("excludes {other}; keep one of the two");
                    self.error(entry.key_position, &path, text);
                    continue;
                }
                chosen.insert(oneof.name().to_owned(), entry.key.clone());
            }
            if let Some(value) = self.field(&entry.node, &field, &path)
                && let Err(error) = message.try_set_field(&field, value)
            {
                self.error(entry.node.position, &path, error.to_string());
            }
        }
        message
    }

    fn field(&mut self, node: &Node, field: &FieldDescriptor, path: &str) -> Option<Field> {
        if field.is_map() {
            return self.map(node, field, path);
        }
        if !field.is_list() {
            return self.single(node, &field.kind(), path);
        }
        let Value::List(items) = &node.value else {
            let text = expected_list(field, &node.value);
            self.error(node.position, path, text);
            return None;
        };
        let mut values = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}[{index}]");
            self.positions.insert(path.clone(), item.position);
            values.extend(self.single(item, &field.kind(), &path));
        }
        Some(Field::List(values))
    }

    fn map(&mut self, node: &Node, field: &FieldDescriptor, path: &str) -> Option<Field> {
        let (Value::Object(entries), Kind::Message(entry_kind)) = (&node.value, field.kind())
        else {
            let text = format!("expected an object, found {}", node.value.kind());
            self.error(node.position, path, text);
            return None;
        };
        let value_kind = entry_kind.map_entry_value_field().kind();
        let mut first: BTreeMap<&str, Position> = BTreeMap::new();
        let mut map = HashMap::new();
        for entry in entries {
            let path = join(path, &entry.key);
            self.positions.insert(path.clone(), place(entry));
            if let Some(earlier) = first.insert(&entry.key, entry.key_position) {
                self.error(entry.key_position, &path, twice(earlier));
            } else if let Some(value) = self.single(&entry.node, &value_kind, &path) {
                map.insert(MapKey::String(entry.key.clone()), value);
            }
        }
        Some(Field::Map(map))
    }

    /// One value; none if it is wrong, which is then reported.
    fn single(&mut self, node: &Node, kind: &Kind, path: &str) -> Option<Field> {
        let result = match (kind, &node.value) {
            (Kind::Message(message), value) => match (message.full_name(), value) {
                ("google.protobuf.Duration", value) => read_duration(message, value),
                ("google.protobuf.Timestamp", value) => read_time(message, value),
                (_, Value::Object(entries)) => {
                    let entries: Vec<&Entry> = entries.iter().collect();
                    return Some(Field::Message(self.object(&entries, message, path)));
                }
                (_, value) => Err(expected_object(message, value)),
            },
            (Kind::String, Value::Text(text)) => Ok(Field::String(text.clone())),
            (Kind::String, value @ (Value::Number(_) | Value::Bool(_))) => Err(format!(
                "expected a string, found {}; put it in quotes",
                value.kind()
            )),
            (Kind::String, value) => Err(format!("expected a string, found {}", value.kind())),
            (Kind::Bytes, Value::Text(text)) => Ok(Field::Bytes(text.clone().into_bytes().into())),
            (Kind::Bytes, value) => Err(format!("expected a string, found {}", value.kind())),
            (Kind::Bool, Value::Bool(value)) => Ok(Field::Bool(*value)),
            (Kind::Bool, value) => Err(format!("expected true or false, found {}", value.kind())),
            (Kind::Enum(kind), value) => read_enum(kind, value),
            (Kind::Double | Kind::Float, value) => read_float(kind, value),
            (_, value) => read_integer(kind, value),
        };
        match result {
            Ok(value) => Some(value),
            Err(message) => {
                self.error(node.position, path, message);
                None
            }
        }
    }
}

/// Where to look for an entry: single values where they stand, objects and lists at their key.
fn place(entry: &Entry) -> Position {
    match entry.node.value {
        Value::Object(_) | Value::List(_) => entry.key_position,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) => entry.node.position,
    }
}

fn push(list: &mut Vec<Issue>, issue: Issue) {
    if list.len() < MAX_ISSUES {
        list.push(issue);
    } else if let Some(last) = list.last_mut()
        && list_is_open(last)
    {
        last.message.push_str(MORE);
    }
}

fn twice(earlier: Position) -> String {
    let line = earlier.line;
    format!("stands already in line {line}; keep one of the two")
}

const MORE: &str = " (and more, which are not shown)";

fn list_is_open(last: &Issue) -> bool {
    !last.message.ends_with(MORE)
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// Names a few of the keys that the object may have.
fn expected_object(message: &MessageDescriptor, found: &Value) -> String {
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

fn expected_list(field: &FieldDescriptor, found: &Value) -> String {
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

fn read_duration(descriptor: &MessageDescriptor, value: &Value) -> Result<Field, String> {
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

fn read_time(descriptor: &MessageDescriptor, value: &Value) -> Result<Field, String> {
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

fn read_enum(kind: &EnumDescriptor, value: &Value) -> Result<Field, String> {
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

fn read_float(kind: &Kind, value: &Value) -> Result<Field, String> {
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

fn read_integer(kind: &Kind, value: &Value) -> Result<Field, String> {
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

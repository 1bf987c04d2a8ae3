//! Values with places to a message, by the protocol's own description.

use std::collections::{BTreeMap, HashMap};

use prost::{Message, Name};
use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value as Field,
};
use trainyard_proto::v1::{FileServer, JobSpec, ManagedFileServer, ParameterSweep};

use super::tree::{Entry, Node, Position, Value};
use super::values::{
    expected_list, expected_object, read_duration, read_enum, read_float, read_integer, read_time,
};
use super::{FileErrors, Issue, MANAGED, Parsed, SWEEP, issue, notes, shown};
use crate::reflect;

/// Most errors, and most warnings, that are reported.
const MAX_ISSUES: usize = 50;
/// Keys that say nothing and are ignored without a word: editors' hints.
const SILENT: &[&str] = &["$schema"];
/// Holds the fields in Batch AI's envelope.
const ENVELOPE: &str = "properties";
/// Fields that must be written though their default (0) would be a good value, by message; with what to write.
const REQUIRED: &[(&str, &str, &str)] = &[
    (
        "ManualScaleSettings",
        "targetNodeCount",
        "how many nodes the cluster shall have",
    ),
    (
        "AutoScaleSettings",
        "minimumNodeCount",
        "how many nodes the cluster keeps without jobs, such as 0",
    ),
    (
        "AutoScaleSettings",
        "maximumNodeCount",
        "how many nodes the cluster may grow to",
    ),
];
/// Texts that may also be written as numbers or as true and false: they become part of a text anyway.
const PLAIN_TEXTS: &[&str] = &["trainyard.v1.SweepParameter.values"];

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
        lifted: false,
        sweep: None,
        errors: Vec::new(),
        warnings: Vec::new(),
        positions: BTreeMap::from([(String::new(), root.position)]),
    };
    let dynamic = reader.file(root, &descriptor);
    let Reader {
        lifted,
        sweep,
        errors,
        mut warnings,
        positions,
        ..
    } = reader;
    warnings.sort_by_key(|warning| (warning.line, warning.column));
    let unfit = |_| broken("what was read does not fit the protocol; report this as a bug");
    let message = dynamic.transcode_to().map_err(unfit)?;
    let sweep = sweep
        .map(|sweep| sweep.transcode_to())
        .transpose()
        .map_err(unfit)?;
    let parsed = Parsed {
        message,
        sweep,
        warnings,
        file: name.to_owned(),
        lifted,
        positions,
    };
    Ok((parsed, errors))
}

struct Reader<'a> {
    file: &'a str,
    /// What the whole file describes.
    root: MessageDescriptor,
    /// Whether the fields of a managed file server stand at the root, as in Batch AI.
    lifted: bool,
    /// What stands beside a job.
    sweep: Option<DynamicMessage>,
    errors: Vec<Issue>,
    warnings: Vec<Issue>,
    positions: BTreeMap<String, Position>,
}

impl Reader<'_> {
    fn error(&mut self, position: Position, path: &str, message: impl Into<String>) {
        let path = shown(path, self.lifted).to_owned();
        push(
            &mut self.errors,
            issue(self.file, position, path, message.into()),
        );
    }

    fn warning(&mut self, position: Position, path: &str, message: impl Into<String>) {
        let path = shown(path, self.lifted).to_owned();
        push(
            &mut self.warnings,
            issue(self.file, position, path, message.into()),
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
        let mut envelope: Option<Position> = None;
        for entry in entries {
            if SILENT.contains(&entry.key.as_str()) {
                continue;
            }
            if !enveloped || entry.key != ENVELOPE {
                fields.push(entry);
                continue;
            }
            if let Some(earlier) = envelope.replace(entry.key_position) {
                self.error(entry.key_position, ENVELOPE, twice(earlier));
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
        if descriptor.full_name() == JobSpec::full_name() {
            self.sweep(&mut fields);
        }
        let managed = if descriptor.full_name() == FileServer::full_name() {
            self.lift(&mut fields, descriptor)
        } else {
            None
        };
        fields.extend(&managed);
        self.object(&fields, descriptor, "")
    }

    /// Takes the sweep out of the fields of a job, beside which it stands.
    fn sweep(&mut self, fields: &mut Vec<&Entry>) {
        let mut found: Option<Position> = None;
        for entry in fields.extract_if(.., |entry| entry.key == SWEEP) {
            if let Some(earlier) = found.replace(entry.key_position) {
                self.error(entry.key_position, SWEEP, twice(earlier));
            } else if let (Value::Object(entries), Some(descriptor)) =
                (&entry.node.value, reflect::descriptor::<ParameterSweep>())
            {
                self.positions.insert(SWEEP.to_owned(), place(entry));
                let entries: Vec<&Entry> = entries.iter().collect();
                self.sweep = Some(self.object(&entries, &descriptor, SWEEP));
            } else if !matches!(entry.node.value, Value::Null) {
                let found = entry.node.value.kind();
                let text =
                    format!("expected an object, found {found}; write an object with parameters");
                self.error(entry.node.position, SWEEP, text);
            }
        }
    }

    /// Gathers fields of a managed file server that stand at the root, where Batch AI has them.
    fn lift(&mut self, fields: &mut Vec<&Entry>, descriptor: &MessageDescriptor) -> Option<Entry> {
        let managed = reflect::descriptor::<ManagedFileServer>()?;
        if fields.iter().any(|entry| entry.key == MANAGED) {
            return None;
        }
        let entries: Vec<Entry> = fields
            .extract_if(.., |entry| {
                descriptor.get_field_by_json_name(&entry.key).is_none()
                    && managed.get_field_by_json_name(&entry.key).is_some()
            })
            .cloned()
            .collect();
        let position = entries.first()?.key_position;
        self.lifted = true;
        Some(Entry {
            key: MANAGED.to_owned(),
            key_position: position,
            node: Node {
                position,
                value: Value::Object(entries),
            },
        })
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
        for (_, key, what) in REQUIRED
            .iter()
            .filter(|(message, ..)| *message == descriptor.name())
        {
            let written = entries
                .iter()
                .any(|entry| entry.key == *key && !matches!(entry.node.value, Value::Null));
            if !written {
                let position = self.positions.get(path).copied();
                let text = format!("required; write {what}");
                self.error(position.unwrap_or(Position::START), &join(path, key), text);
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
            if let Value::Number(text) = &item.value
                && PLAIN_TEXTS.contains(&field.full_name())
            {
                values.push(Field::String(text.clone()));
            } else if let Value::Bool(value) = &item.value
                && PLAIN_TEXTS.contains(&field.full_name())
            {
                values.push(Field::String(value.to_string()));
            } else {
                values.extend(self.single(item, &field.kind(), &path));
            }
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

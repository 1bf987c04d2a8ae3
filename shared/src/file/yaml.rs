//! YAML 1.2 to values with their places.
//!
//! Built from the parser's events, so that depth and size are limited while reading: an alias may stand for a large value,
//! and aliases of aliases grow without bound.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Tag};

use super::tree::{Entry, Node, Position, SyntaxError, Value};

/// Deepest nesting; no file of Trainyard needs a tenth of it.
const MAX_DEPTH: usize = 64;
/// Most values, those that aliases stand for counted each time.
const MAX_NODES: usize = 100_000;
/// Most bytes of text in values, counted likewise.
const MAX_TEXT_BYTES: usize = 4 << 20;

pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let mut builder = Builder::default();
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| scan_error(&error))?;
        if builder.event(event, position(&span.start))? {
            break;
        }
    }
    let refuse = |position, message: &str| SyntaxError {
        position,
        message: message.to_owned(),
    };
    match builder.root {
        None => Err(refuse(Position::START, "the file is empty")),
        Some(Node {
            position,
            value: Value::Text(text),
        }) if text.contains(':') => Err(refuse(
            position,
            "not valid YAML: a space is missing after the `:`, or the file is something else",
        )),
        Some(root) => Ok(root),
    }
}

fn position(marker: &Marker) -> Position {
    Position {
        line: marker.line().max(1),
        column: marker.col() + 1,
    }
}

fn scan_error(error: &ScanError) -> SyntaxError {
    // The parser's words are those of the specification.
    let info = error.info();
    let advice = if info.contains("tab") {
        "; indent with spaces, not with tabs"
    } else if info.contains("mapping values are not allowed") {
        "; check the indentation, and put values that hold `: ` in quotes"
    } else if info.contains("quoted scalar") && info.contains("end of stream") {
        "; the closing quote is missing"
    } else {
        ""
    };
    SyntaxError {
        position: position(error.marker()),
        message: format!("not valid YAML: {info}{advice}"),
    }
}

/// A list or object that is not closed yet.
struct Open {
    position: Position,
    /// Number of the anchor on it; 0: none.
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Object {
        entries: Vec<Entry>,
        /// The key whose value comes next.
        key: Option<(String, Position)>,
    },
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: BTreeMap<usize, Node>,
    root: Option<Node>,
    documents: usize,
    nodes: usize,
    text_bytes: usize,
}

impl Builder {
    /// Takes an event; true at the end of the file.
    fn event(&mut self, event: Event<'_>, position: Position) -> Result<bool, SyntaxError> {
        let error = |message: &str| {
            Err(SyntaxError {
                position,
                message: message.to_owned(),
            })
        };
        match event {
            Event::Nothing | Event::StreamStart | Event::DocumentEnd => {}
            Event::StreamEnd => return Ok(true),
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return error(
                        "the file holds a second document after `---`; keep one in a file",
                    );
                }
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    return error("the alias stands for a value that is not complete yet");
                };
                self.count(&node, position)?;
                self.add(node, position)?;
            }
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar(&text, style, tag.as_deref())
                    .map_err(|message| SyntaxError { position, message })?;
                let node = Node { position, value };
                self.count(&node, position)?;
                self.anchor(anchor, &node);
                if self.wants_key() {
                    self.key(text.into_owned(), position);
                } else {
                    self.add(node, position)?;
                }
            }
            Event::SequenceStart(anchor, tag) => {
                self.begin(
                    Content::List(Vec::new()),
                    anchor,
                    tag.as_deref(),
                    "seq",
                    position,
                )?;
            }
            Event::MappingStart(anchor, tag) => {
                let content = Content::Object {
                    entries: Vec::new(),
                    key: None,
                };
                self.begin(content, anchor, tag.as_deref(), "map", position)?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = self.open.pop() {
                    let value = match open.content {
                        Content::List(items) => Value::List(items),
                        Content::Object { entries, .. } => Value::Object(entries),
                    };
                    let node = Node {
                        position: open.position,
                        value,
                    };
                    self.anchor(open.anchor, &node);
                    self.add(node, position)?;
                }
            }
        }
        Ok(false)
    }

    fn begin(
        &mut self,
        content: Content,
        anchor: usize,
        tag: Option<&Tag>,
        plain_tag: &str,
        position: Position,
    ) -> Result<(), SyntaxError> {
        let refuse = |message: &str| {
            Err(SyntaxError {
                position,
                message: message.to_owned(),
            })
        };
        if self.open.len() >= MAX_DEPTH {
            return refuse("nested too deeply");
        }
        if self.wants_key() {
            return refuse("a key must be a string, not a list or an object");
        }
        if tag.is_some_and(|tag| !tag.is_yaml_core_schema() || tag.suffix != plain_tag) {
            return refuse("tags are not understood here; remove it");
        }
        self.open.push(Open {
            position,
            anchor,
            content,
        });
        Ok(())
    }

    /// Whether the next value is a key.
    fn wants_key(&self) -> bool {
        matches!(
            self.open.last(),
            Some(Open {
                content: Content::Object { key: None, .. },
                ..
            })
        )
    }

    fn key(&mut self, text: String, position: Position) {
        if let Some(Open {
            content: Content::Object { key, .. },
            ..
        }) = self.open.last_mut()
        {
            *key = Some((text, position));
        }
    }

    /// Puts a complete value where it belongs.
    fn add(&mut self, node: Node, position: Position) -> Result<(), SyntaxError> {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open { content, .. }) => match content {
                Content::List(items) => items.push(node),
                Content::Object { entries, key } => match key.take() {
                    Some((key, key_position)) => entries.push(Entry {
                        key,
                        key_position,
                        node,
                    }),
                    None => {
                        return Err(SyntaxError {
                            position,
                            message: "a key must be written out, not an alias".to_owned(),
                        });
                    }
                },
            },
        }
        Ok(())
    }

    fn anchor(&mut self, anchor: usize, node: &Node) {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
    }

    /// Counts a value and all inside it.
    fn count(&mut self, node: &Node, position: Position) -> Result<(), SyntaxError> {
        let mut waiting = vec![node];
        while let Some(node) = waiting.pop() {
            self.nodes += 1;
            match &node.value {
                Value::Text(text) | Value::Number(text) => self.text_bytes += text.len(),
                Value::List(items) => waiting.extend(items),
                Value::Object(entries) => {
                    for entry in entries {
                        self.text_bytes += entry.key.len();
                        waiting.push(&entry.node);
                    }
                }
                Value::Null | Value::Bool(_) => {}
            }
            if self.nodes > MAX_NODES || self.text_bytes > MAX_TEXT_BYTES {
                return Err(SyntaxError {
                    position,
                    message: "the file grows too large here".to_owned(),
                });
            }
        }
        Ok(())
    }
}

/// The value of a scalar by YAML's core schema.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    let wanted = match tag {
        None => None,
        Some(tag) if tag.is_yaml_core_schema() => Some(tag.suffix.as_str()),
        Some(_) => return Err("tags are not understood here; remove it".to_owned()),
    };
    let value = match (wanted, style) {
        (Some("str"), _) => return Ok(Value::Text(text.to_owned())),
        (None, ScalarStyle::Plain) | (Some(_), _) => plain(text),
        (None, _) => return Ok(Value::Text(text.to_owned())),
    };
    let fits = match (wanted, &value) {
        (None, _)
        | (Some("null"), Value::Null)
        | (Some("bool"), Value::Bool(_))
        | (Some("int" | "float"), Value::Number(_)) => true,
        (Some(_), _) => false,
    };
    if fits {
        Ok(value)
    } else {
        Err("the value is not what its tag says; remove the tag".to_owned())
    }
}

fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(digits) = text.strip_prefix(prefix)
            && !digits.starts_with(['+', '-'])
            && let Ok(number) = u64::from_str_radix(digits, radix)
        {
            return Value::Number(number.to_string());
        }
    }
    if is_number(text) {
        Value::Number(text.to_owned())
    } else {
        Value::Text(text.to_owned())
    }
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`, infinity and not-a-number.
fn is_number(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mantissa_ok =
        digits(whole) && digits(fraction) && !(whole.is_empty() && fraction.is_empty());
    let exponent_ok = exponent.is_none_or(|exponent| {
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !exponent.is_empty() && digits(exponent)
    });
    mantissa_ok && exponent_ok
}

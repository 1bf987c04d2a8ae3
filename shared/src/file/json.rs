//! Strict JSON to values with their places.

use jsonc_parser::ast::{Object, Value as Ast};
use jsonc_parser::common::Ranged;
use jsonc_parser::errors::{ParseError, ParseErrorKind};
use jsonc_parser::{CollectOptions, CommentCollectionStrategy, ParseOptions, parse_to_ast};

use super::tree::{Entry, Node, Position, SyntaxError, Value};

/// JSON as RFC 8259 has it, so that a file that passes here passes everywhere.
const STRICT: ParseOptions = ParseOptions {
    allow_comments: false,
    allow_loose_object_property_names: false,
    allow_trailing_commas: false,
    allow_missing_commas: false,
    allow_single_quoted_strings: false,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
    allow_bare_decimal_point_numbers: false,
    allow_non_finite_numbers: false,
    allow_extended_string_escapes: false,
};

pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let collect = CollectOptions {
        comments: CommentCollectionStrategy::Off,
        tokens: false,
    };
    let mut lines = Lines::new(text);
    match parse_to_ast(text, &collect, &STRICT) {
        Ok(result) => match result.value {
            Some(value) => Ok(node(value, &mut lines)),
            None => Err(SyntaxError {
                position: Position::START,
                message: "the file is empty".to_owned(),
            }),
        },
        Err(error) => Err(SyntaxError {
            position: lines.at(error.range().start),
            message: explain(&error, text),
        }),
    }
}

/// The depth is limited by the parser.
fn node(value: Ast<'_>, lines: &mut Lines<'_>) -> Node {
    let position = lines.at(value.start());
    let value = match value {
        Ast::StringLit(text) => Value::Text(text.value.into_owned()),
        Ast::NumberLit(number) => Value::Number(number.value.to_owned()),
        Ast::BooleanLit(literal) => Value::Bool(literal.value),
        Ast::NullKeyword(_) => Value::Null,
        Ast::Array(array) => Value::List(
            array
                .elements
                .into_iter()
                .map(|element| node(element, lines))
                .collect(),
        ),
        Ast::Object(object) => Value::Object(entries(object, lines)),
    };
    Node { position, value }
}

fn entries(object: Object<'_>, lines: &mut Lines<'_>) -> Vec<Entry> {
    let entry = |property: jsonc_parser::ast::ObjectProp<'_>| Entry {
        key_position: lines.at(property.name.start()),
        key: property.name.into_string(),
        node: node(property.value, lines),
    };
    object.properties.into_iter().map(entry).collect()
}

/// What to do about a mistake, where the parser's words do not say it.
fn explain(error: &ParseError, text: &str) -> String {
    let advice = match error.kind() {
        ParseErrorKind::TrailingCommasNotAllowed => "remove the comma before the closing bracket",
        ParseErrorKind::CommentsNotAllowed => {
            "JSON has no comments; remove it, or write the file as YAML"
        }
        ParseErrorKind::SingleQuotedStringsNotAllowed => "write double quotes",
        ParseErrorKind::ExpectedStringObjectProperty => "put the key in double quotes",
        ParseErrorKind::ExpectedColonAfterObjectKey => "a `:` must stand between key and value",
        ParseErrorKind::ExpectedObjectValue => "a value must stand after the `:`",
        ParseErrorKind::UnexpectedTokenInObject => "a key in double quotes must stand here",
        ParseErrorKind::UnexpectedCloseBrace => {
            "this `}` closes nothing, or a value is missing before it"
        }
        ParseErrorKind::UnexpectedCloseBracket => {
            "this `]` closes nothing, or a value is missing before it"
        }
        ParseErrorKind::ExpectedComma => "a comma is missing before this",
        ParseErrorKind::UnterminatedObject => "the `}` that closes this `{` is missing",
        ParseErrorKind::UnterminatedArray => "the `]` that closes this `[` is missing",
        ParseErrorKind::MultipleRootJsonValues => {
            "the file goes on after its end; remove what follows"
        }
        ParseErrorKind::UnexpectedWord | ParseErrorKind::UnexpectedToken => {
            if text[..error.range().start].trim().is_empty() {
                "the file begins like YAML; name it .yaml, or write {...}"
            } else {
                "this cannot stand here; strings stand in double quotes"
            }
        }
        ParseErrorKind::NestingDepthExceeded => "nested too deeply",
        other => return format!("not valid JSON: {}", lower_first(&other.to_string())),
    };
    format!("not valid JSON: {advice}")
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// Turns offsets into places. Asked in rising order it reads the text once, however long its lines are.
struct Lines<'a> {
    text: &'a str,
    offset: usize,
    position: Position,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            offset: 0,
            position: Position::START,
        }
    }

    fn at(&mut self, offset: usize) -> Position {
        if offset < self.offset {
            *self = Self::new(self.text);
        }
        for c in self.text[self.offset..].chars() {
            if self.offset >= offset {
                break;
            }
            self.offset += c.len_utf8();
            if c == '\n' {
                self.position.line += 1;
                self.position.column = 1;
            } else {
                self.position.column += 1;
            }
        }
        self.position
    }
}

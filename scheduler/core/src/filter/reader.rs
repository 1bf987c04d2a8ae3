//! Reads the text of a filter, word by word. It must never loop without moving on, whatever the text is.

use super::{Field, FilterError, Kind, Operator, Term, Value};

/// A place in the text.
pub(super) struct Reader<'a> {
    text: &'a str,
    pub(super) offset: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, offset: 0 }
    }

    pub(super) fn rest(&self) -> &'a str {
        self.text.get(self.offset..).unwrap_or("")
    }

    pub(super) fn space(&mut self) {
        let rest = self.rest();
        self.offset += rest.len() - rest.trim_start().len();
    }

    /// Everything up to a space, a quote or an operator.
    pub(super) fn word(&mut self) -> &'a str {
        let rest = self.rest();
        let end = rest
            .find(|c: char| c.is_whitespace() || "\"=!<>:()".contains(c))
            .unwrap_or(rest.len());
        self.offset += end;
        &rest[..end]
    }

    pub(super) fn error(&self, message: String) -> FilterError {
        at(self.text, self.offset, message)
    }

    pub(super) fn term(&mut self, kind: Kind) -> Result<Term, FilterError> {
        let start = self.offset;
        let word = self.word();
        let known = || {
            let names: Vec<&str> = kind.fields().iter().map(|(name, _)| *name).collect();
            names.join(", ")
        };
        let field = kind
            .fields()
            .iter()
            .find(|(name, _)| *name == word)
            .map(|(_, field)| *field)
            .ok_or_else(|| {
                let message = if word.is_empty() {
                    format!("expected a field: one of {}", known())
                } else {
                    format!("{} is no field; one of {}", shorten(word), known())
                };
                at(self.text, start, message)
            })?;
        self.space();
        let (operator, operator_at) = (self.operator(word)?, self.offset);
        self.space();
        let value_at = self.offset;
        let text = self.value(word)?;
        let error = |message| at(self.text, value_at, message);
        let value = match field {
            Field::Name | Field::Cluster => Value::Name(text),
            Field::NodeCount | Field::ExitCode => Value::Number(
                text.parse()
                    .map_err(|_| error(format!("{} is no whole number", shorten(&text))))?,
            ),
            Field::CreationTime => {
                Value::Time(trainyard_shared::time::parse(&text).map_err(|e| error(e.to_string()))?)
            }
            _ => match kind.values(field) {
                Some(values) => Value::Enumeration(
                    values
                        .iter()
                        .find(|(name, _)| name.eq_ignore_ascii_case(&text))
                        .map(|(_, value)| *value)
                        .ok_or_else(|| {
                            let names: Vec<&str> =
                                values.iter().map(|(name, _)| name.as_str()).collect();
                            error(format!(
                                "{} is no value of {word}; one of {}",
                                shorten(&text),
                                names.join(", ")
                            ))
                        })?,
                ),
                None => Value::Text(text),
            },
        };
        let wrong = match (&value, operator) {
            (Value::Enumeration(_), Operator::Equal | Operator::NotEqual) => None,
            (Value::Enumeration(_), _) => Some("= and !="),
            (Value::Number(_) | Value::Time(_), Operator::Contains) => {
                Some("=, !=, <, <=, > and >=")
            }
            _ => None,
        };
        if let Some(usable) = wrong {
            return Err(at(
                self.text,
                operator_at.saturating_sub(1),
                format!("{word} knows only {usable}"),
            ));
        }
        Ok(Term {
            field,
            operator,
            value,
        })
    }

    fn operator(&mut self, field: &str) -> Result<Operator, FilterError> {
        for (text, operator) in [
            ("!=", Operator::NotEqual),
            ("<=", Operator::LessOrEqual),
            (">=", Operator::GreaterOrEqual),
            ("=", Operator::Equal),
            ("<", Operator::Less),
            (">", Operator::Greater),
            (":", Operator::Contains),
        ] {
            if self.rest().starts_with(text) {
                self.offset += text.len();
                return Ok(operator);
            }
        }
        Err(self.error(format!(
            "expected a comparison after {field}: one of =, !=, <, <=, >, >=, :"
        )))
    }

    /// A word, or a quoted text in which `\` takes the next character as it is.
    fn value(&mut self, field: &str) -> Result<String, FilterError> {
        let start = self.offset;
        if !self.rest().starts_with('"') {
            let rest = self.rest();
            let end = rest
                .find(|c: char| c.is_whitespace() || "\"()".contains(c))
                .unwrap_or(rest.len());
            self.offset += end;
            if end == 0 {
                return Err(self.error(format!(
                    "expected a value for {field}: a word or a \"quoted text\""
                )));
            }
            return Ok(rest[..end].to_owned());
        }
        let mut value = String::new();
        let mut characters = self.rest().char_indices().skip(1);
        while let Some((i, c)) = characters.next() {
            match c {
                '"' => {
                    self.offset += i + 1;
                    return Ok(value);
                }
                '\\' => value.extend(characters.next().map(|(_, c)| c)),
                c => value.push(c),
            }
        }
        Err(at(
            self.text,
            start,
            "the quoted text does not end; write \" at its end".to_owned(),
        ))
    }
}

pub(super) fn at(text: &str, offset: usize, message: String) -> FilterError {
    let before = text.get(..offset).unwrap_or(text);
    FilterError {
        position: before.chars().count() + 1,
        message,
    }
}

pub(super) fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

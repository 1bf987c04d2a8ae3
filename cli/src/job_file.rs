//! Job and cluster files: reads them, and turns what is refused into lines `FILE:LINE:COL: field: message`, whether this
//! command or a scheduler refuses. Must never change the meaning of a file (see [`crate::placeholders`] for the one
//! thing that is filled in).

use std::io::Read;
use std::path::Path;

use tonic::Status;
use trainyard_shared::file::{self, Format, Message, Parsed};
use trainyard_shared::validate::FieldViolation;

use crate::console::note;
use crate::error::Error;
use crate::status;

/// A file as it was read.
pub(crate) struct Source {
    name: String,
    text: String,
    format: Format,
}

impl Source {
    /// Reads the file; `-` is stdin.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin()
                .lock()
                .read_to_string(&mut text)
                .map_err(|error| Error::failure(format!("cannot read stdin: {error}")))?;
            return Ok(Self::new("<stdin>", text));
        }
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::failure(format!("cannot read {}: {error}", path.display())))?;
        Ok(Self::new(&path.display().to_string(), text))
    }

    /// A text that came from a place of that name. YAML by the name's ending; without one of the known endings a text
    /// that begins with `{` is JSON.
    pub(crate) fn new(name: &str, text: String) -> Self {
        let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
        let format = match ending.as_deref() {
            Some("yaml" | "yml") => Format::Yaml,
            Some("json") => Format::Json,
            _ if text.trim_start_matches('\u{feff}').trim_start().starts_with('{') => Format::Json,
            _ => Format::Yaml,
        };
        Self { name: name.to_owned(), text, format }
    }

    /// Parses it. Warnings (such as unknown keys) go to stderr, errors into the error, one line each.
    pub(crate) fn parse<M: Message>(&self) -> Result<ParsedFile<M>, Error> {
        let parsed = file::read::<M>(&self.name, &self.text, self.format)
            .map_err(|errors| Error::failure(errors.to_string()))?;
        for warning in &parsed.warnings {
            note(&format!("warning: {warning}"));
        }
        Ok(ParsedFile { name: self.name.clone(), parsed })
    }
}

/// A file and the message it says.
pub(crate) struct ParsedFile<M> {
    name: String,
    parsed: Parsed<M>,
}

impl<M: Message> ParsedFile<M> {
    /// The message.
    pub(crate) fn message(&self) -> &M {
        &self.parsed.message
    }

    /// An error of those violations, each with its place.
    pub(crate) fn refusal(&self, violations: Vec<FieldViolation>) -> Error {
        let lines = violations.iter().map(|violation| self.line(&violation.field, &violation.message));
        Error::failure(lines.collect::<Vec<_>>().join("\n"))
    }

    /// A scheduler's refusal; its field violations get their places in the file.
    pub(crate) fn explain(&self, status: Status) -> Error {
        let violations = status::violations(&status);
        if violations.is_empty() {
            return status.into();
        }
        let lines = violations.iter().map(|(field, message)| self.line(field, message));
        Error::failure(lines.collect::<Vec<_>>().join("\n"))
    }

    fn line(&self, field: &str, message: &str) -> String {
        // Schedulers name fields from the root of the request or of the resource; files begin inside.
        let candidates = [field, strip(field, "job."), strip(strip(field, "job."), "spec."), strip(field, "cluster.")];
        for candidate in candidates {
            if let Some((line, column)) = self.parsed.locate(candidate) {
                return format!("{}:{line}:{column}: {candidate}: {message}", self.name);
            }
        }
        format!("{}: {field}: {message}", self.name)
    }
}

fn strip<'a>(field: &'a str, prefix: &str) -> &'a str {
    field.strip_prefix(prefix).unwrap_or(field)
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tonic_types::{ErrorDetails, StatusExt};
    use trainyard_proto::v1::JobSpec;

    use super::*;

    fn parse(text: &str) -> Result<ParsedFile<JobSpec>, Error> {
        Source::new("job.json", text.to_owned()).parse()
    }

    #[test]
    fn a_wrong_type_names_file_line_and_field() {
        let Err(error) = parse("{\n  \"properties\": {\n    \"nodeCount\": \"two\"\n  }\n}") else { panic!() };
        let text = error.to_string();
        assert!(text.starts_with("job.json:3:"), "{text}");
        assert!(text.contains("nodeCount"), "{text}");
    }

    #[test]
    fn a_refusal_of_the_scheduler_gets_its_line() {
        let parsed = parse("{\n  \"properties\": {\n    \"nodeCount\": 9\n  }\n}").ok().unwrap();
        let details = ErrorDetails::with_bad_request(vec![tonic_types::FieldViolation::new(
            "job.spec.nodeCount",
            "the cluster can never hold that many",
        )]);
        let status = Status::with_error_details(Code::InvalidArgument, "refused", details);
        let text = parsed.explain(status).to_string();
        assert!(text.starts_with("job.json:3:"), "{text}");
        assert!(text.ends_with(": nodeCount: the cluster can never hold that many"), "{text}");
    }

    #[test]
    fn the_format_follows_the_name_then_the_text() {
        assert!(matches!(Source::new("a.yml", String::new()).format, Format::Yaml));
        assert!(matches!(Source::new("<stdin>", " {".into()).format, Format::Json));
        assert!(matches!(Source::new("<stdin>", "nodeCount: 1".into()).format, Format::Yaml));
    }
}

//! Job and cluster files: reads them, and turns what is refused into lines `FILE:LINE:COL: field: message`, whether this
//! command or a scheduler refuses. Must never change the meaning of a file (see [`crate::placeholders`] for the one
//! thing that is filled in).

use std::fs::File;
use std::io::Read;
use std::path::Path;

use prost::{Message, Name};
use tonic::Status;
use trainyard_proto::v1::{JobSpec, ParameterSweep};
use trainyard_shared::file::{self, Format, Issue, MAX_FILE_BYTES, Parsed};
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
        let (name, text) = if path.as_os_str() == "-" {
            ("<stdin>".to_owned(), read_text(std::io::stdin().lock()))
        } else {
            (
                path.display().to_string(),
                File::open(path).and_then(read_text),
            )
        };
        let text = text.map_err(|error| Error::failure(format!("cannot read {name}: {error}")))?;
        Ok(Self::new(&name, text))
    }

    /// A text that came from a place of that name.
    pub(crate) fn new(name: &str, text: String) -> Self {
        Self {
            name: name.to_owned(),
            format: Format::guess(name, &text),
            text,
        }
    }

    /// Parses it. Warnings (such as unknown keys) go to stderr, errors into the error, one line each.
    pub(crate) fn parse<M: Message + Name + Default>(&self) -> Result<ParsedFile<M>, Error> {
        let parsed = file::read::<M>(&self.name, &self.text, self.format).map_err(|refused| {
            // A key that nobody knows is often the misspelt one that is now missing.
            warn(&refused.warnings);
            Error::File(refused.to_string())
        })?;
        warn(&parsed.warnings);
        Ok(ParsedFile::new(&self.name, parsed))
    }
}

impl Source {
    /// Where it came from.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Judges it as a job file, without a scheduler. Warnings go to stderr, errors into the error, one line each.
    pub(crate) fn check_job(&self) -> Result<ParsedFile<JobSpec>, Error> {
        let parsed = file::job_file(&self.name, &self.text, self.format).map_err(|refused| {
            warn(&refused.warnings);
            Error::File(refused.to_string())
        })?;
        warn(&parsed.warnings);
        Ok(ParsedFile::new(&self.name, parsed))
    }
}

/// No more than is accepted, and the one byte that shows that it is too much.
fn read_text(from: impl Read) -> std::io::Result<String> {
    let mut text = String::new();
    from.take(MAX_FILE_BYTES as u64 + 1)
        .read_to_string(&mut text)?;
    Ok(text)
}

fn warn(warnings: &[Issue]) {
    for warning in warnings {
        note(&format!("warning: {warning}"));
    }
}

/// A file and the message it says.
pub(crate) struct ParsedFile<M> {
    name: String,
    /// Schedulers may name fields from the root of the request; the file begins inside.
    roots: &'static [&'static str],
    /// Fields that the command line has given instead of the file, each with its flag.
    flags: Vec<(String, String)>,
    parsed: Parsed<M>,
}

impl<M: Name> ParsedFile<M> {
    fn new(name: &str, parsed: Parsed<M>) -> Self {
        Self {
            name: name.to_owned(),
            roots: match M::NAME {
                "Cluster" => &["cluster."],
                "FileServer" => &["fileServer."],
                _ => &["job.", "spec."],
            },
            flags: Vec::new(),
            parsed,
        }
    }
}

impl<M> ParsedFile<M> {
    /// The message.
    pub(crate) fn message(&self) -> &M {
        &self.parsed.message
    }

    /// The command line has given this field: what is wrong with it is wrong with the flag.
    pub(crate) fn given_by_flag(&mut self, field: impl Into<String>, flag: String) {
        self.flags.push((field.into(), flag));
    }

    /// What expands a job into many, if the file has it.
    pub(crate) fn sweep(&self) -> Option<&ParameterSweep> {
        self.parsed.sweep.as_ref()
    }

    /// Says on stderr what is no reason to refuse the file now.
    pub(crate) fn warn(&self, violations: Vec<FieldViolation>) {
        for violation in violations {
            let (_, line) = self.line(&violation.field, &violation.message);
            note(&format!(
                "warning: {}",
                line.strip_prefix("error: ").unwrap_or(&line)
            ));
        }
    }

    /// An error of those violations, each with its place, in the order of the file.
    pub(crate) fn refusal(&self, violations: Vec<FieldViolation>) -> Error {
        self.lines(
            violations
                .into_iter()
                .map(|violation| (violation.field, violation.message)),
        )
    }

    /// A scheduler's refusal; its field violations get their places in the file.
    pub(crate) fn explain(&self, status: Status) -> Error {
        let violations = status::violations(&status);
        if violations.is_empty() {
            status.into()
        } else {
            self.lines(violations)
        }
    }

    fn lines(&self, violations: impl IntoIterator<Item = (String, String)>) -> Error {
        let mut lines: Vec<_> = violations
            .into_iter()
            .map(|(field, message)| self.line(&field, &message))
            .collect();
        lines.sort();
        Error::File(
            lines
                .into_iter()
                .map(|(_, line)| line)
                .collect::<Vec<_>>()
                .join("\n"),
        )
    }

    /// Place and text of a violation.
    fn line(&self, field: &str, message: &str) -> ((usize, usize), String) {
        let field = self.roots.iter().fold(field, |field, root| {
            field.strip_prefix(root).unwrap_or(field)
        });
        let is_of = |given: &str| {
            field
                .strip_prefix(given)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        if let Some((_, flag)) = self.flags.iter().find(|(given, _)| is_of(given)) {
            return ((0, 0), format!("error: {flag}: {message}"));
        }
        // Whatever belongs to nothing in the file belongs to the file.
        let (line, column) = self.parsed.locate(field).unwrap_or((1, 1));
        let shown = self.parsed.shown(field);
        let of_field = if shown.is_empty() {
            String::new()
        } else {
            format!("{shown}: ")
        };
        (
            (line, column),
            format!("{}:{line}:{column}: {of_field}{message}", self.name),
        )
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;

    fn parse(text: &str) -> Result<ParsedFile<JobSpec>, Error> {
        Source::new("job.json", text.to_owned()).parse()
    }

    #[test]
    fn a_wrong_type_names_file_line_and_field() {
        let Err(error) = parse("{\n  \"properties\": {\n    \"nodeCount\": \"two\"\n  }\n}") else {
            panic!()
        };
        let text = error.to_string();
        assert!(text.starts_with("job.json:3:"), "{text}");
        assert!(text.contains("nodeCount"), "{text}");
    }

    #[test]
    fn a_refusal_of_the_scheduler_gets_its_line() {
        let parsed = parse("{\n  \"properties\": {\n    \"nodeCount\": 9\n  }\n}")
            .ok()
            .unwrap();
        let details = ErrorDetails::with_bad_request(vec![tonic_types::FieldViolation::new(
            "job.spec.nodeCount",
            "the cluster can never hold that many",
        )]);
        let status = Status::with_error_details(Code::InvalidArgument, "refused", details);
        let text = parsed.explain(status).to_string();
        assert!(text.starts_with("job.json:3:"), "{text}");
        assert!(
            text.ends_with(": nodeCount: the cluster can never hold that many"),
            "{text}"
        );
    }

    #[test]
    fn what_a_flag_has_given_is_no_fault_of_the_file() {
        let mut parsed = parse("{\"properties\": {\"nodeCount\": 9}}").ok().unwrap();
        parsed.given_by_flag("cluster", "--cluster c".into());
        let wrong = |field: &str| {
            vec![FieldViolation {
                field: field.into(),
                message: "no".into(),
            }]
        };
        assert_eq!(
            parsed.refusal(wrong("cluster.id")).to_string(),
            "error: --cluster c: no"
        );
        assert_eq!(
            parsed.refusal(wrong("clusters")).to_string(),
            "job.json:1:1: clusters: no"
        );
    }

    #[test]
    fn the_format_follows_the_name_then_the_text() {
        assert_eq!(Source::new("a.yml", String::new()).format, Format::Yaml);
        assert_eq!(Source::new("<stdin>", " {".into()).format, Format::Json);
        assert_eq!(
            Source::new("<stdin>", "nodeCount: 1".into()).format,
            Format::Yaml
        );
    }
}

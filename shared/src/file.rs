//! Files that describe jobs, clusters and other resources: JSON or YAML, in the keys of Batch AI.
//!
//! A file is read into values that know their places, and these into the message by the protocol's own description, so
//! that a field added there can be written at once. Everything wrong is reported with file, line and column, in the same
//! words for JSON and YAML. Keys that nobody knows are warned about and not refused: Batch AI's own files have them.
//!
//! This module must never open a file, and never show a value that may be a secret.

mod convert;
mod json;
mod notes;
mod tree;
mod values;
mod yaml;

use std::collections::BTreeMap;
use std::fmt;

use prost::{Message, Name};
use trainyard_proto::v1::{Cluster, FileServer, JobSpec, ParameterSweep, Workspace};

use crate::validate::{self, FieldViolation};
use tree::{Position, SyntaxError};

/// Largest file, in bytes.
pub const MAX_FILE_BYTES: usize = 1 << 20;
/// Key of the sweep that expands a job, beside the job's own fields.
pub const SWEEP: &str = "parameterSweep";
/// Field that holds a managed file server; its fields may also stand at the root, where Batch AI has them.
const MANAGED: &str = "managed";

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JSON, strict.
    Json,
    /// YAML 1.2.
    Yaml,
}

impl Format {
    /// The format of a file: by the end of its name, else (standard input) by its first character.
    #[must_use]
    pub fn guess(name: &str, text: &str) -> Self {
        let lower = name.to_ascii_lowercase();
        if lower.ends_with(".yaml") || lower.ends_with(".yml") {
            Format::Yaml
        } else if lower.ends_with(".json")
            || text
                .trim_start_matches('\u{feff}')
                .trim_start()
                .starts_with('{')
        {
            Format::Json
        } else {
            Format::Yaml
        }
    }
}

/// Something to say about a place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    /// Name of the file, for messages.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1, in characters.
    pub column: usize,
    /// Path of the field: `mountVolumes.azureFileShares[0].relativeMountPath`. Empty: the file as a whole.
    pub field: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

/// `FILE:LINE:COLUMN: field: message`, as editors understand it.
impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// Why a file is refused. Prints one line for each error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileErrors {
    /// At least one, in the order of the file.
    pub errors: Vec<Issue>,
    /// What is worth knowing besides: an unknown key is often a misspelt one that is now missing.
    pub warnings: Vec<Issue>,
}

impl fmt::Display for FileErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for FileErrors {}

/// What a file says.
#[derive(Debug, Clone)]
pub struct Parsed<M> {
    /// The resource.
    pub message: M,
    /// Beside a job: what expands it into many. None for anything else.
    pub sweep: Option<ParameterSweep>,
    /// Keys that were ignored and what is worth knowing besides, in the order of the file.
    pub warnings: Vec<Issue>,
    file: String,
    /// Whether the fields of a managed file server stand at the root.
    lifted: bool,
    positions: BTreeMap<String, Position>,
}

impl<M> Parsed<M> {
    /// Line and column of a field, by its path (`pyTorchSettings.processCount`); of the nearest object around it when the
    /// file does not have the field. None only if the path belongs to nothing in the file.
    #[must_use]
    pub fn locate(&self, field: &str) -> Option<(usize, usize)> {
        self.place(field).map(|place| (place.line, place.column))
    }

    /// The field as the file has it. It differs where the file is written as for Batch AI: `managed.vmSize` of a file server
    /// is its `vmSize`.
    #[must_use]
    pub fn shown<'a>(&self, field: &'a str) -> &'a str {
        shown(field, self.lifted)
    }

    fn place(&self, field: &str) -> Option<Position> {
        let mut path = field;
        loop {
            if let Some(position) = self.positions.get(path) {
                return Some(*position);
            }
            if path.is_empty() {
                return None;
            }
            path = path.rfind(['.', '[']).map_or("", |end| &path[..end]);
        }
    }

    /// Refuses the file if its form was wrong in places or there is anything wrong with what it says.
    fn check(
        self,
        mut errors: Vec<Issue>,
        violations: Vec<FieldViolation>,
    ) -> Result<Self, FileErrors> {
        // A value of the wrong form was not read: what seems to be missing for that is no second mistake.
        let known: Vec<String> = errors.iter().map(|error| error.field.clone()).collect();
        for violation in violations {
            let field = self.shown(&violation.field);
            if known.iter().any(|known| related(known, field)) {
                continue;
            }
            let place = self.place(&violation.field).unwrap_or(Position::START);
            let field = field.to_owned();
            errors.push(issue(&self.file, place, field, violation.message));
        }
        if errors.is_empty() {
            return Ok(self);
        }
        errors.sort_by_key(|error| (error.line, error.column));
        Err(FileErrors {
            errors,
            warnings: self.warnings,
        })
    }
}

fn shown(field: &str, lifted: bool) -> &str {
    match field.strip_prefix(MANAGED) {
        Some("") if lifted => "",
        Some(rest) if lifted => rest.strip_prefix('.').unwrap_or(field),
        _ => field,
    }
}

/// Whether one path is the other or lies inside it.
fn related(a: &str, b: &str) -> bool {
    let inside = |outer: &str, inner: &str| {
        outer.is_empty()
            || inner
                .strip_prefix(outer)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    inside(a, b) || inside(b, a)
}

fn issue(file: &str, position: Position, field: String, message: String) -> Issue {
    Issue {
        file: file.to_owned(),
        line: position.line,
        column: position.column,
        field,
        message,
    }
}

/// Reads a file into `M`. `name` stands in the messages. The form of the file is checked, not its sense: see
/// [`job_file`] and its siblings.
///
/// Takes Batch AI's envelope (`{"properties": {...}}`) as well as the bare fields. What only the scheduler sets
/// (`provisioningState`, ...) and what has no meaning here (keys of storage accounts) is left out, with a warning.
pub fn read<M>(name: &str, text: &str, format: Format) -> Result<Parsed<M>, FileErrors>
where
    M: Message + Name + Default,
{
    let (parsed, errors) = read_all(name, text, format)?;
    parsed.check(errors, Vec::new())
}

/// Reads what can be read, beside what is wrong with the rest. Fails where nothing can be read.
fn read_all<M>(
    name: &str,
    text: &str,
    format: Format,
) -> Result<(Parsed<M>, Vec<Issue>), FileErrors>
where
    M: Message + Name + Default,
{
    let refuse = |position, message: String| FileErrors {
        errors: vec![issue(name, position, String::new(), message)],
        warnings: Vec::new(),
    };
    if text.len() > MAX_FILE_BYTES {
        let length = text.len();
        let message = format!("{length} bytes large; at most {MAX_FILE_BYTES} are read");
        return Err(refuse(Position::START, message));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let root = match format {
        Format::Json => json::parse(text),
        Format::Yaml => yaml::parse(text),
    };
    let root = root.map_err(|SyntaxError { position, message }| refuse(position, message))?;
    convert::convert(name, &root)
}

fn read_and_check<M>(
    name: &str,
    text: &str,
    format: Format,
    check: impl FnOnce(&M) -> Vec<FieldViolation>,
) -> Result<Parsed<M>, FileErrors>
where
    M: Message + Name + Default,
{
    let (parsed, errors) = read_all(name, text, format)?;
    let violations = check(&parsed.message);
    parsed.check(errors, violations)
}

/// Reads a job file and checks the job, and the sweep beside it. A missing `cluster` is no error here: the command may
/// name it; whoever fills it in must check again with [`validate::job`]. What this version cannot start is warned about:
/// creating such a job is refused.
pub fn job_file(name: &str, text: &str, format: Format) -> Result<Parsed<JobSpec>, FileErrors> {
    let (mut parsed, errors) = read_all::<JobSpec>(name, text, format)?;
    let spec = &parsed.message;
    let mut violations = validate::job(spec);
    if spec.cluster.is_none() {
        violations.retain(|violation| violation.field != "cluster");
    }
    if let Some(sweep) = &parsed.sweep {
        let inside = validate::sweep(sweep).into_iter();
        violations.extend(inside.map(|violation| violation.inside(SWEEP)));
    }
    for violation in validate::launchable(spec) {
        let place = parsed.place(&violation.field).unwrap_or(Position::START);
        let warning = issue(name, place, violation.field, violation.message);
        parsed.warnings.push(warning);
    }
    let order = |issue: &Issue| (issue.line, issue.column);
    parsed.warnings.sort_by_key(order);
    parsed.check(errors, violations)
}

/// Reads a cluster file and checks the cluster.
pub fn cluster_file(name: &str, text: &str, format: Format) -> Result<Parsed<Cluster>, FileErrors> {
    read_and_check(name, text, format, validate::cluster)
}

/// Reads a workspace file and checks the workspace.
pub fn workspace_file(
    name: &str,
    text: &str,
    format: Format,
) -> Result<Parsed<Workspace>, FileErrors> {
    read_and_check(name, text, format, validate::workspace)
}

/// Reads a file-server file and checks the file server.
pub fn file_server_file(
    name: &str,
    text: &str,
    format: Format,
) -> Result<Parsed<FileServer>, FileErrors> {
    read_and_check(name, text, format, validate::file_server)
}

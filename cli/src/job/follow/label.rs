//! What the name of a file of the stdouterr directory says: which stream it is, and of which rank. Pure.

use trainyard_proto::v1::{Job, JobSpec};

use crate::console::Console;
use crate::error::Error;

/// How the preparation's files are marked.
const PREPARATION: &str = "-job_prep";

/// Where a file's bytes go. Ordered as files are printed one after the other: the preparation first, then ranks by
/// number, of each stdout before stderr.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Label {
    of_task: bool,
    /// A rank by its number; other names come after, by name.
    number: u64,
    text: String,
    is_stderr: bool,
}

impl Label {
    /// The label of a file; none for files that are neither stdout nor stderr, such as execution logs.
    pub(crate) fn of(file: &str) -> Option<Self> {
        let name = file.strip_suffix(".txt")?;
        let (is_stderr, rest) = match name.strip_prefix("stdout") {
            Some(rest) => (false, rest),
            None => (true, name.strip_prefix("stderr")?),
        };
        if let Some(node) = rest.strip_prefix(PREPARATION) {
            let text = format!("prep {}", node.trim_start_matches('-'))
                .trim_end()
                .to_owned();
            return Some(Self {
                of_task: false,
                number: 0,
                text,
                is_stderr,
            });
        }
        let text = match rest.strip_prefix('-') {
            Some(text) => text.to_owned(),
            None if rest.is_empty() => String::new(),
            None => return None,
        };
        let number = if text.is_empty() {
            0
        } else {
            text.parse().unwrap_or(u64::MAX)
        };
        Some(Self {
            of_task: true,
            number,
            text,
            is_stderr,
        })
    }

    /// Whether a task of the job writes it, and not the preparation.
    pub(crate) fn is_of_task(&self) -> bool {
        self.of_task
    }

    /// What to print before each line; empty: nothing. `several` says whether several tasks write.
    pub(crate) fn prefix(&self, several: bool) -> String {
        if !self.text.is_empty() && (several || !self.of_task) {
            format!("[{}] ", self.text)
        } else {
            String::new()
        }
    }

    /// Writes bytes of the file to the stream they belong to. The preparation's go to stderr, so that stdout carries the
    /// job alone.
    pub(crate) fn write(&self, console: &mut Console, data: &[u8]) -> Result<(), Error> {
        if data.is_empty() {
            Ok(())
        } else if self.is_stderr || !self.of_task {
            console.err(data)
        } else {
            console.out(data)
        }
    }
}

/// Whether lines need a prefix: several tasks write, or may.
pub(crate) fn prefixes<'a>(job: &Job, files: impl Iterator<Item = &'a str>) -> bool {
    let stdouts = files
        .filter_map(Label::of)
        .filter(|label| label.of_task && !label.is_stderr)
        .count();
    stdouts > 1
        || job
            .spec
            .as_ref()
            .is_some_and(|spec| spec.node_count > 1 || processes(spec) > 1)
}

/// Processes that a job file asks for, as far as it says so.
fn processes(spec: &JobSpec) -> u32 {
    let counts = [
        spec.py_torch_settings.as_ref().map(|it| it.process_count),
        spec.tensor_flow_settings
            .as_ref()
            .map(|it| it.worker_count.saturating_add(it.parameter_server_count)),
        spec.torchrun_settings.as_ref().map(|it| it.nproc_per_node),
    ];
    counts.into_iter().flatten().max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use trainyard_proto::v1::PyTorchSettings;

    use super::*;

    #[test]
    fn names_of_files() {
        let cases = [
            ("stdout.txt", Some("")),
            ("stderr-3.txt", Some("[3] ")),
            ("stdout-wk-0.txt", Some("[wk-0] ")),
            ("stdout-job_prep.txt", Some("[prep] ")),
            ("stderr-job_prep-node-1.txt", Some("[prep node-1] ")),
            ("execution.log", None),
            ("execution-node-1.log", None),
            ("stdoutx.txt", None),
            ("../stdout.txt", None),
        ];
        for (file, prefix) in cases {
            assert_eq!(
                Label::of(file).map(|label| label.prefix(true)).as_deref(),
                prefix,
                "{file}"
            );
        }
    }

    #[test]
    fn a_single_rank_needs_no_prefix_but_the_preparation_does() {
        assert_eq!(Label::of("stdout-0.txt").unwrap().prefix(false), "");
        assert_eq!(
            Label::of("stdout-job_prep.txt").unwrap().prefix(false),
            "[prep] "
        );
    }

    #[test]
    fn files_are_printed_in_order_of_rank() {
        let mut files = [
            "stdout-10.txt",
            "stderr-2.txt",
            "stdout-2.txt",
            "stdout-job_prep.txt",
        ];
        files.sort_by_key(|file| Label::of(file));
        assert_eq!(
            files,
            [
                "stdout-job_prep.txt",
                "stdout-2.txt",
                "stderr-2.txt",
                "stdout-10.txt"
            ]
        );
    }

    #[test]
    fn several_ranks_are_seen_before_their_files() {
        let mut spec = JobSpec {
            node_count: 1,
            ..JobSpec::default()
        };
        spec.py_torch_settings = Some(PyTorchSettings {
            process_count: 2,
            ..PyTorchSettings::default()
        });
        let job = Job {
            spec: Some(spec),
            ..Job::default()
        };
        assert!(prefixes(&job, std::iter::empty()));
        assert!(prefixes(
            &Job::default(),
            ["stdout-0.txt", "stdout-1.txt"].into_iter()
        ));
        assert!(!prefixes(
            &Job::default(),
            ["stdout-0.txt", "stderr-0.txt"].into_iter()
        ));
    }
}

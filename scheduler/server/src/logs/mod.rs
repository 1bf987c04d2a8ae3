//! Files of jobs: `StreamLogs` and `ListJobFiles`, relayed from the nodes that have them.
//!
//! The bytes never rest here: a chunk is taken from the agent when the client has room for it. [`locate`] decides from
//! the state alone which node to ask; [`relay`] and [`list`] ask. They must never send a byte twice or leave one out: a
//! relay that lost its agent goes on at the offset after the last byte sent.

mod list;
mod locate;
mod relay;

pub use list::list;
pub use relay::{LogStream, stream};

use tonic::Status;
use trainyard_shared::names::{self, JobName};

use crate::status;

/// The directory that is meant when a request names none.
const STDOUTERR: &str = "stdouterr";
/// Longest name of a file.
const MAX_FILE: usize = 255;
/// Longest path of a directory.
const MAX_DIRECTORY: usize = 4096;

/// A file or directory of a job, as a request names it; checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// `stdouterr` or the id of an output directory.
    pub output_directory_id: String,
    /// Directory below it; empty: itself.
    pub directory: String,
    /// Name of the file; empty: the first stdout of the job.
    pub file: String,
}

impl Wanted {
    /// Checks the parts of a request. Nothing may lead out of the directory.
    pub fn check(output_directory_id: &str, directory: &str, file: &str) -> Result<Self, Status> {
        let output_directory_id = match output_directory_id {
            "" => STDOUTERR,
            id => {
                names::check_id("output directory", id)
                    .map_err(|e| status::name("output_directory_id", &e))?;
                id
            }
        };
        let directory = match directory {
            "." | "./" => "",
            other => other,
        };
        let inside = directory.is_empty()
            || directory
                .trim_end_matches('/')
                .split('/')
                .all(|part| !part.is_empty() && part != "." && part != "..");
        if !inside || directory.len() > MAX_DIRECTORY || directory.contains('\0') {
            return Err(status::invalid_field(
                "directory",
                "must be a relative path without `..`, below the output directory",
            ));
        }
        if file.len() > MAX_FILE || file.contains(['/', '\0']) || file == "." || file == ".." {
            return Err(status::invalid_field(
                "file",
                "must be the name of a file; put the directory into `directory`",
            ));
        }
        if file.is_empty() && !(output_directory_id == STDOUTERR && directory.is_empty()) {
            return Err(status::invalid_field(
                "file",
                "is needed outside the stdouterr directory",
            ));
        }
        Ok(Self {
            output_directory_id: output_directory_id.to_owned(),
            directory: directory.trim_end_matches('/').to_owned(),
            file: file.to_owned(),
        })
    }

    /// Whether it lies right in the stdouterr directory, of which agents report the files.
    fn is_reported(&self) -> bool {
        self.output_directory_id == STDOUTERR && self.directory.is_empty()
    }
}

/// The command that lists the files of an attempt of the job `name`, in the output directory of `wanted`.
fn list_command(name: &str, attempt: u32, wanted: &Wanted) -> String {
    let Ok(job) = name.parse::<JobName>() else {
        return "trainyard job file list".to_owned();
    };
    let mut command = format!(
        "trainyard job file list -w {} -e {} -n {} --attempt {attempt}",
        job.workspace().id(),
        job.experiment().id(),
        job.id()
    );
    if wanted.output_directory_id != STDOUTERR {
        command.push_str(" -d ");
        command.push_str(&wanted.output_directory_id);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_that_lists_files_is_whole() {
        let name = "workspaces/w/experiments/e/jobs/j";
        for (id, end) in [("", "--attempt 2"), ("MODEL", "--attempt 2 -d MODEL")] {
            let wanted = Wanted::check(id, "", "a").unwrap();
            assert_eq!(
                list_command(name, 2, &wanted),
                format!("trainyard job file list -w w -e e -n j {end}")
            );
        }
    }

    #[test]
    fn nothing_leads_out_of_the_directory() {
        for (id, directory, file) in [
            ("", "..", "a"),
            ("", "a/../..", "a"),
            ("", "/etc", "passwd"),
            ("", "", "../secret"),
            ("", "", ".."),
            ("a/b", "", "a"),
            ("MODEL", "", ""),
            ("", "a\0", "a"),
        ] {
            assert!(
                Wanted::check(id, directory, file).is_err(),
                "{id} {directory} {file}"
            );
        }
        let wanted = Wanted::check("", ".", "").unwrap();
        assert!(wanted.is_reported());
        let wanted = Wanted::check("MODEL", "a/b/", "w.bin").unwrap();
        assert_eq!(wanted.directory, "a/b");
    }
}

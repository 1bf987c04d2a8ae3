//! Any text as a job, cluster, file-server and workspace file, in JSON and in YAML: the reader and the checks must neither
//! panic nor hang, and must say where each error is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trainyard_shared::file::{self, FileErrors, Format, Parsed};
use trainyard_shared::{sweep, validate};

fn judge<M>(text: &str, result: Result<Parsed<M>, FileErrors>) -> Option<Parsed<M>> {
    // YAML ends a line at a bare carriage return as well.
    let lines = text.split(['\n', '\r']).count();
    match result {
        Ok(parsed) => Some(parsed),
        Err(refused) => {
            assert!(!refused.errors.is_empty());
            for error in &refused.errors {
                assert!(
                    error.line >= 1 && error.column >= 1 && error.line <= lines + 1,
                    "{error}"
                );
            }
            None
        }
    }
}

fuzz_target!(|text: &str| {
    for format in [Format::Json, Format::Yaml] {
        if let Some(job) = judge(text, file::job_file("f", text, format)) {
            let violations = validate::job(&job.message);
            assert!(
                violations
                    .iter()
                    .all(|violation| violation.field == "cluster"),
                "{violations:?}"
            );
            if let Some(sweep) = &job.sweep
                && sweep::size(sweep).is_ok_and(|size| size < 100)
            {
                let _ = sweep::expand(sweep);
            }
        }
        judge(text, file::cluster_file("f", text, format));
        judge(text, file::file_server_file("f", text, format));
        judge(text, file::workspace_file("f", text, format));
    }
});

//! From a gRPC status to a sentence with the way out. Must never hide what the scheduler said.

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// A field of a request that the scheduler refused: path in the request, and why.
pub(crate) fn violations(status: &Status) -> Vec<(String, String)> {
    let details = status.get_error_details();
    let Some(bad_request) = details.bad_request() else {
        return Vec::new();
    };
    bad_request
        .field_violations
        .iter()
        .map(|violation| (violation.field.clone(), violation.description.clone()))
        .collect()
}

/// What went wrong, for a person.
pub(crate) fn describe(status: &Status) -> String {
    let message = status.message().trim();
    let violations = violations(status);
    if !violations.is_empty() {
        let fields = violations
            .iter()
            .map(|(field, why)| format!("{field}: {why}"));
        return fields.collect::<Vec<_>>().join("\n");
    }
    match way_out(status.code()) {
        _ if message.is_empty() => {
            format!("{} ({:?})", status.code().description(), status.code())
        }
        Some(way_out) => format!("{message}; {way_out}"),
        None => message.to_owned(),
    }
}

/// What to do about a code whose messages do not say it themselves. (The shared client does for a group that does not answer.)
fn way_out(code: Code) -> Option<&'static str> {
    match code {
        Code::Unauthenticated => {
            Some("check that `--tls-dir` holds a certificate of this cluster's authority")
        }
        Code::Unimplemented => Some("the scheduler is older than this command: upgrade it"),
        Code::Internal | Code::Unknown | Code::DataLoss => {
            Some("this is a fault of the scheduler: its log says more")
        }
        _ => None,
    }
}

/// Whether the resource is not there.
pub(crate) fn is_not_found(status: &Status) -> bool {
    status.code() == Code::NotFound
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_plain_refusal_keeps_its_own_words() {
        let status = Status::not_found(
            "there is no workspaces/w; `trainyard workspace list` shows those there are",
        );
        assert!(describe(&status).starts_with("there is no workspaces/w; "));
    }

    #[test]
    fn a_fault_of_the_scheduler_names_the_way_out() {
        assert!(describe(&Status::internal("overflow")).contains("its log says more"));
    }

    #[test]
    fn a_status_without_words_names_its_code() {
        assert!(describe(&Status::aborted("")).contains("Aborted"));
    }

    #[test]
    fn field_violations_are_listed() {
        let details = ErrorDetails::with_bad_request(vec![
            tonic_types::FieldViolation::new("nodeCount", "must be at least 1"),
            tonic_types::FieldViolation::new("cluster", "is required"),
        ]);
        let status = Status::with_error_details(Code::InvalidArgument, "bad job", details);
        assert_eq!(
            describe(&status),
            "nodeCount: must be at least 1\ncluster: is required"
        );
    }
}

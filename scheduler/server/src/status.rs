//! How refusals and failures travel: a gRPC status with typed `google.rpc` details.
//!
//! Every status of this daemon is made here, so that programs can rely on code, reason and details and never have to
//! read the text. It must never put a secret or a path of this machine into a text.

use std::collections::HashMap;
use std::time::Duration;

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use trainyard_core::{Refusal, RefusalKind};
use trainyard_replication::{ProposeError, ReadError};
use trainyard_shared::names::NameError;
use trainyard_shared::reason::DOMAIN;
pub use trainyard_shared::reason::LEADERSHIP_LOST;
use trainyard_shared::validate::FieldViolation;

/// Metadata that says where the leader is: `HOST:PORT`.
pub const LEADER_METADATA: &str = "trainyard-leader";
/// This member does not lead, and the request needs the leader.
pub const NOT_LEADER: &str = "NOT_LEADER";

/// The changes that a watch asks for are forgotten: the client lists again.
pub const REVISION_TOO_OLD: &str = "REVISION_TOO_OLD";
/// A limit of a quota is reached; the numbers are in the metadata of the details: `quota`, `limitName`, `used`, `limit`
/// and `wanted`.
pub const QUOTA_EXCEEDED: &str = "QUOTA_EXCEEDED";

/// What `core` refused.
pub fn refusal(refusal: &Refusal) -> Status {
    let (code, reason) = match refusal.kind {
        RefusalKind::NotFound => (Code::NotFound, "NOT_FOUND"),
        RefusalKind::AlreadyExists => (Code::AlreadyExists, "ALREADY_EXISTS"),
        RefusalKind::FailedPrecondition => (Code::FailedPrecondition, "FAILED_PRECONDITION"),
        RefusalKind::InvalidArgument => (Code::InvalidArgument, "INVALID_ARGUMENT"),
        RefusalKind::Aborted => (Code::Aborted, "CONFLICT"),
        RefusalKind::ResourceExhausted => (Code::ResourceExhausted, QUOTA_EXCEEDED),
    };
    let facts: HashMap<String, String> = refusal
        .facts
        .iter()
        .map(|(key, value)| ((*key).to_owned(), value.clone()))
        .collect();
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, facts);
    describe(&mut details, &refusal.resource, &refusal.message);
    for violation in &refusal.violations {
        details.add_bad_request_violation(&violation.field, &violation.message);
    }
    if refusal.kind == RefusalKind::FailedPrecondition {
        details.add_precondition_failure_violation(reason, &refusal.resource, &refusal.message);
    }
    if refusal.kind == RefusalKind::ResourceExhausted {
        // The subject is the limit, so that a program need not know which resource ran into it.
        let quota = refusal.facts.iter().find(|(key, _)| *key == "quota");
        let subject = quota.map_or(refusal.resource.as_str(), |(_, name)| name);
        details.add_quota_failure_violation(subject, &refusal.message);
    }
    Status::with_error_details(code, &refusal.message, details)
}

/// Fields of a request that break the rules.
pub fn invalid(resource: &str, violations: &[FieldViolation]) -> Status {
    let mut details = reasoned("INVALID_ARGUMENT");
    let mut texts = Vec::new();
    for violation in violations {
        details.add_bad_request_violation(&violation.field, &violation.message);
        texts.push(format!("{}: {}", violation.field, violation.message));
    }
    let message = texts.join("; ");
    describe(&mut details, resource, &message);
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// One field of a request that breaks a rule.
pub fn invalid_field(field: &str, message: impl Into<String>) -> Status {
    let violation = FieldViolation {
        field: field.to_owned(),
        message: message.into(),
    };
    invalid("", &[violation])
}

/// A name in a request that is none.
pub fn name(field: &str, error: &NameError) -> Status {
    invalid_field(field, error.to_string())
}

/// There is no such resource.
pub fn not_found(resource: &str) -> Status {
    refusal(&Refusal::not_found(resource))
}

/// A precondition that only the daemon knows of.
pub fn precondition(
    reason: &str,
    resource: &str,
    message: impl Into<String>,
    facts: impl IntoIterator<Item = (&'static str, String)>,
) -> Status {
    let message = message.into();
    let metadata: HashMap<String, String> = facts
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
    describe(&mut details, resource, &message);
    details.add_precondition_failure_violation(reason, resource, &message);
    Status::with_error_details(Code::FailedPrecondition, message, details)
}

/// A request for the leader that came to another member; `leader` is the leader's address, if it is known.
pub fn not_leader(leader: Option<&str>) -> Status {
    let message = match leader {
        Some(address) => format!("this member does not lead; {address} does"),
        None => "no member leads at the moment; retry shortly".to_owned(),
    };
    let mut status = unavailable(NOT_LEADER, message);
    if let Some(value) = leader.and_then(|a| MetadataValue::try_from(a).ok()) {
        status.metadata_mut().insert(LEADER_METADATA, value);
    }
    status
}

/// Something that passes; the client may retry, here or elsewhere.
pub fn unavailable(reason: &str, message: impl Into<String>) -> Status {
    let mut details = reasoned(reason);
    details.set_retry_info(Some(Duration::from_millis(100)));
    Status::with_error_details(Code::Unavailable, message, details)
}

/// The daemon is going down.
pub fn stopping() -> Status {
    unavailable("STOPPING", "this member is stopping; another one answers")
}

/// Too much is going on for one more.
pub fn exhausted(message: impl Into<String>) -> Status {
    Status::with_error_details(
        Code::ResourceExhausted,
        message,
        reasoned("RESOURCE_EXHAUSTED"),
    )
}

/// A position that is not known here any more; `oldest` is the first that is.
pub fn out_of_range(message: impl Into<String>, oldest: u64) -> Status {
    let facts = HashMap::from([("oldest_revision".to_owned(), oldest.to_string())]);
    let details = ErrorDetails::with_error_info(REVISION_TOO_OLD, DOMAIN, facts);
    Status::with_error_details(Code::OutOfRange, message, details)
}

/// A defect of the daemon. The text is for its log and a bug report.
pub fn internal(message: impl Into<String>) -> Status {
    let message = message.into();
    tracing::error!(%message, "internal error");
    Status::with_error_details(Code::Internal, message, reasoned("INTERNAL"))
}

/// A proposal without an outcome. `address_of` gives a member's address.
pub fn propose_error<'a>(
    error: &ProposeError,
    address_of: impl Fn(u64) -> Option<&'a str>,
) -> Status {
    match error {
        ProposeError::NotLeader { leader } => not_leader(leader.and_then(address_of)),
        ProposeError::Overloaded => unavailable("OVERLOADED", error.to_string()),
        ProposeError::TooLarge { .. } => Status::with_error_details(
            Code::InvalidArgument,
            format!("{error}: make the resource smaller"),
            reasoned("TOO_LARGE"),
        ),
        ProposeError::Uncertain => {
            Status::with_error_details(Code::Aborted, error.to_string(), reasoned(LEADERSHIP_LOST))
        }
        ProposeError::Stopped => stopping(),
    }
}

/// A read that could not be made linearizable.
pub fn read_error<'a>(error: &ReadError, address_of: impl Fn(u64) -> Option<&'a str>) -> Status {
    match error {
        ReadError::NotLeader { leader } => not_leader(leader.and_then(address_of)),
        ReadError::TimedOut => unavailable("NO_QUORUM", error.to_string()),
        ReadError::Overloaded => unavailable("OVERLOADED", error.to_string()),
        ReadError::Stopped => stopping(),
    }
}

fn reasoned(reason: &str) -> ErrorDetails {
    ErrorDetails::with_error_info(reason, DOMAIN, HashMap::<String, String>::new())
}

fn describe(details: &mut ErrorDetails, resource: &str, message: &str) {
    if !resource.is_empty() {
        details.set_resource_info(kind_of(resource), resource, "", message);
    }
}

/// The type of a resource by its name.
fn kind_of(resource: &str) -> &'static str {
    if resource == "quota" || resource.ends_with("/quota") {
        return "trainyard.v1.Quota";
    }
    match resource.rsplit('/').nth(1) {
        Some("workspaces") => "trainyard.v1.Workspace",
        Some("clusters") => "trainyard.v1.Cluster",
        Some("fileServers") => "trainyard.v1.FileServer",
        Some("experiments") => "trainyard.v1.Experiment",
        Some("jobs") => "trainyard.v1.Job",
        Some("nodes") => "trainyard.v1.Node",
        Some("nodeClasses") => "trainyard.v1.NodeClass",
        Some("members") => "trainyard.v1.Member",
        Some(_) | None => "trainyard.v1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_its_facts() {
        let status = refusal(&Refusal::invalid_field(
            "workspaces/w/clusters/c",
            "scaleSettings",
            "is wrong",
        ));
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().domain, DOMAIN);
        assert_eq!(
            details.resource_info().unwrap().resource_type,
            "trainyard.v1.Cluster"
        );
        let fields = &details.bad_request().unwrap().field_violations;
        assert_eq!(fields[0].field, "scaleSettings");
    }

    #[test]
    fn a_limit_that_is_reached_gives_its_numbers() {
        let mut over = Refusal::new(
            RefusalKind::ResourceExhausted,
            "workspaces/w/clusters/c",
            "1 of 1 clusters are used",
        );
        over.facts = vec![
            ("quota", "workspaces/w/quota".to_owned()),
            ("limitName", "clusters".to_owned()),
            ("used", "1".to_owned()),
        ];
        let status = refusal(&over);
        assert_eq!(status.code(), Code::ResourceExhausted);
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!(info.reason, QUOTA_EXCEEDED);
        assert_eq!(info.metadata["limitName"], "clusters");
        let violation = &details.quota_failure().unwrap().violations[0];
        assert_eq!(violation.subject, "workspaces/w/quota");
        assert_eq!(kind_of("quota"), "trainyard.v1.Quota");
        assert_eq!(kind_of("nodeClasses/c"), "trainyard.v1.NodeClass");
    }

    #[test]
    fn every_propose_error_has_a_code_and_a_reason() {
        let cases = [
            (
                ProposeError::NotLeader { leader: Some(2) },
                Code::Unavailable,
                NOT_LEADER,
            ),
            (ProposeError::Overloaded, Code::Unavailable, "OVERLOADED"),
            (
                ProposeError::TooLarge { bytes: 9, limit: 8 },
                Code::InvalidArgument,
                "TOO_LARGE",
            ),
            (ProposeError::Uncertain, Code::Aborted, LEADERSHIP_LOST),
            (ProposeError::Stopped, Code::Unavailable, "STOPPING"),
        ];
        for (error, code, reason) in cases {
            let status = propose_error(&error, |_| Some("b:2"));
            assert_eq!(status.code(), code, "{error}");
            assert_eq!(
                status.get_error_details().error_info().unwrap().reason,
                reason
            );
        }
        let hinted = propose_error(&ProposeError::NotLeader { leader: Some(2) }, |_| {
            Some("b:2")
        });
        assert_eq!(hinted.metadata().get(LEADER_METADATA).unwrap(), "b:2");
    }
}

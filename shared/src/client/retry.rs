//! What a failure means, how long to wait before the next attempt, and what to say in the end.

use std::error::Error;
use std::io;
use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::connect::{Connection, Servers};
use crate::reason;

/// Pauses grow from the first to the last; each is drawn between its half and its whole.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The connection could not be made or broke.
    Broken,
    /// As broken, by a certificate that one side does not accept. Repeating cannot help unless another
    /// scheduler thinks otherwise.
    Certificate,
    /// The scheduler answered that it cannot serve just now.
    Unavailable,
    /// The scheduler is connected and does not answer.
    Silent,
    /// An answer.
    Answer,
}

/// A failed attempt.
#[derive(Debug)]
pub(super) struct Failure {
    kind: Kind,
    status: Status,
    /// What to tell people, with the address.
    text: String,
}

impl Failure {
    /// A call that ended with `status`.
    pub(super) fn of_call(connection: &Connection, status: Status) -> Self {
        let kind = kind_of(&status);
        let cause = match (kind, status.source()) {
            (Kind::Broken | Kind::Certificate, Some(source)) => chain(source),
            _ => status.message().to_owned(),
        };
        Self {
            kind,
            text: format!("{}: {cause}", connection.address),
            status,
        }
    }

    /// A connection that could not be made.
    pub(super) fn of_connect(address: &str, error: &(dyn Error + Send + Sync + 'static)) -> Self {
        let kind = if is_certificate(error) {
            Kind::Certificate
        } else {
            Kind::Broken
        };
        Self::local(kind, format!("{address}: {}", chain(error)))
    }

    /// Every scheduler failed.
    pub(super) fn all(failures: Vec<Failure>) -> Self {
        let certificate =
            !failures.is_empty() && failures.iter().all(|f| f.kind == Kind::Certificate);
        let texts: Vec<String> = failures.into_iter().map(|failure| failure.text).collect();
        let kind = if certificate {
            Kind::Certificate
        } else {
            Kind::Broken
        };
        Self::local(kind, texts.join("; "))
    }

    /// A scheduler did not answer before the time had passed.
    pub(super) fn silent(connection: &Connection) -> Self {
        Self::local(
            Kind::Silent,
            format!("{}: connected, but no answer", connection.address),
        )
    }

    /// The time passed before any connection was made.
    pub(super) fn no_connection() -> Self {
        Self::local(Kind::Broken, "no connection".to_owned())
    }

    fn local(kind: Kind, text: String) -> Self {
        Self {
            kind,
            status: Status::unavailable(text.clone()),
            text,
        }
    }

    /// Whether the attempt may be repeated: it has no answer.
    pub(super) fn may_repeat(&self) -> bool {
        self.kind != Kind::Answer
    }

    /// Whether the connection is of no more use.
    pub(super) fn is_broken(&self) -> bool {
        matches!(self.kind, Kind::Broken | Kind::Certificate | Kind::Silent)
    }
}

fn kind_of(status: &Status) -> Kind {
    // tonic keeps a source only for what it made itself from errors of the connection.
    let local = match status.source() {
        Some(source) if is_certificate(source) => return Kind::Certificate,
        source => source.is_some(),
    };
    match status.code() {
        Code::Unknown | Code::Internal | Code::Cancelled | Code::Unavailable if local => {
            Kind::Broken
        }
        Code::Unavailable => Kind::Unavailable,
        Code::Aborted
            if status.get_details_error_info().is_some_and(|info| {
                info.domain == reason::DOMAIN && info.reason == reason::LEADERSHIP_LOST
            }) =>
        {
            Kind::Unavailable
        }
        _ => Kind::Answer,
    }
}

/// Whether TLS refused: the TLS layer reports its own errors, alerts of the peer among them, as invalid data.
fn is_certificate(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && io.kind() == io::ErrorKind::InvalidData
        {
            return true;
        }
        next = error.source();
    }
    false
}

/// An error with its causes, each said once.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = cause.source();
    }
    text
}

/// What to do after a failure.
#[derive(Debug)]
pub(super) enum Next {
    /// Try again after this pause.
    Wait(Duration),
    /// Tell the caller.
    GiveUp(Status),
}

/// Counts the failures of one call or stream.
#[derive(Debug)]
pub(super) struct Retry {
    addresses: Vec<String>,
    timeout: Duration,
    deadline: Option<Instant>,
    failures: u32,
    certificate_failures: usize,
}

impl Retry {
    /// For a call, with its `deadline`; for a stream without: there the time counts from the first failure after the
    /// last message.
    pub(super) fn new(servers: &Servers, timeout: Duration, deadline: Option<Instant>) -> Self {
        Self {
            addresses: servers.addresses().to_vec(),
            timeout,
            deadline,
            failures: 0,
            certificate_failures: 0,
        }
    }

    /// The stream got a message: what failed before is past.
    pub(super) fn progress(&mut self) {
        self.deadline = None;
        self.failures = 0;
        self.certificate_failures = 0;
    }

    /// What to do after this failure.
    pub(super) fn next(&mut self, failure: Failure) -> Next {
        let now = Instant::now();
        let deadline = *self.deadline.get_or_insert(now + self.timeout);
        self.failures = self.failures.saturating_add(1);
        match failure.kind {
            Kind::Answer => return Next::GiveUp(failure.status),
            Kind::Certificate => self.certificate_failures += 1,
            Kind::Broken | Kind::Unavailable | Kind::Silent => self.certificate_failures = 0,
        }
        if self.certificate_failures >= self.addresses.len() {
            return Next::GiveUp(Status::unauthenticated(format!(
                "TLS refused: {}; the certificate of this side and the authority of the schedulers must come from the \
                 same `trainyard-scheduler init`",
                failure.text
            )));
        }
        let pause = self.pause();
        if failure.kind == Kind::Silent || now + pause >= deadline {
            return Next::GiveUp(self.exhausted(&failure));
        }
        Next::Wait(pause)
    }

    /// At once while there may be a scheduler that was not asked yet; then ever longer.
    fn pause(&self) -> Duration {
        let asked = u32::try_from(self.addresses.len()).unwrap_or(u32::MAX);
        let Some(round) = self.failures.checked_sub(asked) else {
            return Duration::ZERO;
        };
        let whole = FIRST_PAUSE
            .saturating_mul(1 << round.min(16))
            .min(LAST_PAUSE);
        whole.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    fn exhausted(&self, failure: &Failure) -> Status {
        let message = format!(
            "no scheduler answered within {} s (asked {}); last: {}; check that a majority of the schedulers runs and \
             that their addresses are right",
            self.timeout.as_secs_f64(),
            self.addresses.join(", "),
            failure.text,
        );
        match failure.kind {
            Kind::Silent => Status::deadline_exceeded(message),
            Kind::Broken | Kind::Certificate | Kind::Unavailable | Kind::Answer => {
                Status::unavailable(message)
            }
        }
    }
}

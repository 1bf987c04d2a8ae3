//! Reasons that stand in `google.rpc.ErrorInfo` of a refused call, for programs that must tell refusals of one code
//! apart. People read the message instead.

/// `domain` of every `ErrorInfo` of Trainyard.
pub const DOMAIN: &str = "trainyard";

/// With ABORTED: the member lost its leadership while the command was on its way. It may have been committed or not:
/// repeat it with the same request id.
pub const LEADERSHIP_LOST: &str = "LEADERSHIP_LOST";

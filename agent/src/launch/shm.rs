//! `containerSettings.shmSize` where the image is bound to the host: the node's own `/dev/shm` must be that large.
//!
//! A container would get one of its own; a host's cannot be made larger for one job, so that the job is refused instead
//! of failing in the middle of an epoch.

use trainyard_proto::v1::JobSpec;

use super::LaunchError;

const FIELD: &str = "containerSettings.shmSize";

/// Bytes that the job wants; `None`: it names no size.
pub(super) fn wanted(spec: &JobSpec) -> Result<Option<u64>, LaunchError> {
    let text = spec
        .container_settings
        .as_ref()
        .map_or("", |settings| settings.shm_size.trim());
    if text.is_empty() {
        return Ok(None);
    }
    bytes(text).map(Some).ok_or_else(|| {
        LaunchError::new(
            FIELD,
            format!("`{text}` is no size; write one such as 512m or 16gb"),
        )
    })
}

/// As docker reads it: a number and `b`, `k`, `m` or `g`, with or without a `b` behind; alone it is bytes.
fn bytes(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &lower[digits.len()..] {
        "" | "b" => 0,
        "k" | "kb" => 10,
        "m" | "mb" => 20,
        "g" | "gb" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// In the helper: compares with what the node has.
pub(super) fn check(wanted: u64) -> Result<(), String> {
    let found = nix::sys::statvfs::statvfs("/dev/shm")
        .map_err(|error| format!("{FIELD}: this node's /dev/shm cannot be used: {error}"))?;
    let size = found.blocks().saturating_mul(found.fragment_size());
    if size >= wanted {
        return Ok(());
    }
    Err(format!(
        "{FIELD}: the job wants {wanted} bytes, and this node's /dev/shm has {size}; the image is bound to the host, so \
         enlarge it there (mount -o remount,size={wanted} /dev/shm) or ask for less"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        let cases = [
            ("64", Some(64)),
            ("64b", Some(64)),
            ("2k", Some(2048)),
            ("512m", Some(512 << 20)),
            ("16GB", Some(16 << 30)),
            ("16t", None),
            ("g", None),
            ("99999999999999999g", None),
        ];
        for (text, wanted) in cases {
            assert_eq!(bytes(text), wanted, "{text}");
        }
    }

    #[test]
    fn a_node_with_too_little_says_how_much_it_has() {
        assert_eq!(check(1), Ok(()));
        let error = check(u64::MAX).unwrap_err();
        assert!(error.starts_with("containerSettings.shmSize: "), "{error}");
        assert!(error.contains("remount"), "{error}");
    }
}

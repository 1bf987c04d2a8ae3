//! Keys that the reader leaves out though the protocol has them, and what it says about keys that nobody knows.

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

const BY_SCHEDULER: &str = "set by the scheduler; ignored";
const NAMED_APART: &str = "ignored: the name is given beside the file, not in it";
const NO_KEYS: &str = "ignored: storage is bound by the workspace and needs no key";
/// By message and key: why the key is left out.
const IGNORED: &[(&str, &[&str], &str)] = &[
    ("AzureFileShareReference", &["credentials"], NO_KEYS),
    ("AzureBlobFileSystemReference", &["credentials"], NO_KEYS),
    ("SetupTask", &["stdOutErrPathSuffix"], BY_SCHEDULER),
    ("Workspace", &["name"], NAMED_APART),
    ("Cluster", &["name"], NAMED_APART),
    ("FileServer", &["name"], NAMED_APART),
    (
        "Workspace",
        &["creationTime", "provisioningState", "etag", "uid"],
        BY_SCHEDULER,
    ),
    (
        "FileServer",
        &[
            "creationTime",
            "provisioningState",
            "provisioningStateTransitionTime",
            "etag",
            "uid",
            "mountSettings",
            "errors",
            "capacityBytes",
            "freeBytes",
        ],
        BY_SCHEDULER,
    ),
    (
        "Cluster",
        &[
            "creationTime",
            "provisioningState",
            "allocationState",
            "allocationStateTransitionTime",
            "errors",
            "currentNodeCount",
            "nodeStateCounts",
            "etag",
            "uid",
            "nodes",
            "targetNodeCount",
            "nodeClass",
            "allocationReason",
            "sequence",
            "followsJobs",
        ],
        BY_SCHEDULER,
    ),
];

const ARM: &str = "ignored: the name is given beside the file, and the kind is known";

/// Keys of files that were written for Batch AI, by message (empty: whatever the file describes): what replaces them.
const LEGACY: &[(&str, &[&str], &str)] = &[
    (
        "JobSpec",
        &["priority"],
        "of the 2017-09 API, ignored; write schedulingPriority: low, normal or high",
    ),
    (
        "JobSpec",
        &["toolType"],
        "ignored: the settings object that is present says which toolkit it is",
    ),
    (
        "JobSpec",
        &["experimentName"],
        "ignored: the experiment is named beside the file, with `-e`",
    ),
    (
        "JobSpec",
        &[
            "creationTime",
            "provisioningState",
            "provisioningStateTransitionTime",
            "executionState",
            "executionStateTransitionTime",
            "executionInfo",
            "jobOutputDirectoryPathSegment",
        ],
        BY_SCHEDULER,
    ),
    (
        "Cluster",
        &["provisioningStateTransitionTime"],
        BY_SCHEDULER,
    ),
    (
        "OutputDirectory",
        &["createNew"],
        "of the 2017-09 API, ignored: output directories are always made",
    ),
    (
        "OutputDirectory",
        &["type"],
        "of the 2017-09 API, ignored: an output directory may hold anything",
    ),
    (
        "SetupTask",
        &["runElevated"],
        "of older APIs, ignored: the setup task always runs as root",
    ),
    (
        "",
        &["location"],
        "ignored: a workspace alone has a location",
    ),
    ("", &["id", "name", "type", "apiVersion"], ARM),
];

/// Why that field is left out; None: it is read.
pub(super) fn ignored(field: &FieldDescriptor) -> Option<&'static str> {
    let parent = field.parent_message();
    let found = IGNORED
        .iter()
        .find(|(message, keys, _)| *message == parent.name() && keys.contains(&field.json_name()));
    found.map(|(_, _, why)| *why)
}

/// What to say about a key that `message` does not have; `root` is the message of the whole file.
pub(super) fn unknown(key: &str, message: &MessageDescriptor, root: &MessageDescriptor) -> String {
    const UNKNOWN: &str = "unknown key, ignored";
    let legacy = LEGACY.iter().find(|(of, keys, _)| {
        let fits = *of == message.name() || (of.is_empty() && message == root);
        fits && keys.contains(&key)
    });
    if let Some((_, _, why)) = legacy {
        return (*why).to_owned();
    }
    if let Some(meant) = closest(key, message) {
        return format!("{UNKNOWN}; did you mean {meant}?");
    }
    let inside: Vec<String> = message
        .fields()
        .filter(|field| match field.kind() {
            // Names and ids of the entries of lists say nothing.
            Kind::Message(inner) => {
                !field.is_list() && !field.is_map() && inner.get_field_by_json_name(key).is_some()
            }
            _ => false,
        })
        .map(|field| field.json_name().to_owned())
        .collect();
    match inside.as_slice() {
        [] => {}
        [place] => return format!("{UNKNOWN}; it belongs into {place}"),
        places => return format!("{UNKNOWN}; it belongs into one of {}", places.join(", ")),
    }
    if message != root && root.get_field_by_json_name(key).is_some() {
        return format!("{UNKNOWN}; it belongs to the outermost object");
    }
    UNKNOWN.to_owned()
}

/// The key that a misspelt one may stand for: the same but for case and separators, or one or two typing errors away.
fn closest(key: &str, message: &MessageDescriptor) -> Option<String> {
    const LONGEST: usize = 64;
    if key.len() > LONGEST {
        return None;
    }
    let bare = |text: &str| -> Vec<char> {
        text.chars()
            .filter(|c| !matches!(c, '_' | '-' | ' '))
            .map(|c| c.to_ascii_lowercase())
            .collect()
    };
    let wanted = bare(key);
    let names = || message.fields().map(|field| field.json_name().to_owned());
    let near = names()
        .map(|name| (distance(&wanted, &bare(&name)), name))
        .filter(|(distance, name)| *distance * 4 <= name.len().min(8))
        .min()
        .map(|(_, name)| name);
    near.or_else(|| {
        // The beginning of one key, as command is of commandLine.
        let mut longer =
            names().filter(|name| wanted.len() >= 4 && bare(name).starts_with(&wanted));
        longer.next().filter(|_| longer.next().is_none())
    })
}

/// Letters to insert, delete or replace (Levenshtein).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reflect::descriptor;
    use trainyard_proto::v1::{Cluster, JobSpec};

    #[test]
    fn every_ignored_key_exists() {
        for (message, keys, _) in IGNORED {
            let pool = descriptor::<Cluster>().unwrap();
            let pool = pool.parent_pool();
            let message = pool
                .get_message_by_name(&format!("trainyard.v1.{message}"))
                .unwrap();
            for key in *keys {
                assert!(
                    message.get_field_by_json_name(key).is_some(),
                    "{message:?} {key}"
                );
            }
        }
    }

    /// What only the scheduler writes must not come from a file, or it would be accepted and ignored without a word.
    #[test]
    fn every_output_only_field_is_ignored() {
        let root = descriptor::<Cluster>().unwrap();
        let source = include_str!("../../../proto/trainyard/v1/resources.proto");
        let (mut message, mut comment, mut found) = (String::new(), String::new(), 0);
        for line in source.lines().map(str::trim) {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["message", name, "{"] => message = (*name).to_owned(),
                ["//", ..] => comment.push_str(&line[2..]),
                [.., name, "=", _] if comment.trim().starts_with("Output only") => {
                    let of = root.parent_pool();
                    let of = of
                        .get_message_by_name(&format!("trainyard.v1.{message}"))
                        .unwrap();
                    let field = of.get_field_by_name(name).unwrap();
                    if matches!(
                        message.as_str(),
                        "Workspace" | "Cluster" | "FileServer" | "SetupTask"
                    ) {
                        found += 1;
                        assert!(ignored(&field).is_some(), "{message}.{name}");
                    }
                    comment.clear();
                }
                _ => comment.clear(),
            }
        }
        assert!(found > 25, "{found}");
    }

    #[test]
    fn a_misspelt_or_misplaced_key_is_explained() {
        let root = descriptor::<JobSpec>().unwrap();
        let settings = root.get_field_by_json_name("torchrunSettings").unwrap();
        let Kind::Message(settings) = settings.kind() else {
            panic!()
        };
        for (key, message, expected) in [
            ("node_count", &root, "did you mean nodeCount?"),
            ("NodeCount", &root, "did you mean nodeCount?"),
            ("nodeCuont", &root, "did you mean nodeCount?"),
            ("pytorchSettings", &root, "did you mean pyTorchSettings?"),
            ("stdOutErrPath", &root, "did you mean stdOutErrPathPrefix?"),
            ("name", &root, "the kind is known"),
            (
                "priority",
                &root,
                "write schedulingPriority: low, normal or high",
            ),
            ("nprocPerNode", &root, "it belongs into torchrunSettings"),
            ("mountPath", &root, "unknown key, ignored"),
            ("nodeCount", &settings, "it belongs to the outermost object"),
            ("createNew", &root, "unknown key, ignored"),
        ] {
            let text = unknown(key, message, &root);
            assert!(text.ends_with(expected), "{key}: {text}");
        }
    }
}

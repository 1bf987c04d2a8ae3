//! Update masks: which fields a request changes. A path that is unknown or cannot be changed is refused by name, so that
//! no wish is ever dropped silently.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use prost::Message as _;
use prost_types::{FieldMask, FileDescriptorSet};
use tonic::Status;
use trainyard_proto::FILE_DESCRIPTOR_SET;

use crate::status;

/// Fields of the messages of the protocol, by the message's name.
static FIELDS: LazyLock<BTreeMap<String, BTreeSet<String>>> = LazyLock::new(|| {
    let files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap_or_default();
    files
        .file
        .iter()
        .filter(|file| file.package() == "trainyard.v1")
        .flat_map(|file| &file.message_type)
        .map(|message| {
            let fields = message.field.iter().map(|field| field.name().to_owned());
            (message.name().to_owned(), fields.collect())
        })
        .collect()
});

/// The paths of a mask, each one of `mutable`. `message` is the kind of resource: `Cluster`.
pub(super) fn paths(
    mask: Option<&FieldMask>,
    message: &str,
    mutable: &[&'static str],
) -> Result<BTreeSet<&'static str>, Status> {
    let paths = mask.map(|mask| mask.paths.as_slice()).unwrap_or_default();
    let can = mutable.join(", ");
    if paths.is_empty() {
        let text = format!("names no field; name what to change: {can}");
        return Err(status::invalid_field("update_mask", text));
    }
    let mut found = BTreeSet::new();
    for path in paths {
        if let Some(known) = mutable.iter().find(|known| *known == path) {
            found.insert(*known);
            continue;
        }
        let whole = path.split('.').next().unwrap_or_default();
        let text = if mutable.contains(&whole) {
            format!("{path:?}: {whole} is changed as a whole; name {whole:?}")
        } else if FIELDS
            .get(message)
            .is_some_and(|fields| fields.contains(whole))
        {
            format!("{path:?} cannot be changed; what can: {can}")
        } else {
            format!("{path:?} is no field of a {message}; what can be changed: {can}")
        };
        return Err(status::invalid_field("update_mask", text));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_is_known_and_changeable_or_refused_by_name() {
        let mask = |paths: &[&str]| FieldMask {
            paths: paths.iter().map(|p| (*p).to_owned()).collect(),
        };
        let ask = |given: &[&str]| paths(Some(&mask(given)), "Cluster", &["scale_settings"]);
        assert_eq!(
            ask(&["scale_settings"]).unwrap(),
            BTreeSet::from(["scale_settings"])
        );
        for (given, text) in [
            (vec![], "names no field"),
            (vec!["vm_size"], "\"vm_size\" cannot be changed"),
            (vec!["etag"], "\"etag\" cannot be changed"),
            (
                vec!["scale_settings", "colour"],
                "\"colour\" is no field of a Cluster",
            ),
            (vec!["*"], "\"*\" is no field of a Cluster"),
            (vec!["scale_settings.manual"], "changed as a whole"),
        ] {
            let refused = ask(&given).unwrap_err();
            assert!(refused.message().contains(text), "{refused}");
        }
        assert!(paths(None, "Cluster", &["scale_settings"]).is_err());
    }
}

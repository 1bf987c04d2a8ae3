//! The page on compatibility says something about every field of the protocol and of Batch AI's schemas, and nothing about
//! fields that do not exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use prost_reflect::{DescriptorPool, Kind, MessageDescriptor};
use serde_json::Value;

const VERDICTS: [&str; 4] = ["same", "mapped", "refused", "own"];
const ROOTS: [&str; 6] = [
    "Workspace",
    "Experiment",
    "FileServer",
    "Cluster",
    "Job",
    "ParameterSweep",
];
/// Definitions of the schemas that have another name here.
const RENAMED: [(&str, &str); 5] = [
    ("JobBaseProperties", "JobSpec"),
    ("ClusterBaseProperties", "Cluster"),
    ("FileServerBaseProperties", "ManagedFileServer"),
    ("JobBasePropertiesConstraints", "JobConstraints"),
    ("CNTKsettings", "CntkSettings"),
];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)).unwrap()
}

/// By section: the words in the first column of its table.
fn sections(page: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut sections: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut section = "";
    let mut rows = 0;
    for line in page.lines() {
        if let Some(title) = line
            .strip_prefix("### ")
            .or_else(|| line.strip_prefix("## "))
        {
            section = title;
            sections.entry(section).or_default();
        }
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        if !line.starts_with("| ") || cells.get(1) == Some(&"here") {
            continue;
        }
        rows += 1;
        assert_eq!(cells.len(), 3, "{section}: {line}");
        assert!(VERDICTS.contains(&cells[1]), "{section}: {line}");
        let word = cells[0].trim_matches('`');
        assert!(
            sections.get_mut(section).unwrap().insert(word),
            "{section}: {word} twice"
        );
    }
    assert!(rows > 300, "{rows}");
    sections
}

fn reachable(pool: &DescriptorPool) -> Vec<MessageDescriptor> {
    let mut found: Vec<MessageDescriptor> = Vec::new();
    let mut waiting: Vec<MessageDescriptor> = ROOTS
        .iter()
        .map(|name| {
            pool.get_message_by_name(&format!("trainyard.v1.{name}"))
                .unwrap()
        })
        .collect();
    while let Some(message) = waiting.pop() {
        if found.contains(&message)
            || message.is_map_entry()
            || message.package_name() != "trainyard.v1"
        {
            continue;
        }
        waiting.extend(message.fields().filter_map(|field| match field.kind() {
            Kind::Message(inner) => Some(inner),
            _ => None,
        }));
        found.push(message);
    }
    found
}

#[test]
fn the_page_on_compatibility_names_every_field() {
    let page = read("docs/batchai-compatibility.md");
    let sections = sections(&page);
    let pool = DescriptorPool::decode(trainyard_proto::FILE_DESCRIPTOR_SET).unwrap();
    for message in reachable(&pool) {
        let known = sections.get(message.name());
        let known = known.unwrap_or_else(|| panic!("no section on {}", message.name()));
        let fields: Vec<String> = message
            .fields()
            .map(|field| field.json_name().to_owned())
            .collect();
        let fields: BTreeSet<&str> = fields.iter().map(String::as_str).collect();
        assert_eq!(*known, fields, "{}", message.name());
        for field in message.fields() {
            let Kind::Enum(kind) = field.kind() else {
                continue;
            };
            // States of an attempt on a node are for those who look into an attempt.
            let Some(values) = sections.get(kind.name()) else {
                continue;
            };
            assert_eq!(values.len(), kind.values().len() - 1, "{}", kind.name());
        }
    }
    for kind in ["job", "cluster", "nfs"] {
        let schema: Value =
            serde_json::from_str(&read(&format!("tests/data/schemas/{kind}.json"))).unwrap();
        for (definition, schema) in schema["definitions"].as_object().unwrap() {
            if definition.ends_with("_childResource") {
                continue;
            }
            let renamed = RENAMED.iter().find(|(theirs, _)| theirs == definition);
            let name = renamed.map_or(definition.as_str(), |(_, ours)| ours);
            for key in schema["properties"].as_object().unwrap().keys() {
                assert!(sections[name].contains(key.as_str()), "{name}.{key}");
            }
        }
    }
}

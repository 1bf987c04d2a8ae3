//! What administrators write: node classes and limits.

use prost::Message;
use trainyard_proto::v1::{NodeClass, Quota};

use super::checks::Checker;
use super::{FieldViolation, MAX_NODES};
use crate::names::check_id;

/// Most other names of a node class.
const MAX_ALIASES: usize = 32;
/// Most hours that a limit can name: ten thousand GPUs for a thousand years.
const MAX_GPU_HOURS: f64 = 1e11;
/// Longest period of a limit: a hundred years.
const MAX_PERIOD_S: i64 = 100 * 366 * 86_400;

/// Everything that is wrong with a node class, its name apart.
#[must_use]
pub fn node_class(class: &NodeClass) -> Vec<FieldViolation> {
    let mut c = Checker::new();
    c.size(class.encoded_len());
    if class.aliases.len() > MAX_ALIASES {
        c.wrong(
            "aliases",
            format!(
                "{} names; at most {MAX_ALIASES} are taken",
                class.aliases.len()
            ),
        );
    }
    for (index, alias) in class.aliases.iter().enumerate() {
        if let Err(error) = check_id("node class", alias) {
            c.wrong(&format!("aliases[{index}]"), error.to_string());
        }
    }
    let folded: Vec<String> = class.aliases.iter().map(|a| a.to_lowercase()).collect();
    for (index, alias) in folded.iter().enumerate() {
        if folded.iter().position(|other| other == alias) != Some(index) {
            c.wrong(
                &format!("aliases[{index}]"),
                format!("{alias:?} stands twice; names are compared without regard to case"),
            );
        }
    }
    if let Some(wanted) = &class.r#match {
        c.within("match", |c| {
            c.plain("gpuModel", &wanted.gpu_model, 256);
            if let Some(image) = &wanted.image {
                c.within("image", |c| {
                    for (key, value) in [
                        ("publisher", &image.publisher),
                        ("offer", &image.offer),
                        ("sku", &image.sku),
                        ("version", &image.version),
                        ("virtualMachineImageId", &image.virtual_machine_image_id),
                    ] {
                        c.plain(key, value, 256);
                    }
                });
            }
        });
    }
    c.finish()
}

/// Everything that is wrong with limits, their name apart.
#[must_use]
pub fn quota(quota: &Quota) -> Vec<FieldViolation> {
    let mut c = Checker::new();
    if quota.nodes.is_some_and(|nodes| nodes > 100 * MAX_NODES) {
        c.wrong(
            "nodes",
            format!(
                "at most {} can be named; leave it out for no limit",
                100 * MAX_NODES
            ),
        );
    }
    // Not a number fails every comparison.
    if let Some(hours) = quota.gpu_hours
        && !(0.0..=MAX_GPU_HOURS).contains(&hours)
    {
        c.wrong(
            "gpuHours",
            "write a number from 0, which forbids, to 1e11; leave it out for no limit",
        );
    }
    if let Some(period) = &quota.gpu_hours_period {
        let whole = period.nanos == 0 && (1..=MAX_PERIOD_S).contains(&period.seconds);
        if !whole {
            c.wrong(
                "gpuHoursPeriod",
                "write whole seconds, from 1 s to a hundred years, such as P30D",
            );
        }
    }
    c.finish()
}

#[cfg(test)]
mod tests {
    use prost_types::Duration;
    use trainyard_proto::v1::NodeClassMatch;

    use super::*;

    fn fields(found: &[FieldViolation]) -> Vec<&str> {
        found.iter().map(|v| v.field.as_str()).collect()
    }

    #[test]
    fn aliases_are_ids_and_stand_once() {
        let class = |aliases: &[&str]| NodeClass {
            aliases: aliases.iter().map(|a| (*a).to_owned()).collect(),
            r#match: Some(NodeClassMatch::default()),
            ..NodeClass::default()
        };
        assert!(node_class(&class(&["STANDARD_NC6", "gpu-1"])).is_empty());
        assert_eq!(
            fields(&node_class(&class(&["a b", "x", "X"]))),
            ["aliases[0]", "aliases[2]"]
        );
        assert_eq!(
            fields(&node_class(&class(&["a/b"; 33]))).first(),
            Some(&"aliases")
        );
    }

    #[test]
    fn limits_are_in_range() {
        let good = Quota {
            clusters: Some(0),
            gpu_hours: Some(0.5),
            gpu_hours_period: Some(Duration {
                seconds: 86_400,
                nanos: 0,
            }),
            ..Quota::default()
        };
        assert!(quota(&good).is_empty());
        assert!(quota(&Quota::default()).is_empty());
        for hours in [-1.0, f64::NAN, f64::INFINITY, 1e12] {
            let found = quota(&Quota {
                gpu_hours: Some(hours),
                ..Quota::default()
            });
            assert_eq!(fields(&found), ["gpuHours"], "{hours}");
        }
        for (seconds, nanos) in [(0, 0), (-1, 0), (1, 1), (i64::MAX, 0)] {
            let found = quota(&Quota {
                gpu_hours_period: Some(Duration { seconds, nanos }),
                ..Quota::default()
            });
            assert_eq!(fields(&found), ["gpuHoursPeriod"], "{seconds}.{nanos}");
        }
    }
}

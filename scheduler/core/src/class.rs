//! Which nodes fit which cluster: class, image, user. The one definition, used to plan, to verify and to explain.
//!
//! A node's class is a declared one where its agent names it (or an alias of it), or, when the agent's class is not its
//! own setting, where the inventory matches; else the class that the agent reports. It must never depend on anything
//! but the node and the declared classes, so that it can be resolved again whenever these change.

use trainyard_proto::v1::{Cluster, Gpu, ImageReference, Inventory, Node, NodeClass};

use crate::state::State;

/// What keeps a node out of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Misfit {
    /// Another class.
    Class,
    /// Another image.
    Image,
    /// The cluster's user may not run tasks there.
    User,
}

/// Last segment of the name of a declared class.
pub(crate) fn id(class: &NodeClass) -> &str {
    class.name.rsplit('/').next().unwrap_or(&class.name)
}

/// Whether the class goes by this name: its own or an alias, without regard to case.
pub(crate) fn goes_by(class: &NodeClass, name: &str) -> bool {
    id(class).eq_ignore_ascii_case(name)
        || class.aliases.iter().any(|a| a.eq_ignore_ascii_case(name))
}

/// Class that the cluster takes nodes of; empty: whichever comes first.
pub(crate) fn wanted_class(cluster: &Cluster) -> &str {
    if cluster.vm_size.is_empty() {
        &cluster.node_class
    } else {
        &cluster.vm_size
    }
}

/// User that runs the cluster's jobs; empty: the default of each node.
pub(crate) fn user_of(cluster: &Cluster) -> &str {
    cluster
        .user_account_settings
        .as_ref()
        .map_or("", |u| u.admin_user_name.as_str())
}

/// Image that the cluster's nodes must have.
pub(crate) fn image_of(cluster: &Cluster) -> Option<&ImageReference> {
    cluster
        .virtual_machine_configuration
        .as_ref()?
        .image_reference
        .as_ref()
}

/// An image for people: `publisher/offer/sku/version`, what is not said left out.
pub(crate) fn image_text(image: &ImageReference) -> String {
    [
        &image.publisher,
        &image.offer,
        &image.sku,
        &image.version,
        &image.virtual_machine_image_id,
    ]
    .into_iter()
    .filter(|part| !part.is_empty())
    .map(String::as_str)
    .collect::<Vec<_>>()
    .join("/")
}

impl State {
    /// Whether the cluster may hold the node; the first thing that keeps it out.
    pub(crate) fn fit(&self, cluster: &Cluster, node: &Node) -> Result<(), Misfit> {
        if !self.is_of_class(node, wanted_class(cluster)) {
            return Err(Misfit::Class);
        }
        let inventory = node.inventory.as_ref();
        if image_of(cluster)
            .is_some_and(|wanted| !image_fits(wanted, inventory.and_then(|i| i.image.as_ref())))
        {
            return Err(Misfit::Image);
        }
        let user = user_of(cluster);
        if !user.is_empty()
            && !inventory.is_some_and(|i| i.task_users.iter().any(|known| known == user))
        {
            return Err(Misfit::User);
        }
        Ok(())
    }

    /// Whether the node's class goes by this name. Empty: any.
    pub(crate) fn is_of_class(&self, node: &Node, name: &str) -> bool {
        name.is_empty()
            || node.node_class.eq_ignore_ascii_case(name)
            || node.reported_node_class.eq_ignore_ascii_case(name)
            || self
                .declared_class(&node.node_class)
                .is_some_and(|class| goes_by(class, name))
    }

    /// The declared class that goes by this name.
    pub(crate) fn declared_class(&self, name: &str) -> Option<&NodeClass> {
        self.node_classes.values().find(|c| goes_by(c, name))
    }

    /// The class of a node, from its agent's words and what is declared now.
    pub(crate) fn resolve_class(&self, node: &Node) -> String {
        if let Some(class) = self.declared_class(&node.reported_node_class) {
            return id(class).to_owned();
        }
        let matching = self
            .node_classes
            .values()
            .filter(|_| !node.node_class_is_set)
            .find(|class| matches(class, node.inventory.as_ref()));
        matching.map_or_else(|| node.reported_node_class.clone(), |c| id(c).to_owned())
    }
}

/// Whether hardware and image are those of the class. A class without a match is only ever set by an agent.
fn matches(class: &NodeClass, inventory: Option<&Inventory>) -> bool {
    let Some((wanted, inventory)) = class.r#match.as_ref().zip(inventory) else {
        return false;
    };
    let model = wanted.gpu_model.to_lowercase();
    let has_model = |gpu: &Gpu| gpu.model.to_lowercase().contains(&model);
    let gpus = u32::try_from(inventory.gpus.len()).unwrap_or(u32::MAX);
    (model.is_empty() || (gpus > 0 && inventory.gpus.iter().all(has_model)))
        && wanted.gpu_count.is_none_or(|count| count == gpus)
        && inventory.cpus >= wanted.min_cpus
        && inventory.memory_bytes >= wanted.min_memory_bytes
        && wanted
            .image
            .as_ref()
            .is_none_or(|image| image_fits(image, inventory.image.as_ref()))
}

/// Whether every part that is wanted is what the node has, without regard to case; version `latest` is any.
fn image_fits(wanted: &ImageReference, has: Option<&ImageReference>) -> bool {
    let none = ImageReference::default();
    let has = has.unwrap_or(&none);
    let same = |wanted: &str, has: &str| wanted.is_empty() || wanted.eq_ignore_ascii_case(has);
    same(&wanted.publisher, &has.publisher)
        && same(&wanted.offer, &has.offer)
        && same(&wanted.sku, &has.sku)
        && (wanted.version.eq_ignore_ascii_case("latest") || same(&wanted.version, &has.version))
        && same(
            &wanted.virtual_machine_image_id,
            &has.virtual_machine_image_id,
        )
}

#[cfg(test)]
mod tests {
    use trainyard_proto::v1::NodeClassMatch;

    use super::*;

    fn image(publisher: &str, version: &str) -> ImageReference {
        ImageReference {
            publisher: publisher.to_owned(),
            version: version.to_owned(),
            ..ImageReference::default()
        }
    }

    #[test]
    fn an_image_fits_when_every_part_that_is_wanted_is_there() {
        let has = image("debian", "12");
        for (wanted, fits) in [
            (image("", ""), true),
            (image("Debian", "latest"), true),
            (image("debian", "12"), true),
            (image("debian", "11"), false),
            (image("canonical", ""), false),
        ] {
            assert_eq!(image_fits(&wanted, Some(&has)), fits, "{wanted:?}");
        }
        assert!(!image_fits(&image("debian", ""), None), "nothing is known");
        assert_eq!(image_text(&image("debian", "12")), "debian/12");
    }

    #[test]
    fn hardware_matches_by_model_count_processors_and_memory() {
        let inventory = Inventory {
            cpus: 16,
            memory_bytes: 64,
            gpus: vec![Gpu {
                model: "NVIDIA H100 80GB".to_owned(),
                ..Gpu::default()
            }],
            ..Inventory::default()
        };
        let class = |wanted: NodeClassMatch| NodeClass {
            name: "nodeClasses/c".to_owned(),
            r#match: Some(wanted),
            ..NodeClass::default()
        };
        let any = NodeClassMatch::default;
        for (wanted, fits) in [
            (any(), true),
            (
                NodeClassMatch {
                    gpu_model: "h100".to_owned(),
                    ..any()
                },
                true,
            ),
            (
                NodeClassMatch {
                    gpu_model: "a100".to_owned(),
                    ..any()
                },
                false,
            ),
            (
                NodeClassMatch {
                    gpu_count: Some(1),
                    ..any()
                },
                true,
            ),
            (
                NodeClassMatch {
                    gpu_count: Some(0),
                    ..any()
                },
                false,
            ),
            (
                NodeClassMatch {
                    min_cpus: 17,
                    ..any()
                },
                false,
            ),
            (
                NodeClassMatch {
                    min_memory_bytes: 65,
                    ..any()
                },
                false,
            ),
        ] {
            assert_eq!(
                matches(&class(wanted.clone()), Some(&inventory)),
                fits,
                "{wanted:?}"
            );
        }
        let unmatched = NodeClass {
            r#match: None,
            ..class(any())
        };
        assert!(!matches(&unmatched, Some(&inventory)), "set by agents only");
    }
}

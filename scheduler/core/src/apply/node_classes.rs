//! Node classes: declare, withdraw, read. Nodes get their class anew whenever the declared ones change.
//!
//! A class that is only reported by agents is not stored: it exists while a node has it.

use std::collections::BTreeMap;

use trainyard_proto::store::v1::{CreateNodeClass, Delete};
use trainyard_proto::v1::{Cluster, Inventory, Node, NodeClass};
use trainyard_shared::names::NodeClassName;

use super::{Applied, Context, check_etag, incomplete, parse};
use crate::class;
use crate::outcome::{Change, Refusal, Reply};
use crate::placement::nodes_of;
use crate::state::State;

impl State {
    pub(super) fn create_node_class(
        &mut self,
        context: &mut Context,
        command: &CreateNodeClass,
    ) -> Applied {
        let wanted = command
            .node_class
            .as_ref()
            .ok_or_else(|| incomplete("node_class"))?;
        let parsed = parse::<NodeClassName>(&wanted.name)?;
        let name = parsed.to_string();
        // A class has no UUID: the entry that declared it stands for it.
        let find = |s: &Self, n: &str| {
            let class = s.node_classes.get(n)?;
            Some((class.etag.clone(), s.node_class_reply(n)))
        };
        if let Some(reply) = self.replay(&command.request_id, &name, find) {
            return reply;
        }
        let mut names = vec![parsed.id()];
        for (i, alias) in wanted.aliases.iter().enumerate() {
            let field = format!("aliases[{i}]");
            if alias.is_empty() {
                return Err(Refusal::invalid_field(
                    &name,
                    &field,
                    "is empty; leave it out",
                ));
            }
            if names.iter().any(|known| known.eq_ignore_ascii_case(alias)) {
                let message = format!("{alias} is named twice; name it once");
                return Err(Refusal::invalid_field(&name, &field, message));
            }
            names.push(alias);
        }
        for taken in names {
            if let Some(other) = self.declared_class(taken) {
                let mut refusal = Refusal::already_exists(&name);
                refusal.message = format!(
                    "{taken} is a name of {} already; choose another, or delete that class first",
                    other.name
                );
                return Err(refusal);
            }
        }
        let class = NodeClass {
            name: name.clone(),
            aliases: wanted.aliases.clone(),
            r#match: wanted.r#match.clone(),
            declared: true,
            creation_time: Some(context.now),
            etag: context.etag(),
            ..NodeClass::default()
        };
        self.requests
            .remember(&command.request_id, &name, &class.etag);
        self.node_classes.insert(name.clone(), class);
        self.resolve_classes(context);
        Ok(self.node_class_reply(&name))
    }

    pub(super) fn delete_node_class(&mut self, context: &mut Context, command: &Delete) -> Applied {
        let name = &command.name;
        let current = self
            .node_classes
            .get(name)
            .ok_or_else(|| Refusal::not_found(name))?;
        check_etag(name, &command.etag, &current.etag)?;
        let mut users = self
            .clusters
            .values()
            .filter(|c| !c.vm_size.is_empty() && class::goes_by(current, &c.vm_size));
        if let Some(first) = users.next() {
            return Err(Refusal::precondition(
                name,
                format!(
                    "{} clusters name it as their vmSize, {} among them; delete them first",
                    users.count() + 1,
                    first.name
                ),
            ));
        }
        self.node_classes.remove(name);
        self.resolve_classes(context);
        Ok(Reply::None)
    }

    /// Gives every node its class anew.
    fn resolve_classes(&mut self, context: &mut Context) {
        let changed: Vec<(String, String)> = self
            .nodes
            .values()
            .map(|node| (node, self.resolve_class(node)))
            .filter(|(node, resolved)| node.node_class != *resolved)
            .map(|(node, resolved)| (node.name.clone(), resolved))
            .collect();
        for (name, resolved) in changed {
            if let Some(node) = self.nodes.get_mut(&name) {
                node.node_class = resolved;
                context.changed(Change::Node(name));
            }
        }
        let renamed: Vec<(String, String)> = self
            .clusters
            .values()
            .filter(|c| c.vm_size.is_empty() && !c.node_class.is_empty())
            .map(|c| (c, self.class_now(c)))
            .filter(|(c, class)| c.node_class != *class)
            .map(|(c, class)| (c.name.clone(), class))
            .collect();
        for (name, class) in renamed {
            if let Some(cluster) = self.clusters.get_mut(&name) {
                cluster.node_class = class;
                cluster.etag = context.etag();
                context.changed(Change::Cluster(name));
            }
        }
        context.changed(Change::Placement);
    }

    /// Class of a cluster that names none itself: that of the nodes it holds, else the one it had while a node has it.
    fn class_now(&self, cluster: &Cluster) -> String {
        let known = |node: &Node| self.is_of_class(node, &cluster.node_class);
        match nodes_of(self, &cluster.name).next() {
            Some(node) => node.node_class.clone(),
            None if self.nodes.values().any(known) => cluster.node_class.clone(),
            None => String::new(),
        }
    }

    fn node_class_reply(&self, name: &str) -> Reply {
        self.node_class(name)
            .map_or(Reply::None, |class| Reply::NodeClass(Box::new(class)))
    }

    /// One class, declared or reported by agents.
    pub fn node_class(&self, name: &str) -> Option<NodeClass> {
        self.all_classes().remove(name)
    }

    /// At most `limit` classes, declared or reported, after the resource name `after` (exclusive).
    pub fn node_classes(&self, after: &str, limit: usize) -> Vec<NodeClass> {
        self.all_classes()
            .into_values()
            .filter(|class| class.name.as_str() > after)
            .take(limit)
            .collect()
    }

    fn all_classes(&self) -> BTreeMap<String, NodeClass> {
        let mut classes = self.node_classes.clone();
        for node in self.nodes.values().filter(|n| !n.node_class.is_empty()) {
            let name = format!("nodeClasses/{}", node.node_class);
            let class = classes.entry(name.clone()).or_insert_with(|| NodeClass {
                name,
                ..NodeClass::default()
            });
            count(class, node);
        }
        classes
    }
}

/// Counts a node in its class.
fn count(class: &mut NodeClass, node: &Node) {
    class.node_count += 1;
    class.pool_node_count += u32::from(node.cluster.is_empty());
    if class.inventory.is_none() {
        // What belongs to one node alone says nothing of the class.
        class.inventory = node.inventory.as_ref().map(|inventory| Inventory {
            address: String::new(),
            mac: String::new(),
            ..inventory.clone()
        });
    }
}

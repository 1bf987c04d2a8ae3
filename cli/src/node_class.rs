//! `trainyard node-class`: hardware and image of nodes under a name that `--vm-size` can use.

use clap::{Args, Subcommand};
use prost_types::Timestamp;
use trainyard_proto::v1::{
    CreateNodeClassRequest, DeleteNodeClassRequest, GetNodeClassRequest, NodeClass, NodeClassMatch,
};
use trainyard_shared::client::new_request_id;
use trainyard_shared::names::NodeClassName;
use trainyard_shared::validate;

use crate::args::YesArg;
use crate::console::confirm_delete;
use crate::context::Context;
use crate::error::Error;
use crate::table::{Details, Table};
use crate::text::{age, bytes, last_segment, now, time};

/// See the head of this file.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List declared classes and those that agents report
    List,
    /// Show one class
    Show(NameArg),
    /// Declare a class; nodes that fit belong to it
    Create(CreateArgs),
    /// Withdraw a declared class that no cluster names
    Delete(DeleteArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NameArg {
    /// Node class
    #[arg(short, long, alias = "node-class", value_name = "CLASS")]
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    name: NameArg,
    /// Another name, such as STANDARD_NC6; may be given several times
    #[arg(long = "alias", value_name = "NAME")]
    aliases: Vec<String>,
    /// Part of the GPUs' model, without regard to case
    #[arg(long, value_name = "TEXT")]
    gpu_model: Option<String>,
    /// GPUs, exactly
    #[arg(long, value_name = "COUNT")]
    gpu_count: Option<u32>,
    /// Processors, at least
    #[arg(long, value_name = "COUNT")]
    min_cpus: Option<u32>,
    /// GiB of memory, at least
    #[arg(long, value_name = "GIB")]
    min_memory: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    name: NameArg,
    #[command(flatten)]
    yes: YesArg,
}

/// Does what the command says.
pub(crate) async fn run(context: &Context, command: Command) -> Result<u8, Error> {
    match command {
        Command::List => {
            let classes = context.api()?.all_node_classes().await?;
            context
                .output()
                .list(&classes, |items| table(items, &now()))?;
        }
        Command::Show(args) => {
            let name = name(&args.name)?.to_string();
            let request = GetNodeClassRequest { name };
            let class = context.api()?.get_node_class(request).await?;
            context.output().one(&class, details)?;
        }
        Command::Create(args) => {
            let name = name(&args.name.name)?;
            let class = declared(args);
            let violations = validate::node_class(&class);
            if !violations.is_empty() {
                return Err(Error::violations(&violations));
            }
            let request = CreateNodeClassRequest {
                node_class_id: name.id().to_owned(),
                node_class: Some(class),
                request_id: new_request_id(),
            };
            let created = context.api()?.create_node_class(request).await?;
            context.output().done("created", &created)?;
        }
        Command::Delete(args) => {
            let name = name(&args.name.name)?.to_string();
            let api = context.api()?;
            confirm_delete(args.yes.yes, &name)?;
            let request = DeleteNodeClassRequest { name: name.clone() };
            api.delete_node_class(request).await?;
            context.output().deleted(&name)?;
        }
    }
    Ok(0)
}

fn name(given: &str) -> Result<NodeClassName, Error> {
    let parsed = if given.contains('/') {
        given.parse()
    } else {
        NodeClassName::new(given)
    };
    parsed.map_err(|error| Error::usage(error.to_string()))
}

/// A class by flags; without any criterion it is only what agents name in their configuration.
fn declared(args: CreateArgs) -> NodeClass {
    let criteria = NodeClassMatch {
        gpu_model: args.gpu_model.unwrap_or_default(),
        gpu_count: args.gpu_count,
        min_cpus: args.min_cpus.unwrap_or(0),
        min_memory_bytes: u64::from(args.min_memory.unwrap_or(0)) << 30,
        image: None,
    };
    NodeClass {
        aliases: args.aliases,
        r#match: (criteria != NodeClassMatch::default()).then_some(criteria),
        ..NodeClass::default()
    }
}

fn hardware(class: &NodeClass) -> String {
    let Some(inventory) = &class.inventory else {
        return String::new();
    };
    let gpus = match inventory.gpus.first() {
        Some(gpu) => format!("{} x {}, ", inventory.gpus.len(), gpu.model),
        None => String::new(),
    };
    format!(
        "{gpus}{} CPUs, {}",
        inventory.cpus,
        bytes(inventory.memory_bytes)
    )
}

fn source(class: &NodeClass) -> &'static str {
    if class.declared {
        "declared"
    } else {
        "reported"
    }
}

fn table(classes: &[NodeClass], now: &Timestamp) -> String {
    let mut table = Table::new(&[
        "NAME", "SOURCE", ">NODES", ">IN POOL", "ALIASES", "HARDWARE", "AGE",
    ]);
    for class in classes {
        table.row([
            last_segment(&class.name).to_owned(),
            source(class).to_owned(),
            class.node_count.to_string(),
            class.pool_node_count.to_string(),
            class.aliases.join(","),
            hardware(class),
            age(class.creation_time.as_ref(), now),
        ]);
    }
    table.render()
}

fn details(class: &NodeClass) -> String {
    let criteria = class.r#match.clone().unwrap_or_default();
    let mut details = Details::default();
    details
        .add("Name", &class.name)
        .add("Source", source(class))
        .add("Aliases", class.aliases.join(", "))
        .add("Nodes", class.node_count.to_string())
        .add("In the pool", class.pool_node_count.to_string())
        .add("Hardware", hardware(class))
        .add("GPU model", &criteria.gpu_model)
        .add(
            "GPUs",
            criteria
                .gpu_count
                .map_or_else(String::new, |n| n.to_string()),
        )
        .add("Least CPUs", positive(criteria.min_cpus.into()))
        .add(
            "Least memory",
            if criteria.min_memory_bytes == 0 {
                String::new()
            } else {
                bytes(criteria.min_memory_bytes)
            },
        )
        .add("Created", time(class.creation_time.as_ref()));
    details.render()
}

fn positive(number: u64) -> String {
    if number == 0 {
        String::new()
    } else {
        number.to_string()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use trainyard_proto::v1::{Gpu, Inventory};

    use super::*;
    use crate::args::{Arguments, Noun};

    #[test]
    fn flags_make_criteria_and_none_make_none() {
        let parse = |line: &str| {
            let line = format!("trainyard node-class create -n c {line}");
            match Arguments::try_parse_from(line.split_whitespace())
                .unwrap()
                .noun
            {
                Noun::NodeClass(Command::Create(args)) => declared(args),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(parse("").r#match, None);
        let class = parse("--alias STANDARD_NC6 --gpu-count 8 --min-memory 2");
        let criteria = class.r#match.unwrap();
        assert_eq!(criteria.gpu_count, Some(8));
        assert_eq!(criteria.min_memory_bytes, 2 << 30);
        assert_eq!(class.aliases, ["STANDARD_NC6"]);
    }

    #[test]
    fn a_class_shows_its_hardware_and_where_it_comes_from() {
        let class = NodeClass {
            name: "nodeClasses/h100".into(),
            node_count: 2,
            pool_node_count: 1,
            inventory: Some(Inventory {
                cpus: 8,
                memory_bytes: 1 << 30,
                gpus: vec![Gpu {
                    model: "H100".into(),
                    ..Gpu::default()
                }],
                ..Inventory::default()
            }),
            ..NodeClass::default()
        };
        let text = table(&[class], &Timestamp::default());
        assert!(text.contains("reported"), "{text}");
        assert!(text.contains("1 x H100, 8 CPUs, 1.0 GiB"), "{text}");
    }
}

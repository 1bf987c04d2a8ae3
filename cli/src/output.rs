//! What goes to stdout, in the shape that `-o` asks for. Must never panic on a closed pipe, nor mix anything else into
//! stdout.

use std::io::{self, Write};

use prost::Message;
use trainyard_proto::v1::{
    Cluster, Experiment, FileServer, Job, Member, Node, NodeClass, Quota, Workspace,
};

use crate::args::Format;
use crate::error::Error;

/// A resource that can be shown in every shape.
pub(crate) trait Resource: Message + prost::Name {
    /// Its resource name.
    fn resource_name(&self) -> &str;
}

macro_rules! resources {
    ($($kind:ty),*) => {
        $(impl Resource for $kind {
            fn resource_name(&self) -> &str {
                &self.name
            }
        })*
    };
}
resources!(
    Cluster, Experiment, FileServer, Job, Member, Node, NodeClass, Quota, Workspace
);

/// See the head of this file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    format: Format,
}

impl Output {
    /// In this shape.
    pub(crate) fn new(format: Format) -> Self {
        Self { format }
    }

    /// The shape.
    pub(crate) fn format(self) -> Format {
        self.format
    }

    /// Several resources; `table` renders them for people.
    pub(crate) fn list<R: Resource>(
        self,
        items: &[R],
        table: impl FnOnce(&[R]) -> String,
    ) -> Result<(), Error> {
        match self.format {
            Format::Table => write(&table(items)),
            Format::Name => {
                let names = items
                    .iter()
                    .map(|item| format!("{}\n", item.resource_name()));
                write(&names.collect::<String>())
            }
            Format::Json | Format::Yaml => self.value(&serde_json::Value::Array(
                items.iter().map(trainyard_shared::json::to_json).collect(),
            )),
        }
    }

    /// One resource; `details` renders it for people.
    pub(crate) fn one<R: Resource>(
        self,
        item: &R,
        details: impl FnOnce(&R) -> String,
    ) -> Result<(), Error> {
        match self.format {
            Format::Table => write(&details(item)),
            Format::Name => write(&format!("{}\n", item.resource_name())),
            Format::Json | Format::Yaml => self.value(&trainyard_shared::json::to_json(item)),
        }
    }

    /// A resource that has just been made or changed: a sentence for people, the resource for programs.
    pub(crate) fn done<R: Resource>(self, what: &str, item: &R) -> Result<(), Error> {
        self.one(item, |item| format!("{what} {}\n", item.resource_name()))
    }

    /// A resource that is no more. Programs get nothing but the exit status.
    pub(crate) fn deleted(self, name: &str) -> Result<(), Error> {
        match self.format {
            Format::Table => write(&format!("deleted {name}\n")),
            Format::Name => write(&format!("{name}\n")),
            Format::Json | Format::Yaml => Ok(()),
        }
    }

    /// A value as JSON or YAML.
    pub(crate) fn value(self, value: &serde_json::Value) -> Result<(), Error> {
        let text = if self.format == Format::Yaml {
            serde_yaml_ng::to_string(value)
                .map_err(|error| Error::failure(format!("cannot print YAML: {error}")))?
        } else {
            format!("{value:#}\n")
        };
        write(&text)
    }
}

/// Writes to stdout at once.
pub(crate) fn write(text: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

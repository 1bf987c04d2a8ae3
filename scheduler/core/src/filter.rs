//! Filters and orders of lists, as the head of `services.proto` defines them: a small part of AIP-160.
//!
//! ```text
//! state = running AND cluster = "gpu" AND creation_time >= "2031-05-17T08:30:00Z"
//! ```
//!
//! A name is compared by its last segment when the given text has no `/`. A field that a resource does not have
//! matches `!=` only. Everything wrong is found when the filter is parsed, with its position; matching cannot fail.

mod reader;

use std::cmp::Ordering;

use prost_types::Timestamp;
use trainyard_proto::v1::{
    AllocationState, Cluster, ExecutionState, Job, Node, NodeState, PowerState, ProvisioningState,
    SchedulingPriority,
};

use crate::state::cluster_of;
use reader::{Reader, at, shorten};

/// Longest filter, in bytes.
const MAX_LENGTH: usize = 4096;

/// Most comparisons of one filter.
const MAX_TERMS: usize = 32;

/// What a filter is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Jobs.
    Job,
    /// Nodes.
    Node,
    /// Clusters.
    Cluster,
}

/// A filter or an order that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at character {position}: {message}")]
pub struct FilterError {
    /// Character of the text, from 1.
    pub position: usize,
    /// What is wrong there, and what to write instead.
    pub message: String,
}

/// A parsed filter. The default matches everything.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    terms: Vec<Term>,
}

/// How a list is ordered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Order {
    /// By creation, oldest first; else by name. Jobs only.
    pub by_creation: bool,
    /// The other way round.
    pub descending: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Term {
    field: Field,
    operator: Operator,
    value: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Name,
    State,
    Cluster,
    ToolType,
    User,
    NodeCount,
    Priority,
    CreationTime,
    ExitCode,
    Array,
    NodeClass,
    PowerState,
    VmSize,
    AllocationState,
    ProvisioningState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Contains,
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    /// A resource name, or its last segment.
    Name(String),
    Text(String),
    Number(i64),
    Time(Timestamp),
    /// A value of the field's enumeration.
    Enumeration(i32),
}

/// What a resource has in a field.
enum Actual<'a> {
    Text(&'a str),
    Number(i64),
    Time(Timestamp),
    Enumeration(i32),
    Absent,
}

impl Kind {
    fn fields(self) -> &'static [(&'static str, Field)] {
        match self {
            Self::Job => &[
                ("name", Field::Name),
                ("state", Field::State),
                ("cluster", Field::Cluster),
                ("tool_type", Field::ToolType),
                ("user", Field::User),
                ("node_count", Field::NodeCount),
                ("priority", Field::Priority),
                ("creation_time", Field::CreationTime),
                ("exit_code", Field::ExitCode),
                ("array", Field::Array),
            ],
            Self::Node => &[
                ("name", Field::Name),
                ("state", Field::State),
                ("cluster", Field::Cluster),
                ("node_class", Field::NodeClass),
                ("power_state", Field::PowerState),
            ],
            Self::Cluster => &[
                ("name", Field::Name),
                ("vm_size", Field::VmSize),
                ("allocation_state", Field::AllocationState),
                ("provisioning_state", Field::ProvisioningState),
            ],
        }
    }

    /// Full names of the values of an enumeration, without their prefix, by value.
    fn values(self, field: Field) -> Option<Vec<(String, i32)>> {
        fn listed<E: TryFrom<i32>>(
            prefix: &str,
            text: fn(&E) -> &'static str,
        ) -> Vec<(String, i32)> {
            (1..)
                .map_while(|n| E::try_from(n).ok().map(|e| (n, e)))
                .map(|(n, e)| {
                    let name = text(&e);
                    let short = name.strip_prefix(prefix).unwrap_or(name);
                    (short.to_ascii_lowercase(), n)
                })
                .collect()
        }
        Some(match (self, field) {
            (Self::Job, Field::State) => {
                listed::<ExecutionState>("EXECUTION_STATE_", ExecutionState::as_str_name)
            }
            (Self::Node, Field::State) => {
                listed::<NodeState>("NODE_STATE_", NodeState::as_str_name)
            }
            (_, Field::Priority) => listed::<SchedulingPriority>(
                "SCHEDULING_PRIORITY_",
                SchedulingPriority::as_str_name,
            ),
            (_, Field::PowerState) => listed::<PowerState>("POWER_STATE_", PowerState::as_str_name),
            (_, Field::AllocationState) => {
                listed::<AllocationState>("ALLOCATION_STATE_", AllocationState::as_str_name)
            }
            (_, Field::ProvisioningState) => {
                listed::<ProvisioningState>("PROVISIONING_STATE_", ProvisioningState::as_str_name)
            }
            _ => return None,
        })
    }
}

impl Order {
    /// Reads `order_by`; an empty text is by name.
    pub fn parse(kind: Kind, text: &str) -> Result<Self, FilterError> {
        let mut words = text.split_whitespace();
        let by_creation = match words.next() {
            None | Some("name") => false,
            Some("creation_time") if kind == Kind::Job => true,
            Some(other) => {
                let known = match kind {
                    Kind::Job => "name or creation_time",
                    Kind::Node | Kind::Cluster => "name",
                };
                return Err(at(
                    text,
                    text.find(other).unwrap_or(0),
                    format!("{} is no order of this list; write {known}", shorten(other)),
                ));
            }
        };
        let descending = match words.next() {
            None | Some("asc") => false,
            Some("desc") => true,
            Some(other) => {
                return Err(at(
                    text,
                    text.rfind(other).unwrap_or(0),
                    format!("{} is no direction; write asc or desc", shorten(other)),
                ));
            }
        };
        if let Some(other) = words.next() {
            return Err(at(
                text,
                text.rfind(other).unwrap_or(0),
                "a list has one order; leave this out".to_owned(),
            ));
        }
        Ok(Self {
            by_creation,
            descending,
        })
    }
}

impl Filter {
    /// Reads a filter; an empty text matches everything.
    pub fn parse(kind: Kind, text: &str) -> Result<Self, FilterError> {
        if text.len() > MAX_LENGTH {
            return Err(FilterError {
                position: 1,
                message: format!(
                    "the filter has {} bytes and may have {MAX_LENGTH}; ask for less at a time",
                    text.len()
                ),
            });
        }
        let mut reader = Reader::new(text);
        let mut terms = Vec::new();
        reader.space();
        if reader.rest().is_empty() {
            return Ok(Self { terms });
        }
        loop {
            if terms.len() == MAX_TERMS {
                return Err(reader.error(format!("a filter has at most {MAX_TERMS} comparisons")));
            }
            terms.push(reader.term(kind)?);
            reader.space();
            if reader.rest().is_empty() {
                return Ok(Self { terms });
            }
            let start = reader.offset;
            if reader.word() != "AND" {
                return Err(at(
                    text,
                    start,
                    "expected AND between two comparisons (OR, NOT and parentheses are not known)"
                        .to_owned(),
                ));
            }
            reader.space();
        }
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether the job matches.
    pub fn matches_job(&self, job: &Job) -> bool {
        let spec = job.spec.as_ref();
        self.terms.iter().all(|term| {
            term.matches(match term.field {
                Field::Name => Actual::Text(&job.name),
                Field::State => Actual::Enumeration(job.execution_state),
                Field::Cluster => Actual::Text(cluster_of(job)),
                Field::ToolType => Actual::Text(&job.tool_type),
                Field::User => Actual::Text(&job.user),
                Field::NodeCount => Actual::Number(spec.map_or(0, |s| s.node_count).into()),
                Field::Priority => {
                    Actual::Enumeration(match spec.map(|s| s.scheduling_priority()) {
                        None | Some(SchedulingPriority::Unspecified) => {
                            SchedulingPriority::Normal.into()
                        }
                        Some(priority) => priority.into(),
                    })
                }
                Field::CreationTime => job.creation_time.map_or(Actual::Absent, Actual::Time),
                Field::ExitCode => job
                    .execution_info
                    .as_ref()
                    .and_then(|info| info.exit_code)
                    .map_or(Actual::Absent, |code| Actual::Number(code.into())),
                Field::Array => job
                    .array
                    .as_ref()
                    .map_or(Actual::Absent, |array| Actual::Text(&array.uid)),
                _ => Actual::Absent,
            })
        })
    }

    /// Whether the node matches.
    pub fn matches_node(&self, node: &Node) -> bool {
        self.terms.iter().all(|term| {
            term.matches(match term.field {
                Field::Name => Actual::Text(&node.name),
                Field::State => Actual::Enumeration(node.state),
                Field::Cluster => Actual::Text(&node.cluster),
                Field::NodeClass => Actual::Text(&node.node_class),
                Field::PowerState => Actual::Enumeration(node.power_state),
                _ => Actual::Absent,
            })
        })
    }

    /// Whether the cluster matches. It must be one with its computed fields filled in.
    pub fn matches_cluster(&self, cluster: &Cluster) -> bool {
        self.terms.iter().all(|term| {
            term.matches(match term.field {
                Field::Name => Actual::Text(&cluster.name),
                Field::VmSize => Actual::Text(&cluster.vm_size),
                Field::AllocationState => Actual::Enumeration(cluster.allocation_state),
                Field::ProvisioningState => Actual::Enumeration(cluster.provisioning_state),
                _ => Actual::Absent,
            })
        })
    }
}

impl Term {
    fn matches(&self, actual: Actual<'_>) -> bool {
        let order = match (&self.value, &actual) {
            (Value::Name(wanted), Actual::Text(name)) => {
                let name = if wanted.contains('/') {
                    name
                } else {
                    name.rsplit('/').next().unwrap_or(name)
                };
                if self.operator == Operator::Contains {
                    return name.contains(wanted.as_str());
                }
                name.cmp(wanted.as_str())
            }
            (Value::Text(wanted), Actual::Text(text)) => {
                if self.operator == Operator::Contains {
                    return text.contains(wanted.as_str());
                }
                (*text).cmp(wanted.as_str())
            }
            (Value::Number(wanted), Actual::Number(number)) => number.cmp(wanted),
            (Value::Time(wanted), Actual::Time(time)) => {
                (time.seconds, time.nanos).cmp(&(wanted.seconds, wanted.nanos))
            }
            (Value::Enumeration(wanted), Actual::Enumeration(value)) => value.cmp(wanted),
            _ => return self.operator == Operator::NotEqual,
        };
        match self.operator {
            Operator::Equal => order == Ordering::Equal,
            Operator::NotEqual => order != Ordering::Equal,
            Operator::Less => order == Ordering::Less,
            Operator::LessOrEqual => order != Ordering::Greater,
            Operator::Greater => order == Ordering::Greater,
            Operator::GreaterOrEqual => order != Ordering::Less,
            Operator::Contains => false,
        }
    }
}

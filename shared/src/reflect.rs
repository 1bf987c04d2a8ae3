//! Messages by the names of their fields: what reading and printing of files share.

use std::sync::OnceLock;

use prost_reflect::{DescriptorPool, EnumDescriptor, EnumValueDescriptor, MessageDescriptor};

/// The description of `M`. None only if the protocol's own description is broken, which tests rule out.
pub(crate) fn descriptor<M: prost::Name>() -> Option<MessageDescriptor> {
    static POOL: OnceLock<Option<DescriptorPool>> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(trainyard_proto::FILE_DESCRIPTOR_SET).ok())
        .as_ref()?
        .get_message_by_name(&M::full_name())
}

/// The short name of an enum's value, as files have it: `EXECUTION_STATE_RUNNING` is `running`.
pub(crate) fn short_name(kind: &EnumDescriptor, value: &EnumValueDescriptor) -> String {
    let mut prefix = String::new();
    for c in kind.name().chars() {
        if c.is_ascii_uppercase() && !prefix.is_empty() {
            prefix.push('_');
        }
        prefix.push(c.to_ascii_uppercase());
    }
    prefix.push('_');
    let name = value.name();
    name.strip_prefix(&prefix)
        .unwrap_or(name)
        .to_ascii_lowercase()
}

//! Messages as JSON for people and scripts, in the keys of Batch AI.
//!
//! Unlike protobuf's own JSON: enums are short and lower-case (`running`), durations ISO 8601 (`P7D`), 64-bit numbers are
//! numbers, and what is not set is left out. This module must never be used for what another program reads back as the
//! protocol: that is protobuf.

use prost::{Message, Name};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage, Value};
use prost_types::{Duration, Timestamp};
use serde_json::{Map, Value as Json};

use crate::{duration, reflect, time};

/// The message as a JSON object. Keys stand in the order of the protocol.
#[must_use]
pub fn to_json<M: Message + Name>(message: &M) -> Json {
    let Some(descriptor) = reflect::descriptor::<M>() else {
        return Json::Null;
    };
    let mut dynamic = DynamicMessage::new(descriptor);
    match dynamic.transcode_from(message) {
        Ok(()) => object(&dynamic),
        Err(_) => Json::Null,
    }
}

fn object(message: &DynamicMessage) -> Json {
    match message.descriptor().full_name() {
        "google.protobuf.Timestamp" => {
            if let Ok(value) = message.transcode_to::<Timestamp>() {
                return Json::String(time::format(&value));
            }
        }
        "google.protobuf.Duration" => {
            if let Ok(value) = message.transcode_to::<Duration>() {
                return Json::String(duration::format(&value));
            }
        }
        _ => {}
    }
    let mut map = Map::new();
    for field in message.descriptor().fields() {
        if message.has_field(&field) {
            let json = any(&field, &message.get_field(&field));
            map.insert(field.json_name().to_owned(), json);
        }
    }
    Json::Object(map)
}

fn any(field: &FieldDescriptor, value: &Value) -> Json {
    match value {
        Value::List(items) => Json::Array(items.iter().map(|item| any(field, item)).collect()),
        Value::Map(entries) => {
            let value_field = match field.kind() {
                Kind::Message(entry) => entry.map_entry_value_field(),
                _ => field.clone(),
            };
            let mut sorted: Vec<(String, Json)> = entries
                .iter()
                .map(|(key, value)| (map_key(key), any(&value_field, value)))
                .collect();
            sorted.sort_by(|a, b| a.0.cmp(&b.0));
            Json::Object(sorted.into_iter().collect())
        }
        Value::EnumNumber(number) => enum_value(field, *number),
        Value::Message(message) => object(message),
        Value::Bool(value) => (*value).into(),
        Value::I32(value) => (*value).into(),
        Value::I64(value) => (*value).into(),
        Value::U32(value) => (*value).into(),
        Value::U64(value) => (*value).into(),
        Value::F32(value) => (*value).into(),
        Value::F64(value) => (*value).into(),
        Value::String(value) => value.as_str().into(),
        Value::Bytes(value) => String::from_utf8_lossy(value).into(),
    }
}

fn map_key(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}

/// The short name; the number if a newer program sent a value that this one does not know.
fn enum_value(field: &FieldDescriptor, number: i32) -> Json {
    match field.kind() {
        Kind::Enum(kind) => match kind.get_value(number) {
            Some(value) => reflect::short_name(&kind, &value).into(),
            None => number.into(),
        },
        _ => number.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use trainyard_proto::v1;

    #[test]
    fn a_job_reads_well() {
        let job = v1::Job {
            name: "workspaces/w/experiments/e/jobs/j".to_owned(),
            spec: Some(v1::JobSpec {
                scheduling_priority: v1::SchedulingPriority::High.into(),
                node_count: 2,
                std_out_err_path_prefix: "$X/logs".to_owned(),
                py_torch_settings: Some(v1::PyTorchSettings::default()),
                constraints: Some(v1::JobConstraints {
                    max_wall_clock_time: Some(Duration {
                        seconds: 5_400,
                        nanos: 0,
                    }),
                    ..v1::JobConstraints::default()
                }),
                ..Default::default()
            }),
            creation_time: Some(Timestamp {
                seconds: 1_936_773_000,
                nanos: 0,
            }),
            execution_state: v1::ExecutionState::Running.into(),
            execution_info: Some(v1::ExecutionInfo {
                exit_code: Some(0),
                ..Default::default()
            }),
            attempts: vec![v1::Attempt {
                number: 1,
                epoch: u64::MAX,
                ..Default::default()
            }],
            ..Default::default()
        };
        let expected = json!({
            "name": "workspaces/w/experiments/e/jobs/j",
            "spec": {
                "schedulingPriority": "high",
                "nodeCount": 2,
                "pyTorchSettings": {},
                "stdOutErrPathPrefix": "$X/logs",
                "constraints": {"maxWallClockTime": "PT1H30M"},
            },
            "creationTime": "2031-05-17T08:30:00Z",
            "executionState": "running",
            // Zero is said where it was set: the job ended well.
            "executionInfo": {"exitCode": 0},
            "attempts": [{"number": 1, "epoch": u64::MAX}],
        });
        assert_eq!(to_json(&job), expected);
        let text = to_json(&job).to_string();
        assert!(
            text.find("\"spec\"") < text.find("\"creationTime\""),
            "{text}"
        );
    }

    #[test]
    fn every_kind_of_value() {
        let workspace = v1::Workspace {
            tags: [
                ("b".to_owned(), "2".to_owned()),
                ("a".to_owned(), "1".to_owned()),
            ]
            .into(),
            image_bindings: vec![v1::ImageBinding {
                image: "i".to_owned(),
                target: Some(v1::image_binding::Target::Host(v1::HostImage {})),
            }],
            allow_root: true,
            provisioning_state: 77,
            ..Default::default()
        };
        let expected = json!({
            "tags": {"a": "1", "b": "2"},
            "imageBindings": [{"image": "i", "host": {}}],
            "allowRoot": true,
            "provisioningState": 77,
        });
        assert_eq!(to_json(&workspace), expected);

        let node = v1::Node {
            state: v1::NodeState::Lost.into(),
            inventory: Some(v1::Inventory {
                gpu_source: v1::GpuSource::Nvml.into(),
                memory_bytes: 1 << 40,
                ..Default::default()
            }),
            ..Default::default()
        };
        let expected = json!({
            "inventory": {"memoryBytes": 1_u64 << 40, "gpuSource": "nvml"},
            "state": "lost",
        });
        assert_eq!(to_json(&node), expected);
    }
}

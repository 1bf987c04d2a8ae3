//! Which toolkit a job uses. The settings object that is present decides; exactly one must be.
//!
//! This module must never know how a toolkit is started: that is the launchers' business.

use trainyard_proto::v1::JobSpec;

/// What starts the processes of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Toolkit {
    /// CNTK, BrainScript or Python.
    Cntk,
    /// PyTorch, one process per rank.
    PyTorch,
    /// TensorFlow, workers and parameter servers.
    TensorFlow,
    /// Caffe.
    Caffe,
    /// Caffe2.
    Caffe2,
    /// Chainer.
    Chainer,
    /// A command on the first node.
    Custom,
    /// A command under mpirun.
    CustomMpi,
    /// Horovod.
    Horovod,
    /// torchrun on every node. Trainyard's own.
    Torchrun,
}

/// Why no toolkit can be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ToolkitError {
    /// There is no settings object.
    #[error("no toolkit: write exactly one of {}", launchable_keys())]
    Missing,
    /// There is more than one settings object.
    #[error("several toolkits: {}; keep exactly one of them", keys(.0))]
    Several(
        /// The toolkits found, in the order of [`Toolkit::ALL`].
        Vec<Toolkit>,
    ),
}

fn keys(toolkits: &[Toolkit]) -> String {
    let keys: Vec<_> = toolkits.iter().map(|toolkit| toolkit.key()).collect();
    keys.join(", ")
}

/// Keys of the toolkits that can be started, for messages.
pub(crate) fn launchable_keys() -> String {
    let launchable: Vec<Toolkit> = Toolkit::ALL
        .into_iter()
        .filter(|toolkit| toolkit.launchable())
        .collect();
    keys(&launchable)
}

impl Toolkit {
    /// Every toolkit, in the order of the protocol.
    pub const ALL: [Toolkit; 10] = [
        Toolkit::Cntk,
        Toolkit::PyTorch,
        Toolkit::TensorFlow,
        Toolkit::Caffe,
        Toolkit::Caffe2,
        Toolkit::Chainer,
        Toolkit::Custom,
        Toolkit::CustomMpi,
        Toolkit::Horovod,
        Toolkit::Torchrun,
    ];

    /// The toolkit of a job: the one whose settings object is present.
    pub fn of(spec: &JobSpec) -> Result<Toolkit, ToolkitError> {
        let found: Vec<Toolkit> = Self::ALL
            .into_iter()
            .filter(|toolkit| toolkit.is_set(spec))
            .collect();
        match found.as_slice() {
            [] => Err(ToolkitError::Missing),
            [toolkit] => Ok(*toolkit),
            _ => Err(ToolkitError::Several(found)),
        }
    }

    /// Whether the job has this toolkit's settings object.
    fn is_set(self, spec: &JobSpec) -> bool {
        match self {
            Toolkit::Cntk => spec.cntk_settings.is_some(),
            Toolkit::PyTorch => spec.py_torch_settings.is_some(),
            Toolkit::TensorFlow => spec.tensor_flow_settings.is_some(),
            Toolkit::Caffe => spec.caffe_settings.is_some(),
            Toolkit::Caffe2 => spec.caffe2_settings.is_some(),
            Toolkit::Chainer => spec.chainer_settings.is_some(),
            Toolkit::Custom => spec.custom_toolkit_settings.is_some(),
            Toolkit::CustomMpi => spec.custom_mpi_settings.is_some(),
            Toolkit::Horovod => spec.horovod_settings.is_some(),
            Toolkit::Torchrun => spec.torchrun_settings.is_some(),
        }
    }

    /// What `toolType` of a job says.
    #[must_use]
    pub fn tool_type(self) -> &'static str {
        match self {
            Toolkit::Cntk => "cntk",
            Toolkit::PyTorch => "pytorch",
            Toolkit::TensorFlow => "tensorflow",
            Toolkit::Caffe => "caffe",
            Toolkit::Caffe2 => "caffe2",
            Toolkit::Chainer => "chainer",
            Toolkit::Custom => "custom",
            Toolkit::CustomMpi => "mpi",
            Toolkit::Horovod => "horovod",
            Toolkit::Torchrun => "torchrun",
        }
    }

    /// Key of the settings object in a job file.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Toolkit::Cntk => "cntkSettings",
            Toolkit::PyTorch => "pyTorchSettings",
            Toolkit::TensorFlow => "tensorFlowSettings",
            Toolkit::Caffe => "caffeSettings",
            Toolkit::Caffe2 => "caffe2Settings",
            Toolkit::Chainer => "chainerSettings",
            Toolkit::Custom => "customToolkitSettings",
            Toolkit::CustomMpi => "customMpiSettings",
            Toolkit::Horovod => "horovodSettings",
            Toolkit::Torchrun => "torchrunSettings",
        }
    }

    /// Whether the agent has a launcher for it. A job with another toolkit is refused when it is created, rather than
    /// failing later on its nodes.
    #[must_use]
    pub fn launchable(self) -> bool {
        match self {
            Toolkit::Custom | Toolkit::PyTorch | Toolkit::Torchrun => true,
            Toolkit::Cntk
            | Toolkit::TensorFlow
            | Toolkit::Caffe
            | Toolkit::Caffe2
            | Toolkit::Chainer
            | Toolkit::CustomMpi
            | Toolkit::Horovod => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trainyard_proto::v1::{CustomToolkitSettings, HorovodSettings};

    #[test]
    fn exactly_one_settings_object_decides() {
        let mut spec = JobSpec::default();
        assert_eq!(Toolkit::of(&spec), Err(ToolkitError::Missing));

        spec.custom_toolkit_settings = Some(CustomToolkitSettings::default());
        assert_eq!(Toolkit::of(&spec), Ok(Toolkit::Custom));

        spec.horovod_settings = Some(HorovodSettings::default());
        let error = Toolkit::of(&spec).unwrap_err();
        assert_eq!(
            error.to_string(),
            "several toolkits: customToolkitSettings, horovodSettings; keep exactly one of them"
        );
    }

    #[test]
    fn keys_and_tool_types_are_distinct() {
        let keys: std::collections::BTreeSet<_> = Toolkit::ALL.iter().map(|t| t.key()).collect();
        let types: std::collections::BTreeSet<_> =
            Toolkit::ALL.iter().map(|t| t.tool_type()).collect();
        assert_eq!((keys.len(), types.len()), (10, 10));
    }
}

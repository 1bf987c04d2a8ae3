//! The settings objects of the toolkits.

use trainyard_proto::v1::{
    CaffeSettings, CntkSettings, JobSpec, PyTorchSettings, TorchrunSettings,
};

use super::checks::Checker;
use super::{MAX_NODES, MAX_PATH_BYTES, MAX_PROCESSES_PER_NODE};
use crate::toolkit::{Toolkit, ToolkitError, launchable_keys};

const SCRIPT: &str = "the path of a script, such as $AZ_BATCHAI_JOB_MOUNT_ROOT/scripts/train.py";

/// Exactly one settings object, of a toolkit that can be started, with what that toolkit needs.
pub(super) fn check(c: &mut Checker, spec: &JobSpec) {
    match Toolkit::of(spec) {
        Err(error @ ToolkitError::Missing) => c.wrong("", error.to_string()),
        Err(ToolkitError::Several(found)) => {
            let first = found.first().map_or("", |toolkit| toolkit.key());
            for toolkit in found.iter().skip(1) {
                c.wrong(
                    toolkit.key(),
                    format!("a second toolkit beside {first}; keep exactly one of them"),
                );
            }
        }
        Ok(_) => {}
    }
    settings(c, spec);
}

/// What this version cannot start, though the job is well written.
pub(super) fn launchable(c: &mut Checker, spec: &JobSpec) {
    if let Ok(toolkit) = Toolkit::of(spec)
        && !toolkit.launchable()
    {
        let (kind, known) = (toolkit.tool_type(), launchable_keys());
        c.wrong(
            toolkit.key(),
            format!("{kind} jobs cannot be started by this version; it starts {known}"),
        );
    }
    if let Some(settings) = &spec.py_torch_settings
        && settings.communication_backend.eq_ignore_ascii_case("mpi")
    {
        c.wrong(
            "pyTorchSettings.communicationBackend",
            "mpi needs mpirun, which this version does not start; write gloo, nccl or tcp",
        );
    }
}

fn settings(c: &mut Checker, spec: &JobSpec) {
    // A wrong nodeCount is reported once, not again by each number that depends on it.
    let nodes = if spec.node_count <= MAX_NODES {
        spec.node_count
    } else {
        0
    };
    if let Some(settings) = &spec.cntk_settings {
        c.within("cntkSettings", |c| cntk(c, settings, nodes));
    }
    if let Some(settings) = &spec.py_torch_settings {
        c.within("pyTorchSettings", |c| py_torch(c, settings, nodes));
    }
    if let Some(settings) = &spec.tensor_flow_settings {
        c.within("tensorFlowSettings", |c| {
            script(
                c,
                &settings.python_script_file_path,
                &settings.python_interpreter_path,
            );
            c.arguments("masterCommandLineArgs", &settings.master_command_line_args);
            c.arguments("workerCommandLineArgs", &settings.worker_command_line_args);
            c.arguments(
                "parameterServerCommandLineArgs",
                &settings.parameter_server_command_line_args,
            );
            processes(c, "workerCount", settings.worker_count, nodes, 0);
            if nodes > 0 && settings.parameter_server_count > nodes {
                c.wrong(
                    "parameterServerCount",
                    "must not be greater than nodeCount: each node takes one at most",
                );
            }
        });
    }
    if let Some(settings) = &spec.caffe_settings {
        c.within("caffeSettings", |c| caffe(c, settings, nodes));
    }
    if let Some(settings) = &spec.caffe2_settings {
        c.within("caffe2Settings", |c| {
            script(
                c,
                &settings.python_script_file_path,
                &settings.python_interpreter_path,
            );
            c.arguments("commandLineArgs", &settings.command_line_args);
        });
    }
    if let Some(settings) = &spec.chainer_settings {
        c.within("chainerSettings", |c| {
            script(
                c,
                &settings.python_script_file_path,
                &settings.python_interpreter_path,
            );
            c.arguments("commandLineArgs", &settings.command_line_args);
            processes(c, "processCount", settings.process_count, nodes, nodes);
        });
    }
    if let Some(settings) = &spec.horovod_settings {
        c.within("horovodSettings", |c| {
            script(
                c,
                &settings.python_script_file_path,
                &settings.python_interpreter_path,
            );
            c.arguments("commandLineArgs", &settings.command_line_args);
            processes(c, "processCount", settings.process_count, nodes, nodes);
        });
    }
    if let Some(settings) = &spec.custom_toolkit_settings {
        c.within("customToolkitSettings", |c| {
            c.command("commandLine", &settings.command_line)
        });
    }
    if let Some(settings) = &spec.custom_mpi_settings {
        c.within("customMpiSettings", |c| {
            c.command("commandLine", &settings.command_line);
            processes(c, "processCount", settings.process_count, nodes, nodes);
        });
    }
    if let Some(settings) = &spec.torchrun_settings {
        c.within("torchrunSettings", |c| torchrun(c, settings));
    }
}

fn script(c: &mut Checker, path: &str, interpreter: &str) {
    c.required("pythonScriptFilePath", path, SCRIPT);
    c.plain("pythonInterpreterPath", interpreter, MAX_PATH_BYTES);
}

/// A number of processes over all nodes; 0 stands for the default.
fn processes(c: &mut Checker, key: &str, count: u32, nodes: u32, at_least: u32) {
    let most = u64::from(nodes.clamp(1, MAX_NODES)) * u64::from(MAX_PROCESSES_PER_NODE);
    if count == 0 {
        return;
    }
    if count < at_least {
        c.wrong(
            key,
            format!(
                "{count} is less than nodeCount ({nodes}): some nodes would have nothing to do"
            ),
        );
    } else if u64::from(count) > most {
        c.wrong(
            key,
            format!("at most {most} are possible: {MAX_PROCESSES_PER_NODE} for each node"),
        );
    }
}

fn py_torch(c: &mut Checker, settings: &PyTorchSettings, nodes: u32) {
    script(
        c,
        &settings.python_script_file_path,
        &settings.python_interpreter_path,
    );
    c.arguments("commandLineArgs", &settings.command_line_args);
    processes(c, "processCount", settings.process_count, nodes, nodes);
    let ranks = match settings.process_count {
        0 => nodes,
        count => count,
    };
    let backend = settings.communication_backend.to_ascii_lowercase();
    match backend.as_str() {
        "" if ranks > 1 => c.wrong(
            "communicationBackend",
            "required for more than one process; write gloo, nccl or tcp",
        ),
        "" | "tcp" | "gloo" | "nccl" | "mpi" => {}
        _ => c.wrong("communicationBackend", "unknown; write gloo, nccl or tcp"),
    }
}

fn torchrun(c: &mut Checker, settings: &TorchrunSettings) {
    script(
        c,
        &settings.python_script_file_path,
        &settings.python_interpreter_path,
    );
    c.arguments("commandLineArgs", &settings.command_line_args);
    if settings.nproc_per_node > MAX_PROCESSES_PER_NODE {
        c.wrong(
            "nprocPerNode",
            format!("at most {MAX_PROCESSES_PER_NODE} are possible"),
        );
    }
}

fn cntk(c: &mut Checker, settings: &CntkSettings, nodes: u32) {
    let brain_script = match settings.language_type.to_ascii_lowercase().as_str() {
        "" => None,
        "brainscript" => Some(true),
        "python" => Some(false),
        _ => {
            c.wrong("languageType", "unknown; write BrainScript or Python");
            None
        }
    };
    let (config, script) = (
        &settings.config_file_path,
        &settings.python_script_file_path,
    );
    one_of_two(c, config, script);
    if brain_script == Some(true) && config.is_empty() && !script.is_empty() {
        c.wrong("configFilePath", "required for BrainScript");
    }
    if brain_script == Some(false) && script.is_empty() && !config.is_empty() {
        c.wrong("pythonScriptFilePath", "required for Python");
    }
    c.plain(
        "pythonInterpreterPath",
        &settings.python_interpreter_path,
        MAX_PATH_BYTES,
    );
    c.arguments("commandLineArgs", &settings.command_line_args);
    processes(c, "processCount", settings.process_count, nodes, nodes);
}

fn caffe(c: &mut Checker, settings: &CaffeSettings, nodes: u32) {
    one_of_two(
        c,
        &settings.config_file_path,
        &settings.python_script_file_path,
    );
    c.plain(
        "pythonInterpreterPath",
        &settings.python_interpreter_path,
        MAX_PATH_BYTES,
    );
    c.arguments("commandLineArgs", &settings.command_line_args);
    processes(c, "processCount", settings.process_count, nodes, nodes);
}

/// A configuration file or a script, not both.
fn one_of_two(c: &mut Checker, config: &str, script: &str) {
    match (config.is_empty(), script.is_empty()) {
        (true, true) => c.wrong(
            "",
            "required: either configFilePath or pythonScriptFilePath",
        ),
        (false, false) => c.wrong(
            "pythonScriptFilePath",
            "excludes configFilePath; keep one of them",
        ),
        (true, false) => {
            c.plain("pythonScriptFilePath", script, MAX_PATH_BYTES);
        }
        (false, true) => {
            c.plain("configFilePath", config, MAX_PATH_BYTES);
        }
    }
}

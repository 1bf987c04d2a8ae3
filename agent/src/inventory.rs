//! What a node has: processors, memory, GPUs, addresses.
//!
//! Read once at start: processors, memory and system by sysinfo, GPUs by NVIDIA's management library. That library is
//! loaded in a helper process: it can hang with a broken driver, and its memory is not the agent's. Must never fail: a
//! node without GPUs, or with a driver that hangs, is still a node.

pub mod image;

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};

use nix::ifaddrs::getifaddrs;
use serde::{Deserialize, Serialize};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};
use trainyard_proto::v1::{Gpu, GpuSource, ImageReference, Inventory};

use crate::helper::{Failure, Helper, HelperError, Request};

/// What the administrator says of the node.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    /// Address for the other nodes.
    pub address: String,
    /// Declared number of GPUs; the driver is not asked then.
    pub gpus: Option<u32>,
    /// Class of the node; by default made of what is found.
    pub node_class: Option<String>,
    /// See [`crate::confine::Confinement::name`].
    pub confinement: &'a str,
    /// The system as an image; by default that of /etc/os-release.
    pub image: Option<ImageReference>,
    /// Users that tasks may run as; the first is the default.
    pub task_users: Vec<String>,
    /// Whether the agent can export directories.
    pub can_export: bool,
}

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Collected {
    /// For the scheduler.
    pub inventory: Inventory,
    /// Never empty.
    pub node_class: String,
    /// Changes at each boot.
    pub boot_id: String,
}

/// A GPU as the helper reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FoundGpu {
    index: u32,
    uuid: String,
    model: String,
    memory_bytes: u64,
}

/// Collects the inventory.
pub async fn collect(helper: &Helper, options: &Options<'_>) -> Collected {
    let (gpus, source) = match options.gpus {
        Some(0) => (Vec::new(), GpuSource::Unspecified),
        Some(count) => (declared(count), GpuSource::Declared),
        None => match helper.ask::<Vec<FoundGpu>>(&Request::Nvml).await {
            Ok(found) if found.is_empty() => (Vec::new(), GpuSource::Unspecified),
            Ok(found) => (found.into_iter().map(to_proto).collect(), GpuSource::Nvml),
            Err(error) => {
                report(&error);
                (Vec::new(), GpuSource::Unspecified)
            }
        },
    };
    let machine = machine();
    let node_class = options
        .node_class
        .clone()
        .filter(|class| !class.is_empty())
        .unwrap_or_else(|| default_class(&gpus, machine.cpus));
    let inventory = Inventory {
        address: options.address.clone(),
        cpus: machine.cpus,
        memory_bytes: machine.memory_bytes,
        gpus,
        gpu_source: source.into(),
        os: machine.os,
        kernel: machine.kernel,
        confinement: options.confinement.to_owned(),
        image: options.image.clone().or_else(|| {
            let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
            image::of_os_release(&text)
        }),
        task_users: options.task_users.clone(),
        mac: interface_of(&options.address)
            .and_then(|interface| hardware_address(&interface))
            .unwrap_or_default(),
        can_export: options.can_export,
    };
    Collected {
        inventory,
        node_class,
        boot_id: boot_id(),
    }
}

/// Changes at each boot of the host. Not the time of the boot, which moves when the clock is set.
#[must_use]
pub fn boot_id() -> String {
    read_line("/proc/sys/kernel/random/boot_id")
}

/// The network interface that holds an address, given as an IP address or a host name.
#[must_use]
pub fn interface_of(address: &str) -> Option<String> {
    let wanted: Vec<IpAddr> = match address.parse() {
        Ok(ip) => vec![ip],
        Err(_) => (address, 0)
            .to_socket_addrs()
            .ok()?
            .map(|socket| socket.ip())
            .collect(),
    };
    getifaddrs().ok()?.find_map(|interface| {
        let storage = interface.address?;
        let ip: IpAddr = match (storage.as_sockaddr_in(), storage.as_sockaddr_in6()) {
            (Some(v4), _) => v4.ip().into(),
            (None, Some(v6)) => v6.ip().into(),
            (None, None) => return None,
        };
        wanted.contains(&ip).then_some(interface.interface_name)
    })
}

/// Hardware address of an interface, as Wake-on-LAN needs it; none for one that has none, such as the loopback.
#[must_use]
pub fn hardware_address(interface: &str) -> Option<String> {
    let of_interface = getifaddrs()
        .ok()?
        .filter(|entry| entry.interface_name == interface);
    of_interface
        .filter_map(|entry| entry.address?.as_link_addr()?.addr())
        .find(|bytes| bytes.iter().any(|byte| *byte != 0))
        .map(|bytes| bytes.map(|byte| format!("{byte:02x}")).join(":"))
}

/// The address that this host uses towards others: that of the default route, else the loopback address.
#[must_use]
pub fn default_address() -> String {
    let loopback = || "127.0.0.1".to_owned();
    // Connecting a datagram socket sends nothing: it only asks the routing table. The address is reserved for
    // documentation, so that no local route can lead there.
    let Ok(socket) = UdpSocket::bind("0.0.0.0:0") else {
        return loopback();
    };
    let outside = SocketAddr::from(([192, 0, 2, 1], 9));
    match socket.connect(outside).and_then(|()| socket.local_addr()) {
        Ok(local) if !local.ip().is_unspecified() => local.ip().to_string(),
        _ => loopback(),
    }
}

/// In the helper: asks NVIDIA's management library. A host without it has no GPUs.
pub(crate) fn perform_nvml() -> Result<Vec<FoundGpu>, Failure> {
    use nvml_wrapper::error::NvmlError;
    let failed = |error: NvmlError| Failure::new(format!("NVIDIA's management library: {error}"));
    let nvml = match nvml_wrapper::Nvml::init() {
        Ok(nvml) => nvml,
        Err(NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound) => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    (0..nvml.device_count().map_err(failed)?)
        .map(|index| {
            let device = nvml.device_by_index(index).map_err(failed)?;
            Ok(FoundGpu {
                index,
                uuid: device.uuid().map_err(failed)?,
                model: device.name().map_err(failed)?,
                memory_bytes: device.memory_info().map_or(0, |memory| memory.total),
            })
        })
        .collect()
}

fn report(error: &HelperError) {
    match error {
        HelperError::Deadline { .. } => {
            tracing::error!(%error, "the GPU driver hangs; the node is offered without GPUs until the agent is restarted");
        }
        HelperError::Failed { .. } | HelperError::Start(_) | HelperError::Answer(_) => {
            tracing::error!(%error, "the GPUs cannot be listed; the node is offered without GPUs");
        }
    }
}

fn declared(count: u32) -> Vec<Gpu> {
    (0..count)
        .map(|index| Gpu {
            index,
            uuid: format!("declared-{index}"),
            model: "declared".to_owned(),
            memory_bytes: 0,
        })
        .collect()
}

fn to_proto(gpu: FoundGpu) -> Gpu {
    Gpu {
        index: gpu.index,
        uuid: gpu.uuid,
        model: gpu.model,
        memory_bytes: gpu.memory_bytes,
    }
}

/// `gpu4-declared`, `gpu8-nvidia-a100-sxm4-80gb`, `cpu2`.
fn default_class(gpus: &[Gpu], cpus: u32) -> String {
    let Some(first) = gpus.first() else {
        return format!("cpu{cpus}");
    };
    let mixed = gpus.iter().any(|gpu| gpu.model != first.model);
    let model = if mixed { "mixed" } else { &first.model };
    let words: Vec<String> = model
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    format!("gpu{}-{}", gpus.len(), words.join("-"))
}

/// What sysinfo says of the host.
struct Machine {
    cpus: u32,
    memory_bytes: u64,
    os: String,
    kernel: String,
}

/// Reads only what is wanted: a full refresh would walk every process of the host.
fn machine() -> Machine {
    let wanted = RefreshKind::nothing()
        .with_cpu(CpuRefreshKind::nothing())
        .with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(wanted);
    Machine {
        cpus: u32::try_from(system.cpus().len().max(1)).unwrap_or(u32::MAX),
        memory_bytes: system.total_memory(),
        os: System::long_os_version().unwrap_or_else(|| "Linux".to_owned()),
        kernel: System::kernel_version().unwrap_or_default(),
    }
}

fn read_line(path: &str) -> String {
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(model: &str) -> Gpu {
        Gpu {
            index: 0,
            uuid: String::new(),
            model: model.to_owned(),
            memory_bytes: 0,
        }
    }

    #[test]
    fn a_class_says_what_the_node_is() {
        assert_eq!(default_class(&declared(4), 2), "gpu4-declared");
        assert_eq!(default_class(&[], 2), "cpu2");
        assert_eq!(
            default_class(&[gpu("NVIDIA A100-SXM4-80GB")], 2),
            "gpu1-nvidia-a100-sxm4-80gb"
        );
        assert_eq!(default_class(&[gpu("A"), gpu("B")], 2), "gpu2-mixed");
    }

    #[test]
    fn the_loopback_interface_holds_the_loopback_address() {
        assert_eq!(interface_of("127.0.0.1").as_deref(), Some("lo"));
        assert_eq!(interface_of("192.0.2.1"), None);
    }

    #[test]
    fn the_loopback_interface_has_no_hardware_address_and_others_have_six_bytes() {
        assert_eq!(hardware_address("lo"), None);
        let others = getifaddrs().unwrap().map(|entry| entry.interface_name);
        for mac in others.filter_map(|name| hardware_address(&name)) {
            assert_eq!(mac.split(':').count(), 6, "{mac}");
        }
    }

    #[test]
    fn the_machine_is_described() {
        let machine = machine();
        let info = std::fs::read_to_string("/proc/meminfo").unwrap();
        let total = info.lines().next().unwrap().split_whitespace().nth(1);
        let total_kib: u64 = total.unwrap().parse().unwrap();
        assert_eq!(machine.memory_bytes, total_kib * 1024);
        let stat = std::fs::read_to_string("/proc/stat").unwrap();
        let of_one = |line: &&str| {
            line.strip_prefix("cpu")
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        let cpus = stat.lines().filter(of_one).count();
        assert_eq!(usize::try_from(machine.cpus).unwrap(), cpus);
        assert_eq!(machine.kernel, read_line("/proc/sys/kernel/osrelease"));
        assert!(machine.os.starts_with("Linux"), "{}", machine.os);
        assert!(!boot_id().is_empty());
    }
}

//! An NFS server in user space on a namespace host: exports one folder of the machine over NFS v4.1.
//!
//! NFS v3 is left out: it needs a port mapper beside it. The server must never bind an address outside its host.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::Host;
use crate::error::{Context, Result};
use crate::process::{Daemon, wait_until};

const PORT: u16 = 2049;
const START_TIMEOUT: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(200);

/// A running NFS server. It stops when dropped; its export stays.
pub struct Ganesha {
    daemon: Daemon,
    address: SocketAddr,
    // After the daemon, which uses it to its end.
    _folder: TempDir,
}

impl Ganesha {
    /// Serves `export` as `/export` from `host`, and returns once it accepts connections.
    pub fn start(host: &Host, export: &Path) -> Result<Self> {
        let folder = TempDir::with_prefix("trainyard-nfs-").cannot("make a temporary folder")?;
        let recovery = folder.path().join("recovery");
        fs::create_dir(&recovery).cannot("make the NFS server's recovery folder")?;
        let conf = folder.path().join("ganesha.conf");
        fs::write(&conf, configuration(host, export, &recovery))
            .cannot("write the NFS server's configuration")?;
        let spec = Spec {
            entrance: host.entrance(),
            conf,
            folder: folder.path().to_owned(),
        };
        let log = folder.path().join("ganesha.log");
        let mut daemon = Daemon::new(format!("ganesha on {}", host.name()), log, move || {
            spec.command()
        });
        daemon.start()?;
        let address = SocketAddr::from((host.address(), PORT));
        let mut server = Self {
            daemon,
            address,
            _folder: folder,
        };
        server.wait_ready()?;
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process, to stop (`SIGSTOP`), kill or start it again.
    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    /// Waits until it accepts connections from the test's own place on the network.
    pub fn wait_ready(&mut self) -> Result<()> {
        let (daemon, address) = (&mut self.daemon, self.address);
        wait_until(
            &format!("the NFS server accepts connections at {address}"),
            START_TIMEOUT,
            || {
                daemon.check_alive()?;
                Ok(TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).ok())
            },
        )
        .map(drop)
    }
}

struct Spec {
    entrance: super::net::Entrance,
    conf: PathBuf,
    folder: PathBuf,
}

impl Spec {
    fn command(&self) -> std::process::Command {
        let mut command = self.entrance.command("ganesha.nfsd");
        command
            .args(["-F", "-L", "/dev/stderr", "-f"])
            .arg(&self.conf)
            .arg("-p")
            .arg(self.folder.join("ganesha.pid"));
        command
    }
}

fn configuration(host: &Host, export: &Path, recovery: &Path) -> String {
    format!(
        r#"NFS_CORE_PARAM {{
  Bind_addr = {address};
  NFS_Port = {PORT};
  Protocols = 4;
  Enable_NLM = false;
  Enable_RQUOTA = false;
  Enable_UDP = false;
}}
NFSV4 {{ Graceless = true; Only_Numeric_Owners = true; RecoveryBackend = fs; RecoveryRoot = "{recovery}"; }}
EXPORT {{
  Export_Id = 1;
  Path = "{export}";
  Pseudo = /export;
  Access_Type = RW;
  Squash = No_Root_Squash;
  SecType = sys;
  Protocols = 4;
  Transports = TCP;
  FSAL {{ Name = VFS; }}
}}
LOG {{ Default_Log_Level = EVENT; }}
"#,
        address = host.address(),
        recovery = recovery.display(),
        export = export.display(),
    )
}

//! `trainyard dev`: schedulers and agents on this machine, to try things out. They are children of this command and end
//! with it. Nothing here is for production: one machine, declared GPUs, the authority's key beside the rest.

mod daemon;
mod layout;
mod ports;

use std::future::{Future, poll_fn};
use std::path::{Path, PathBuf};
use std::task::Poll;
use std::time::Duration;

use clap::Args;
use nix::fcntl::{Flock, FlockArg};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, sleep_until};
use trainyard_proto::v1::NodeState;
use trainyard_shared::client::{Client, ConfigFile};

use crate::api::Api;
use crate::console::note;
use crate::error::Error;
use crate::output;
use crate::text::{count, last_segment};
use daemon::{Daemon, Plan};
use layout::{Layout, Wanted};

/// How long a daemon may take to end before it is ended by force.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two looks whether the nodes are registered.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// After this time without being ready the command says what it waits for.
const SLOW_START: Duration = Duration::from_secs(30);

/// See the head of this file.
#[derive(Debug, Args)]
#[command(
    after_help = "Ctrl-C ends the daemons; the data stays, and the next `trainyard dev` on it goes on. Jobs that run meanwhile \
                        end when the lease of their node expires, unless the daemons are back before."
)]
pub(crate) struct Command {
    /// Schedulers [default: 3, or what the data has]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=9))]
    schedulers: Option<u32>,
    /// Nodes [default: 2, or what the data has]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(0..=64))]
    nodes: Option<u32>,
    /// GPUs that each node declares; there need not be any
    #[arg(long, value_name = "COUNT", default_value_t = 4)]
    gpus: u32,
    /// Data directory [default: ~/.local/share/trainyard/dev, for root /var/lib/trainyard-dev]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Scheduler N listens at 127.0.0.1, port BASE+N [default: 7400, or what the data has]
    #[arg(long, value_name = "BASE")]
    port: Option<u16>,
    /// User that tasks run as when this command runs as root [default: the agent's]
    #[arg(long, value_name = "NAME")]
    task_user: Option<String>,
}

/// Runs until Ctrl-C or SIGTERM, or until no daemon is left.
pub(crate) async fn run(command: Command) -> Result<u8, Error> {
    let scheduler = sibling("trainyard-scheduler")?;
    let agent = sibling("trainyard-agent")?;
    let data = match &command.data {
        Some(data) => data.clone(),
        None => layout::default_data()?,
    };
    let wanted = Wanted {
        schedulers: command.schedulers,
        nodes: command.nodes,
        port: command.port,
    };
    let layout = Layout::open(&data, wanted, &scheduler)?;
    let _lock = lock(&layout)?;
    ports::check(&layout.members, &layout.data)?;
    // From here on a signal must end the daemons too.
    let mut stop = StopSignals::new()?;
    let mut daemons = Vec::new();
    let result = match start(&layout, &command, &scheduler, &agent, &mut daemons) {
        Ok(()) => {
            introduce(&layout, &command, &daemons);
            watch(&layout, &mut daemons, &mut stop).await
        }
        Err(error) => Err(error),
    };
    end(&mut daemons, &mut stop).await;
    result.map(|()| 0)
}

/// A program of the same installation.
fn sibling(name: &str) -> Result<PathBuf, Error> {
    let own = std::env::current_exe()
        .map_err(|error| Error::failure(format!("cannot find this program: {error}")))?;
    let path = own.with_file_name(name);
    if path.exists() {
        Ok(path)
    } else {
        Err(Error::failure(format!(
            "there is no {}; install {name} next to trainyard",
            path.display()
        )))
    }
}

/// Keeps a second `trainyard dev` off the same data.
fn lock(layout: &Layout) -> Result<Flock<std::fs::File>, Error> {
    let path = layout.lock_file();
    let file = std::fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| Error::failure(format!("cannot open {}: {error}", path.display())))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
        Error::failure(format!(
            "another `trainyard dev` uses {}; stop it, or pass `--data DIR --port BASE` for a second one",
            layout.data.display()
        ))
    })
}

fn start(
    layout: &Layout,
    command: &Command,
    scheduler: &Path,
    agent: &Path,
    daemons: &mut Vec<Daemon>,
) -> Result<(), Error> {
    for (id, _) in &layout.members {
        let name = format!("scheduler-{id}");
        let arguments = vec![
            "run".into(),
            "--config".into(),
            layout.scheduler_config(*id).into(),
        ];
        daemons.push(Daemon::start(plan(layout, name, scheduler, arguments))?);
    }
    for node in &layout.nodes {
        let mut arguments = vec![
            "run".into(),
            "--config".into(),
            layout.agent_config(node).into(),
        ];
        for (flag, value) in [("--listen", "127.0.0.1:0"), ("--address", "127.0.0.1")] {
            arguments.extend([flag.into(), value.into()]);
        }
        arguments.extend(["--gpus".into(), command.gpus.to_string().into()]);
        if let Some(user) = &command.task_user {
            arguments.extend(["--task-user".into(), user.into()]);
        }
        daemons.push(Daemon::start(plan(
            layout,
            agent_name(node),
            agent,
            arguments,
        ))?);
    }
    Ok(())
}

fn agent_name(node: &str) -> String {
    format!("agent-{node}")
}

fn plan(layout: &Layout, name: String, program: &Path, arguments: Vec<std::ffi::OsString>) -> Plan {
    Plan {
        log: layout.log(&name),
        pid_file: layout.pid_file(&name),
        program: program.to_owned(),
        arguments,
        name,
    }
}

fn introduce(layout: &Layout, command: &Command, daemons: &[Daemon]) {
    let nodes = layout.nodes.len() as u64;
    let mut text = format!(
        "{} and {} with {} each (declared), data in {}\n",
        count(layout.members.len() as u64, "scheduler"),
        count(nodes, "node"),
        count(command.gpus.into(), "GPU"),
        layout.data.display()
    );
    for daemon in daemons {
        let pid = daemon.pid().unwrap_or_default();
        text.push_str(&format!(
            "  {:16} pid {pid:<8} {}\n",
            daemon.name,
            daemon.log.display()
        ));
    }
    text.push_str("use it from another terminal:\n");
    text.push_str(&format!(
        "  export TRAINYARD_CONFIG={}\n",
        layout.client_config().display()
    ));
    text.push_str("  trainyard node list\n");
    // Whoever started this may have closed its stdout; the daemons run all the same.
    let _ = output::write(&text);
}

/// Watches the daemons until a signal comes or none of them is left.
async fn watch(
    layout: &Layout,
    daemons: &mut [Daemon],
    stop: &mut StopSignals,
) -> Result<(), Error> {
    let config = ConfigFile::load(&layout.client_config()).and_then(|file| file.client_config());
    let client = config
        .and_then(Client::new)
        .map_err(|error| Error::failure(error.to_string()))?;
    let api = Api::new(client);
    let slow = tokio::time::Instant::now() + SLOW_START;
    let (mut is_ready, mut is_slow) = (false, false);
    loop {
        tokio::select! {
            () = stop.received() => return Ok(()),
            index = first_end(daemons) => {
                let daemon = &daemons[index];
                report_death(daemon);
                if !daemons.iter().any(Daemon::runs) {
                    return Err(Error::failure("no daemon is left"));
                }
            }
            registered = registered(&api), if !is_ready => {
                let missing = missing(layout, daemons, &registered);
                is_ready = missing.is_empty();
                if is_ready {
                    let _ = output::write("ready\n");
                } else {
                    sleep(LOOK_EVERY).await;
                }
            }
            () = sleep_until(slow), if !is_ready && !is_slow => {
                is_slow = true;
                note(&format!("not ready yet; the logs in {} say why", layout.data.join("logs").display()));
            }
        }
    }
}

/// Nodes that are ready, as the schedulers see them; none when no scheduler answers.
async fn registered(api: &Api) -> Vec<String> {
    let nodes = api.all_nodes("").await.unwrap_or_default();
    let ready = nodes.iter().filter(|node| node.state() == NodeState::Ready);
    ready
        .map(|node| last_segment(&node.name).to_owned())
        .collect()
}

/// Nodes that are not ready. The schedulers remember those of an earlier run until their leases expire; so the agent of this
/// run must have said so, too.
fn missing(layout: &Layout, daemons: &[Daemon], registered: &[String]) -> Vec<String> {
    let is_ready = |node: &&String| {
        let name = agent_name(node);
        registered.contains(*node)
            && daemons
                .iter()
                .any(|daemon| daemon.name == name && daemon.has_logged("trainyard-agent ready"))
    };
    layout
        .nodes
        .iter()
        .filter(|node| !is_ready(node))
        .cloned()
        .collect()
}

/// Waits until one of the daemons that run has ended; which one.
async fn first_end(daemons: &mut [Daemon]) -> usize {
    let mut ends: Vec<_> = daemons
        .iter_mut()
        .enumerate()
        .filter(|(_, daemon)| daemon.runs())
        .map(|(index, daemon)| {
            Box::pin(async move {
                daemon.ended().await;
                index
            })
        })
        .collect();
    poll_fn(|context| {
        for end in &mut ends {
            if let Poll::Ready(index) = end.as_mut().poll(context) {
                return Poll::Ready(index);
            }
        }
        Poll::Pending
    })
    .await
}

fn report_death(daemon: &Daemon) {
    note(&format!(
        "{} has ended by itself ({}); the others go on. Its log ends:",
        daemon.name,
        daemon.how_it_ended()
    ));
    for line in daemon.last_lines() {
        note(&format!("  {line}"));
    }
}

/// Ends agents, then schedulers, so that agents can say goodbye. A second signal ends all of them by force.
async fn end(daemons: &mut [Daemon], stop: &mut StopSignals) {
    if daemons.iter().any(Daemon::runs) {
        note("ending the daemons; their data stays");
    }
    tokio::select! {
        () = end_in_order(daemons) => return,
        () = stop.received() => {}
    }
    for daemon in daemons.iter_mut() {
        daemon.end(Duration::ZERO).await;
    }
}

async fn end_in_order(daemons: &mut [Daemon]) {
    for is_scheduler in [false, true] {
        let is_of_kind = |daemon: &Daemon| daemon.name.starts_with("scheduler-") == is_scheduler;
        for daemon in daemons.iter().filter(|daemon| is_of_kind(daemon)) {
            daemon.ask_to_end();
        }
        for daemon in daemons.iter_mut().filter(|daemon| is_of_kind(daemon)) {
            daemon.end(PATIENCE).await;
        }
    }
}

/// Signals that ask this command to stop.
struct StopSignals {
    signals: Vec<tokio::signal::unix::Signal>,
}

impl StopSignals {
    fn new() -> Result<Self, Error> {
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ];
        let signals: Result<Vec<_>, _> = kinds.into_iter().map(signal).collect();
        match signals {
            Ok(signals) => Ok(Self { signals }),
            Err(error) => Err(Error::failure(format!("cannot wait for signals: {error}"))),
        }
    }

    async fn received(&mut self) {
        poll_fn(|context| {
            for signal in &mut self.signals {
                if signal.poll_recv(context).is_ready() {
                    return Poll::Ready(());
                }
            }
            Poll::Pending
        })
        .await;
    }
}

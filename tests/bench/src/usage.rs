//! What a process uses: memory and processor time, as the kernel counts them. It never estimates from samples.

use std::fs;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::error::{BenchError, Context, Result};
use crate::stats::round;

/// Processor time that a process has used so far, all its threads together, including those that have ended.
pub(crate) fn cpu_time(pid: Pid) -> Result<Duration> {
    clock_getcpuclockid(pid)
        .and_then(ClockId::now)
        .map(Duration::from)
        .cannot(format_args!("read the processor time of process {pid}"))
}

/// Processor time that the whole machine has used so far, in steps of the kernel's clock tick (10 ms as a rule).
fn machine_time() -> Result<Duration> {
    let table = fs::read_to_string("/proc/stat").cannot("read /proc/stat")?;
    let ticks = busy_ticks(&table)
        .ok_or_else(|| BenchError::new("/proc/stat has no line for all processors"))?;
    let per_second = sysconf(SysconfVar::CLK_TCK)
        .cannot("ask for the length of a tick")?
        .unwrap_or(100);
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

/// User, nice, system, irq and softirq of all processors.
fn busy_ticks(table: &str) -> Option<u64> {
    let line = table.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line
        .split_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    [0, 1, 2, 5, 6].iter().map(|index| fields.get(*index)).sum()
}

/// Processor time of some processes, and of this one, over a span of time.
pub(crate) struct CpuMeter {
    pids: Vec<Pid>,
    before: Vec<Duration>,
    machine_before: Duration,
    started: Instant,
}

/// What a [`CpuMeter`] read.
pub(crate) struct CpuUse {
    /// As the pids were given, and this process last.
    used: Vec<Duration>,
    machine: Duration,
    span: Duration,
}

impl CpuMeter {
    /// Starts to count for these processes. They have to live until [`CpuMeter::read`].
    pub(crate) fn start(mut pids: Vec<Pid>) -> Result<Self> {
        pids.push(Pid::this());
        Ok(Self {
            machine_before: machine_time()?,
            before: pids.iter().copied().map(cpu_time).collect::<Result<_>>()?,
            pids,
            started: Instant::now(),
        })
    }

    /// What was used since the start.
    pub(crate) fn read(&self) -> Result<CpuUse> {
        let span = self.started.elapsed();
        let now = self.pids.iter().copied().map(cpu_time);
        let used = now
            .zip(&self.before)
            .map(|(now, before)| now.map(|now| now.saturating_sub(*before)))
            .collect::<Result<_>>()?;
        let machine = machine_time()?.saturating_sub(self.machine_before);
        Ok(CpuUse {
            used,
            machine,
            span,
        })
    }
}

impl CpuUse {
    /// Percent of one processor that the process with this index used.
    pub(crate) fn percent(&self, index: usize) -> f64 {
        let used = self.used.get(index).copied().unwrap_or_default();
        round(100.0 * used.as_secs_f64() / self.span.as_secs_f64())
    }

    /// The highest of all but one, this process not counted; zero without any.
    pub(crate) fn highest_percent_but(&self, but: usize) -> f64 {
        (0..self.used.len() - 1)
            .filter(|index| *index != but)
            .map(|index| self.percent(index))
            .fold(0.0, f64::max)
    }

    /// Percent of one processor that this process used.
    pub(crate) fn own_percent(&self) -> f64 {
        self.percent(self.used.len() - 1)
    }

    /// Percent of one processor that everything else on the machine used: strangers, and the kernel's own threads. Much
    /// of it means that the measurement was disturbed.
    pub(crate) fn other_percent(&self) -> f64 {
        let other = self.machine.saturating_sub(self.used.iter().sum());
        round(100.0 * other.as_secs_f64() / self.span.as_secs_f64())
    }
}

/// Resident memory of a process in MiB.
pub(crate) fn resident_mib(pid: Pid) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).cannot(format_args!("read {path}"))?;
    resident_kib(&status)
        .map(|kib| kib as f64 / 1024.0)
        .ok_or_else(|| BenchError::new(format!("{path} has no VmRSS: the process has ended")))
}

fn resident_kib(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        assert!(resident_mib(Pid::this()).unwrap() > 0.5);
        assert!(cpu_time(Pid::this()).unwrap() > Duration::ZERO);
    }

    #[test]
    fn waiting_is_not_busy() {
        let table = "cpu  1 2 3 1000 1000 6 7 1000 0 0\ncpu0 9 9 9 9 9 9 9 9 9 9\n";
        assert_eq!(busy_ticks(table), Some(19));
        assert_eq!(busy_ticks("cpu 1 2"), None);
        assert!(machine_time().unwrap() > Duration::ZERO);
    }

    #[test]
    fn an_ended_process_has_no_memory() {
        assert_eq!(resident_kib("Name:\tx\nState:\tZ (zombie)\n"), None);
        assert_eq!(resident_kib("VmRSS:\t    1904 kB\n"), Some(1904));
    }
}

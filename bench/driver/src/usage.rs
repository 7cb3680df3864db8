//! Processor time and memory of processes, from `/proc`.

use std::fs;
use std::time::Duration;

use rustix::param::clock_ticks_per_second;
use rustix::process::Pid;

/// The processor time of a process, its children, and its ended children that were waited for. The resolution is
/// 10 ms.
pub fn cpu(pid: Pid) -> Duration {
    own_cpu(pid, 4) + children(pid).into_iter().map(cpu).sum::<Duration>()
}

/// The processor time of this process, whose threads generate the load.
pub fn generator_cpu() -> Duration {
    own_cpu(rustix::process::getpid(), 2)
}

/// How long the threads of a process and of its children were ready to run and had no processor
/// (Documentation/scheduler/sched-stats in the kernel's source). Only of threads that still run.
pub fn wait(pid: Pid) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).into_iter().flatten().flatten();
    let waited = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let own = Duration::from_nanos(tasks.filter_map(waited).sum());
    own + children(pid).into_iter().map(wait).sum::<Duration>()
}

/// Processor time of the whole machine, in clock ticks since its start (proc(5), `/proc/stat`).
#[derive(Clone, Copy, Debug)]
pub struct Ticks {
    /// All but idle time and waits for a disk.
    busy: u64,
    /// The part of `busy` that the hypervisor gave to other machines.
    stolen: u64,
}

impl Ticks {
    /// Up to now.
    pub fn now() -> Ticks {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = stat.lines().next().unwrap_or_default();
        // user, nice, system, idle, iowait, irq, softirq, steal; the later fields are contained in user and nice.
        let fields: Vec<u64> =
            line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        let at = |field: usize| fields.get(field).copied().unwrap_or_default();
        Ticks { busy: [0, 1, 2, 5, 6, 7].into_iter().map(at).sum(), stolen: at(7) }
    }

    /// The share of the busy time since then that was stolen, in percent.
    pub fn stolen_percent_since(self) -> f64 {
        let now = Ticks::now();
        100.0 * (now.stolen - self.stolen) as f64 / (now.busy - self.busy).max(1) as f64
    }
}

/// The sum of the first `count` of utime, stime, cutime and cstime (proc(5)).
fn own_cpu(pid: Pid, count: usize) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    // The program's name stands in parentheses and may contain any character: count from the last parenthesis.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: u64 = fields.skip(11).take(count).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_secs_f64(ticks as f64 / clock_ticks_per_second() as f64)
}

/// The memory that a process and its children use now, in MiB.
pub fn resident_mib(pid: Pid) -> f64 {
    memory_mib(pid, "VmRSS:")
}

/// The sum of the peak memory of a process and of its children, in MiB.
pub fn peak_mib(pid: Pid) -> f64 {
    memory_mib(pid, "VmHWM:")
}

fn memory_mib(pid: Pid, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib: f64 = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default();
    kib / 1024.0 + children(pid).into_iter().map(|child| memory_mib(child, field)).sum::<f64>()
}

fn children(pid: Pid) -> Vec<Pid> {
    let number = pid.as_raw_nonzero();
    let listed = fs::read_to_string(format!("/proc/{number}/task/{number}/children")).unwrap_or_default();
    listed.split_whitespace().filter_map(|word| Pid::from_raw(word.parse().ok()?)).collect()
}

//! Parsers for the kernel's text files. They allocate nothing and accept anything: a line that is not
//! understood counts as absent, because a monitor that stops is worse than one that sees less.

use guest_policy::{CpuReading, MemoryReading, Zones};
use guest_units::{Bytes, MilliCpu};

/// The kernel's clock tick in microseconds, as `/proc/stat` shows it on every architecture.
const TICK_USEC: u64 = 10_000;
/// Size of a page.
const PAGE: u64 = 4096;

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

fn number(word: &[u8]) -> Option<u64> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

/// First word and the number behind it.
fn pair(line: &[u8]) -> Option<(&[u8], u64)> {
    let mut words = words(line);
    Some((words.next()?, number(words.next()?)?))
}

/// `/proc/meminfo`. `None` without the two lines that nothing can be judged without.
pub(crate) fn meminfo(text: &[u8]) -> Option<MemoryReading> {
    let mut memory = MemoryReading::default();
    let (mut swap_total, mut swap_free, mut swap_cached) = (Bytes::ZERO, Bytes::ZERO, Bytes::ZERO);
    let (mut total, mut available) = (None, None);
    for (key, kib) in lines(text).filter_map(pair) {
        let bytes = Bytes::from_kib(kib);
        match key {
            b"MemTotal:" => total = Some(bytes),
            b"MemFree:" => memory.free = bytes,
            b"MemAvailable:" => available = Some(bytes),
            b"Active(file):" => memory.active_file = bytes,
            b"Inactive(file):" => memory.inactive_file = bytes,
            b"Cached:" => memory.cached = bytes,
            b"SReclaimable:" => memory.slab_reclaimable = bytes,
            b"Dirty:" | b"Writeback:" => memory.dirty = memory.dirty.saturating_add(bytes),
            b"AnonPages:" | b"Shmem:" | b"SUnreclaim:" | b"KernelStack:" | b"PageTables:"
            | b"Percpu:" => memory.counted = memory.counted.saturating_add(bytes),
            b"SwapTotal:" => swap_total = bytes,
            b"SwapFree:" => swap_free = bytes,
            b"SwapCached:" => swap_cached = bytes,
            _ => {}
        }
    }
    (memory.total, memory.available) = (total?, available?);
    memory.swap_used = swap_total.saturating_sub(swap_free).saturating_sub(swap_cached);
    Some(memory)
}

/// Refaults of `/proc/vmstat` that more memory would have spared.
pub(crate) fn refaults(text: &[u8]) -> u64 {
    lines(text)
        .filter_map(pair)
        .filter(|(name, _)| {
            [b"workingset_activate_file".as_slice(), b"workingset_refault_anon"].contains(name)
        })
        .fold(0, |sum, (_, count)| sum.saturating_add(count))
}

/// `/proc/stat`: time of all CPUs, how many there are, and what runs.
pub(crate) fn stat(text: &[u8], cpu: &mut CpuReading) {
    for line in lines(text) {
        let mut words = words(line);
        match words.next() {
            Some(b"cpu") => cpu.system_usec = busy_ticks(words).saturating_mul(TICK_USEC),
            Some(b"procs_running") => {
                let running = words.next().and_then(number).unwrap_or(0);
                // The reader is running, too.
                cpu.runnable = u32::try_from(running.saturating_sub(1)).unwrap_or(u32::MAX);
            }
            Some(word) if word.starts_with(b"cpu") => cpu.online = cpu.online.saturating_add(1),
            _ => {}
        }
    }
}

/// user, nice, system, irq and softirq: not idle, not waiting for disks, not stolen.
fn busy_ticks<'a>(words: impl Iterator<Item = &'a [u8]>) -> u64 {
    words
        .enumerate()
        .filter(|(column, _)| matches!(column, 0..=2 | 5 | 6))
        .filter_map(|(_, word)| number(word))
        .fold(0, u64::saturating_add)
}

/// `/proc/loadavg`: over one and five minutes, in thousandths.
pub(crate) fn loads(text: &[u8]) -> Option<(u32, u32)> {
    let mut words = words(text);
    Some((milli(words.next()?)?, milli(words.next()?)?))
}

/// A number with decimals, in thousandths. What is no such number is `None`.
fn milli(word: &[u8]) -> Option<u32> {
    let (whole, decimals) = match word.iter().position(|byte| *byte == b'.') {
        Some(point) => (word.get(..point)?, word.get(point + 1..)?),
        None => (word, &b""[..]),
    };
    if !decimals.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |at: usize| decimals.get(at).map_or(0, |digit| u64::from(digit - b'0'));
    let part = digit(0) * 100 + digit(1) * 10 + digit(2);
    u32::try_from(number(whole)?.checked_mul(1000)?.checked_add(part)?).ok()
}

/// `cpu.stat` of the workload's cgroup.
pub(crate) fn cpu_stat(text: &[u8], cpu: &mut CpuReading) {
    for (key, value) in lines(text).filter_map(pair) {
        match key {
            b"usage_usec" => cpu.workload_usec = Some(value),
            b"nr_periods" => cpu.periods = value,
            b"nr_throttled" => cpu.throttled = value,
            _ => {}
        }
    }
}

/// `cpu.max` of a cgroup: `None` for no limit.
pub(crate) fn quota(text: &[u8]) -> Option<MilliCpu> {
    let mut words = words(text);
    let (quota, period) = (number(words.next()?)?, number(words.next()?)?);
    let milli = u128::from(quota) * 1000 / u128::from(period.max(1));
    Some(MilliCpu(u32::try_from(milli).unwrap_or(u32::MAX)))
}

/// Microseconds in which some thread waited, of a pressure file.
pub(crate) fn pressure(text: &[u8]) -> u64 {
    lines(text)
        .filter(|line| line.starts_with(b"some "))
        .flat_map(words)
        .find_map(|word| number(word.strip_prefix(b"total=")?))
        .unwrap_or(0)
}

/// `/proc/zoneinfo`.
pub(crate) fn zoneinfo(text: &[u8]) -> Zones {
    let mut zones = Zones::default();
    let (mut movable, mut ours) = (false, false);
    for line in lines(text) {
        if line.starts_with(b"Node ") {
            movable = line.ends_with(b" Movable");
            ours = movable || [&b" Normal"[..], b" DMA32"].iter().any(|zone| line.ends_with(zone));
            // Tiny and kept for old devices: part of the memory, not of the room.
            continue;
        }
        let Some((key, pages)) = zone_value(line) else { continue };
        let bytes = Bytes(pages.saturating_mul(PAGE));
        let field = match (key, movable) {
            (b"present", _) => &mut zones.present,
            (b"managed", _) => &mut zones.managed,
            (b"free", true) => &mut zones.movable_free,
            (b"free", false) if ours => &mut zones.kernel_free,
            (b"low", false) if ours => &mut zones.kernel_low,
            (b"nr_zone_inactive_file" | b"nr_zone_active_file", false) if ours => {
                &mut zones.kernel_file
            }
            _ => continue,
        };
        *field = field.saturating_add(bytes);
    }
    zones
}

/// `pages free 123` and `low 45`; the first line of a zone's block carries a word in front.
fn zone_value(line: &[u8]) -> Option<(&[u8], u64)> {
    let mut words = words(line).skip_while(|word| *word == b"pages");
    Some((words.next()?, number(words.next()?)?))
}

/// CPU numbers of a list such as `0-3,5`.
pub(crate) fn cpu_list(text: &[u8]) -> Vec<u32> {
    /// More CPUs than any kernel supports.
    const MOST: u32 = 65_536;
    let mut cpus = Vec::new();
    for part in text.trim_ascii().split(|byte| *byte == b',') {
        let mut ends = part.split(|byte| *byte == b'-').map(number);
        let (first, last) = (ends.next().flatten(), ends.next());
        let (Some(first), Some(last)) = (first, last.unwrap_or(first)) else { continue };
        let to_u32 = |cpu| u32::try_from(cpu).ok().filter(|cpu| *cpu < MOST);
        if let (Some(first), Some(last)) = (to_u32(first), to_u32(last)) {
            cpus.extend(first..=last);
        }
    }
    cpus
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn meminfo_is_read() {
        let text = b"MemTotal:         496852 kB\nMemFree:          100000 kB\n\
            MemAvailable:     300000 kB\nBuffers: 10 kB\nCached: 20 kB\nActive(anon): 5 kB\n\
            Active(file):      40000 kB\nInactive(file):    60000 kB\nDirty:  8 kB\n\
            Writeback: 2 kB\nAnonPages: 70 kB\nShmem: 20 kB\nSUnreclaim: 10 kB\n\
            SReclaimable:      9000 kB\nSwapTotal: 2048 kB\nSwapFree: 1024 kB\n";
        let memory = meminfo(text).unwrap();
        assert_eq!(memory.total, Bytes::from_kib(496_852));
        assert_eq!(memory.available, Bytes::from_kib(300_000));
        assert_eq!(memory.inactive_file, Bytes::from_kib(60_000));
        assert_eq!(memory.counted, Bytes::from_kib(100));
        assert_eq!(memory.cached, Bytes::from_kib(20));
        assert_eq!((memory.dirty, memory.swap_used), (Bytes::from_kib(10), Bytes::from_mib(1)));
        assert_eq!(meminfo(b"MemTotal: 5 kB\n"), None);
        assert_eq!(meminfo(b""), None);
    }

    #[test]
    fn a_page_that_came_back_from_swap_counts_once() {
        let level = |anon: u32, cached: u32, free: u32| {
            let text = format!(
                "MemTotal: 900000 kB\nMemAvailable: 300000 kB\nSwapCached: {cached} kB\n\
                 AnonPages: {anon} kB\nSwapTotal: 200000 kB\nSwapFree: {free} kB\n"
            );
            meminfo(text.as_bytes()).unwrap().level()
        };
        let out = level(100_000, 0, 120_000);
        assert_eq!(level(180_000, 80_000, 120_000), out, "it keeps its place in swap at first");
        assert_eq!(level(180_000, 0, 200_000), out, "and loses it later");
    }

    #[test]
    fn load_averages_are_read_as_they_are_written() {
        assert_eq!(loads(b"0.30 12.05 7.00 2/345 6789\n"), Some((300, 12_050)));
        assert_eq!(loads(b"3 0.5 0"), Some((3000, 500)));
        for wrong in [&b""[..], b"0.30", b"x 1", b"-1.0 0", b"nan 0", b"1.x 0", b"9999999999.00 0"]
        {
            assert_eq!(loads(wrong), None);
        }
    }

    #[test]
    fn stat_counts_work_and_cpus() {
        let text = b"cpu  100 20 30 1000 500 3 4 50 60 0\ncpu0 50 10 15 500 250 1 2 25 30 0\n\
            cpu1 50 10 15 500 250 2 2 25 30 0\nintr 5 1 2 3\nctxt 99\nprocs_running 3\n";
        let mut cpu = CpuReading::default();
        stat(text, &mut cpu);
        assert_eq!((cpu.online, cpu.runnable), (2, 2));
        assert_eq!(cpu.system_usec, 157 * 10_000);
    }

    #[test]
    fn cgroup_files_are_read() {
        let mut cpu = CpuReading::default();
        cpu_stat(b"usage_usec 77\nuser_usec 5\nnr_periods 8\nnr_throttled 3\n", &mut cpu);
        assert_eq!((cpu.workload_usec, cpu.periods, cpu.throttled), (Some(77), 8, 3));
        assert_eq!(quota(b"max 100000\n"), None);
        assert_eq!(quota(b"10000 40000\n"), Some(MilliCpu(250)));
        assert_eq!(quota(b"junk"), None);
        let text = b"some avg10=0.00 avg60=0.00 avg300=0.00 total=12345\nfull avg10=0.00 total=9\n";
        assert_eq!(pressure(text), 12345);
        let vmstat = b"workingset_refault_anon 3\nworkingset_refault_file 50\n\
                       workingset_activate_anon 2\nworkingset_activate_file 4\nx 9\n";
        assert_eq!(refaults(vmstat), 7);
    }

    #[test]
    fn zones_are_told_apart() {
        let text = b"Node 0, zone      DMA\n  per-node stats\n      nr_zone_x 5\n  pages free     10\n        \
            low      2\n        present  100\n        managed  90\nNode 0, zone   Normal\n  \
            pages free     1000\n        boost    0\n        low      50\n        present  5000\n        \
            managed  4800\n      nr_zone_inactive_file 7\n      nr_zone_active_file 3\nNode 0, zone  \
            Movable\n  pages free     9000\n        low      70\n        present  10000\n        \
            managed  10000\n      nr_zone_active_file 500\n";
        let zones = zoneinfo(text);
        assert_eq!(zones.present, Bytes(15_100 * 4096));
        assert_eq!(zones.managed, Bytes(14_890 * 4096));
        assert_eq!(zones.kernel_free, Bytes(1000 * 4096));
        assert_eq!(zones.kernel_low, Bytes(50 * 4096));
        assert_eq!(zones.kernel_file, Bytes(10 * 4096));
        assert_eq!(zones.movable_free, Bytes(9000 * 4096));
    }

    #[test]
    fn cpu_lists_are_read() {
        assert_eq!(cpu_list(b"0-3,5\n"), [0, 1, 2, 3, 5]);
        assert_eq!(cpu_list(b"0\n"), [0]);
        assert!(cpu_list(b"\n").is_empty());
        assert!(cpu_list(b"0-4294967295\n").is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(text in prop::collection::vec(any::<u8>(), 0..500)) {
            let mut cpu = CpuReading::default();
            let _ = (meminfo(&text), loads(&text), zoneinfo(&text), quota(&text), pressure(&text), cpu_list(&text));
            stat(&text, &mut cpu);
            cpu_stat(&text, &mut cpu);
        }

        #[test]
        fn absurd_numbers_are_survived(value: u64, other: u64) {
            let text = format!(
                "MemTotal: {value} kB\nMemAvailable: {other} kB\nDirty: {value}\nWriteback: {value}\n\
                 cpu {value} {value} {other} 1 1 {value} {other}\ncpu0\nprocs_running {value}\n\
                 {value} {other}\n  pages free {value}\n present {value}\n present {other}\n{value}-{other}"
            );
            let mut cpu = CpuReading::default();
            let text = text.as_bytes();
            let _ = (meminfo(text), zoneinfo(text), quota(text), cpu_list(text));
            stat(text, &mut cpu);
        }
    }
}

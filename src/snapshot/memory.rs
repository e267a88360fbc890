//! How much of a process's memory a dump has to hold.

/// Bytes of anonymous memory and of changed pages of files, present or swapped out, in the text of
/// `/proc/PID/smaps` (proc_pid_smaps(5)).
pub(super) fn to_be_dumped(smaps: &str) -> u64 {
    let kilobytes: u64 = smaps
        .lines()
        .filter_map(|line| {
            let amount = line.strip_prefix("Anonymous:").or_else(|| line.strip_prefix("Swap:"))?;
            amount.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        })
        .sum();
    kilobytes.saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::to_be_dumped;

    #[test]
    fn anonymous_and_swapped_memory_counts() {
        let smaps = "7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \n\
                     Rss:                   8 kB\nAnonymous:             4 kB\n\
                     AnonHugePages:         0 kB\nSwap:                  2 kB\nSwapPss:  2 kB\n\
                     7f0000002000-7f0000003000 rw-p 00000000 00:00 0 \nAnonymous:    10 kB\n";
        assert_eq!(to_be_dumped(smaps), 16 * 1024);
        assert_eq!(to_be_dumped(""), 0);
    }
}

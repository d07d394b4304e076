//! Giving memory back once the start is over, and after work.
//!
//! Reading the configuration, opening the database and building command lines touch most of the binary's code and leave
//! holes in the heap; a core that then waits for requests needs a small part of either.
//! On a small machine that is worth a look or two when the start is over, and one when there were requests and now are none.

use std::ffi::c_void;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::time::Duration;

use rustix::mm::{Advice, madvise};

/// When the start is over: of most, and of those whose plugins take their time.
pub const SETTLED: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];

/// More than this beyond what was left the last time is worth giving back.
pub const GROWN: u64 = 4 * 1024 * 1024;

/// Unmaps the pages of the program's code and constants, which come back from the page cache as they are used, and gives
/// free heap back to the system. Does nothing where `/proc` cannot be read.
pub fn give_back() {
    // In pieces: whatever this took at once would be what is left in the heap.
    if let Ok(smaps) = File::open("/proc/self/smaps") {
        each_unwritten(BufReader::new(smaps), |start, bytes| {
            // SAFETY: the range is a private, file-backed mapping without write permission and without a page of its own,
            // as the kernel has just listed it, and nothing unmaps or relocates the program any more: its pages hold what
            // the file holds, so dropping them loses nothing, and the next access reads them anew.
            let _ = unsafe { madvise(start as *mut c_void, bytes, Advice::LinuxDontNeed) };
        });
    }
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks, and touches free memory alone.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Gives address and length of each mapping that holds what its file holds: not writable, and no page was changed before
/// it became so, as those are that the loader relocates. Stops where it cannot be read further.
fn each_unwritten(mut smaps: impl BufRead, mut unwritten: impl FnMut(usize, usize)) {
    let mut current = None;
    let mut line = String::new();
    while smaps.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
        let mut fields = line.split_ascii_whitespace();
        if let Some(first) = fields.next() {
            if first == "Anonymous:" {
                if let Some((start, bytes)) = current.take().filter(|_| fields.next() == Some("0")) {
                    unwritten(start, bytes);
                }
            } else if !first.ends_with(':') {
                current = mapping_of(first, fields);
            }
        }
        line.clear();
    }
}

fn mapping_of<'a>(range: &str, mut rest: impl Iterator<Item = &'a str>) -> Option<(usize, usize)> {
    let access = rest.next()?;
    if !matches!(access, "r-xp" | "r--p") || !rest.nth(3)?.starts_with('/') {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn unwritten_in(smaps: &str) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        each_unwritten(smaps.as_bytes(), |start, bytes| found.push((start, bytes)));
        found
    }

    #[test]
    fn only_what_its_file_holds_is_unmapped() {
        let smaps = "\
55d0c0000000-55d0c0010000 r--p 00000000 fe:00 12 /usr/bin/toru
Rss:                  64 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
55d0c0010000-55d0c0450000 r-xp 00010000 fe:00 12 /usr/bin/toru
Anonymous:             0 kB
55d0c0450000-55d0c0460000 r--p 00450000 fe:00 12 /usr/bin/toru
Anonymous:             4 kB
55d0c0460000-55d0c0470000 rw-p 00460000 fe:00 12 /usr/bin/toru
Anonymous:             0 kB
55d0c0470000-55d0c0480000 r--s 00460000 fe:00 12 /usr/bin/toru
Anonymous:             0 kB
7f0000000000-7f0000001000 r-xp 00000000 00:00 0 
Anonymous:             0 kB
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
55d0c0490000-55d0c04a0000 r-xp 00010000 fe:00 12 /usr/bin/without-an-end
nonsense
";
        assert_eq!(unwritten_in(smaps), [(0x55d0_c000_0000, 0x1_0000), (0x55d0_c001_0000, 0x44_0000)]);
    }

    #[test]
    fn the_program_lives_on() {
        let before: Vec<u64> = (0..1000).collect();
        give_back();
        assert_eq!(before.iter().sum::<u64>(), 499_500);
        assert!(unwritten_in(&fs::read_to_string("/proc/self/smaps").unwrap()).len() > 1);
    }
}

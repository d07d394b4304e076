//! Giving memory back once the start is over.
//!
//! Reading the configuration, opening the database and building command lines touch most of the binary's code and leave
//! holes in the heap; a core that then waits for requests needs a small part of either.
//! On a small machine that is worth one look a few seconds after the start.

use std::ffi::c_void;
use std::fs;
use std::time::Duration;

use rustix::mm::{Advice, madvise};

/// When the start is over, its plugins' included.
pub const SETTLED: Duration = Duration::from_secs(5);

/// Unmaps the pages of the program's code, which come back from the page cache one by one as they are run, and gives
/// free heap back to the system. Does nothing where `/proc` cannot be read.
pub fn give_back() {
    for (start, bytes) in code_of(&fs::read_to_string("/proc/self/maps").unwrap_or_default()) {
        // SAFETY: the range is a private, file-backed mapping without write permission, as the kernel has just listed
        // it, and nothing unmaps the program's own code: its pages hold what the file holds, so dropping them loses
        // nothing, and the next access reads them anew.
        let _ = unsafe { madvise(start as *mut c_void, bytes, Advice::LinuxDontNeed) };
    }
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks, and touches free memory alone.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Address and length of each mapping of code that was read from a file.
fn code_of(maps: &str) -> impl Iterator<Item = (usize, usize)> {
    maps.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (range, access) = (fields.next()?, fields.next()?);
        if access != "r-xp" || !fields.nth(3)?.starts_with('/') {
            return None;
        }
        let (start, end) = range.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        Some((start, end.checked_sub(start)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_from_files_is_unmapped() {
        let maps = "\
55d0c0000000-55d0c0010000 r--p 00000000 fe:00 12 /usr/bin/toru
55d0c0010000-55d0c0450000 r-xp 00010000 fe:00 12 /usr/bin/toru
55d0c0450000-55d0c0460000 rw-p 00450000 fe:00 12 /usr/bin/toru
7f0000000000-7f0000001000 r-xp 00000000 00:00 0 
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0                          [vdso]
nonsense
";
        assert_eq!(code_of(maps).collect::<Vec<_>>(), [(0x55d0_c001_0000, 0x44_0000)]);
    }

    #[test]
    fn the_program_lives_on() {
        let before: Vec<u64> = (0..1000).collect();
        give_back();
        assert_eq!(before.iter().sum::<u64>(), 499_500);
        assert!(code_of(&fs::read_to_string("/proc/self/maps").unwrap()).count() > 0);
    }
}

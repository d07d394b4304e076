//! `no-uring COMMAND ARGUMENT…`: runs a command to which the kernel refuses io_uring, as containers
//! and hardened kernels do.

#![forbid(unsafe_code)]

use std::{os::unix::process::CommandExt, process::Command};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// `io_uring_setup`, `io_uring_enter`, `io_uring_register`: the same numbers on every architecture.
const IO_URING_SYSCALLS: [i64; 3] = [425, 426, 427];
const EPERM: u32 = 1;

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let command = arguments.next().expect("usage: no-uring COMMAND ARGUMENT…");
    let filter = SeccompFilter::new(
        IO_URING_SYSCALLS.map(|number| (number, vec![])).into(),
        SeccompAction::Allow,
        SeccompAction::Errno(EPERM),
        std::env::consts::ARCH.try_into().expect("seccompiler knows this architecture"),
    )
    .expect("the filter has no conditions that could contradict");
    let program: BpfProgram = filter.try_into().expect("three syscalls fit a filter");
    seccompiler::apply_filter(&program).expect("the kernel takes seccomp filters");
    let error = Command::new(&command).args(arguments).exec();
    panic!("{}: {error}", command.display());
}
